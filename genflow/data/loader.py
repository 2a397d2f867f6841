"""Batches as a pure function of (seed, number), whatever was loaded before: so that a run can resume exactly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genflow.data.images import ImageData
from genflow.data.pairs import PairData


class Loaded(NamedTuple):
    """A batch on the CPU, before anything random is done to it."""

    images: Tensor
    """(B, C, H, W) uint8."""
    labels: Tensor | None
    """(B,) int64."""
    indices: Tensor
    """(B,) int64, which of the set's images these are."""
    noise: Tensor | None = None
    """(B, C, H, W) float32, the noise that each image was made of; None for images that any noise may meet."""


class ImageLoader:
    """Draws batch after batch of a data set, each epoch in an order of its own.

    Batch ``number`` of process ``rank`` holds the positions ``(number processes + rank) batch_size …`` of the endless
    sequence of epochs, each a permutation keyed by (seed, epoch). ``batch_size`` is per process and may exceed the
    data set. Images of pairs come with their noise.

    Raises ``ValueError`` for an empty data set, and for mirrored pairs, whose noise would be another image's.
    """

    def __init__(
        self,
        data: ImageData | PairData,
        *,
        batch_size: int,
        seed: int,
        flip: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if len(data) == 0:
            raise ValueError(f"{data.name} has no images to train on")
        if flip and isinstance(data, PairData):
            raise ValueError(
                f"{data.name} holds pairs, which cannot be mirrored: their noise is that of the image as it is"
            )
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.rank = rank
        self.processes = processes
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def __call__(self, number: int) -> Loaded:
        """Return batch ``number``."""
        first = (number * self.processes + self.rank) * self.batch_size
        position = np.arange(first, first + self.batch_size)
        epoch, place = np.divmod(position, len(self.data))
        if epoch[0] == epoch[-1]:
            index = self._order(int(epoch[0]))[place]
        else:
            index = np.stack([self._order(int(e))[p] for e, p in zip(epoch, place, strict=True)])
        images = self.data.images[index]
        if self.flip:
            mirrored = self._bits(first)
            images[mirrored] = images[mirrored, ..., ::-1]
        labels = None if self.data.labels is None else torch.from_numpy(self.data.labels[index])
        noise = torch.from_numpy(self.data.noise(index)) if isinstance(self.data, PairData) else None
        return Loaded(torch.from_numpy(images), labels, torch.from_numpy(index), noise)

    def _bits(self, first: int) -> np.ndarray:
        """Return a fair bit for each position of a batch, whatever batch the position is in: one stream, read there."""
        skipped, words = first % 4, _words(first // 4, 0, 0, 0)  # Philox counts in blocks of four words
        stream = np.random.Philox(key=_words(self.seed, 1), counter=words)
        return stream.random_raw(skipped + self.batch_size)[skipped:] % 2 == 1

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=_words(self.seed, 2 + epoch))).permutation(len(self.data))


class Ahead:
    """The same batches, each made in a thread while the one before it is trained on, if they are asked for in order."""

    def __init__(self, loader: Callable[[int], Loaded]) -> None:
        self._loader = loader
        self._thread = ThreadPoolExecutor(1, "loader")
        self._next: tuple[int, Future[Loaded]] | None = None

    def __call__(self, number: int) -> Loaded:
        """Return batch ``number``, and begin with the next one."""
        if self._next is None or self._next[0] != number:
            self._next = number, self._thread.submit(self._loader, number)
        loaded = self._next[1].result()
        self._next = number + 1, self._thread.submit(self._loader, number + 1)
        return loaded


def _words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)
