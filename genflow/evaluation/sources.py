"""Where the images of an evaluation come from: a set of images, or a model and seeds."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from genflow.data.images import ImageData
from genflow.denoiser import Denoiser
from genflow.sampling.generate import generate

UNIT = 64  # images that go through networks together, always the same ones: their number is part of the rounding


class Source(abc.ABC):
    """``count`` images in an order in which any run of them is like the whole; ``classes`` names those they have."""

    count: int
    classes: tuple[str, ...]

    @abc.abstractmethod
    def unit(self, number: int) -> tuple[Tensor, Tensor | None]:
        """Return images (UNIT, C, H, W) uint8 and labels (UNIT,) int64, or None, of places from ``UNIT number`` on.

        The last unit is filled up, so that kernels see one size of batch; what is over counts for nothing.
        """

    @property
    def units(self) -> int:
        """How many units there are."""
        return -(-self.count // UNIT)


@final
class FoundImages(Source):
    """Images that are there, shuffled by one rule: files often lie sorted by class.

    Args:
        data: the images. ``order`` tells which of them is at each place.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.count = len(data)
        self.classes = data.class_names
        self.order = np.random.Generator(np.random.Philox(0)).permutation(self.count)

    def unit(self, number: int) -> tuple[Tensor, Tensor | None]:
        places = self.order[np.arange(number * UNIT, (number + 1) * UNIT) % self.count]
        labels = None if self.data.labels is None else torch.from_numpy(self.data.labels[places])
        return torch.from_numpy(np.array(self.data.images[places])), labels


@final
@dataclass(frozen=True, kw_only=True)
class Samples(Source):
    """Images that a model makes, of seeds ``first_seed`` to ``first_seed + count - 1``.

    Args:
        denoiser: the model.
        count: how many.
        first_seed: the seed of the first.
        label: the class to ask a seed for; None asks for none.
        classes: their names.
        numbers: the model's label of each class; () if it counts them as they are counted here.
        steps, times, sampler, guidance: as in ``generate``; None is the model's default.
    """

    denoiser: Denoiser
    count: int
    first_seed: int = 0
    label: Callable[[int], int] | None = None
    classes: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    steps: int | None = None
    times: Sequence[float] | None = None
    sampler: str | None = None
    guidance: float = 1.0

    def unit(self, number: int) -> tuple[Tensor, Tensor | None]:
        start = self.first_seed + number * UNIT
        seeds = range(start, start + UNIT)
        asked = None if self.label is None else [self.label(seed) for seed in seeds]
        images = generate(
            self.denoiser,
            seeds,
            labels=[self.numbers[k] for k in asked] if asked and self.numbers else asked,
            steps=self.steps,
            times=self.times,
            sampler=self.sampler,
            guidance=self.guidance,
            batch_size=UNIT,
        )
        return images, None if asked is None else torch.tensor(asked)
