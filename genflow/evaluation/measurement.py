"""The measurement behind every reported figure: samples against held-out images, beside what real images score."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genflow.data.images import ImageData
from genflow.denoiser import Denoiser
from genflow.evaluation.features import DigitFeatures, FeatureNetwork
from genflow.evaluation.metrics import class_accuracy, floor_distances, frechet_distance, memorising_ratio
from genflow.evaluation.statistics import FeatureStats
from genflow.sampling.generate import generate

RANGES = 5  # seed ranges whose mean is reported


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A Fréchet distance and what is needed to read it.

    ``distances`` holds one value per seed range, each between ``count`` samples and the ``count`` held-out images;
    ``floor`` the same for real training images; ``memorising`` is the ratio of nearest-neighbour distances to the
    training images, samples over held-out (real is 1, copies 0); ``accuracy`` the share of samples that the frozen
    classifier reads as the class asked for, if it can.
    """

    distances: tuple[float, ...]
    floor: tuple[float, ...]
    memorising: float
    accuracy: float | None
    count: int
    features: str

    @property
    def distance(self) -> float:
        """Mean over the seed ranges."""
        return statistics.fmean(self.distances)

    @property
    def floor_mean(self) -> float:
        """Mean over the subsets of real training images."""
        return statistics.fmean(self.floor)


def figure_label(features: str, count: int, quantisation: str = "uint8") -> str:
    """Return how a distance is called: FID in Inception features, FD in any other, with the number of samples."""
    kind = "FID" if features == "inception" else "FD"
    return f"{kind}-{count}[{features},{quantisation}]"


def measure(
    sample: Callable[[range], tuple[Tensor, Tensor | None]],
    train: ImageData,
    held_out: ImageData,
    features: FeatureNetwork,
    *,
    ranges: int = RANGES,
) -> Measurement:
    """Measure what ``sample(seeds)`` gives, images (N, C, H, W) uint8 and their labels, over ranges of seeds."""
    count = len(held_out)
    reference = FeatureStats.of(_vectors(features, torch.from_numpy(held_out.images)))
    distances, images, labels = [], [], []
    for k in range(ranges):
        made, asked = sample(range(k * count, (k + 1) * count))
        distances.append(frechet_distance(FeatureStats.of(_vectors(features, made)), reference))
        images.append(made)
        labels.append(asked)
    every = torch.cat(images)
    held = torch.from_numpy(held_out.images)
    known = torch.from_numpy(train.images)
    accuracy = None
    if isinstance(features, DigitFeatures) and labels[0] is not None:
        logits = torch.cat([features.logits(part) for part in every.split(256)])
        accuracy = class_accuracy(logits, torch.cat(labels))
    return Measurement(
        distances=tuple(distances),
        floor=tuple(floor_distances(_vectors(features, known), _vectors(features, held), repeats=RANGES)),
        memorising=memorising_ratio(every, known, held),
        accuracy=accuracy,
        count=count,
        features=features.identity,
    )


def labels_of(denoiser: Denoiser, held_out: ImageData) -> Tensor | None:
    """Return the labels to ask a model for: those of the held-out images, or its own classes in turn, or None.

    Raises ``ValueError`` if both have classes, but not as many.
    """
    if denoiser.num_classes == 0:
        return None
    if held_out.labels is None:
        return torch.arange(len(held_out)) % denoiser.num_classes
    if held_out.num_classes != denoiser.num_classes:
        raise ValueError(
            f"the model has {denoiser.num_classes} classes, {held_out.name} has {held_out.num_classes}: images of one"
            " class cannot be measured against those of another; put the reference in one folder without classes"
        )
    return torch.from_numpy(held_out.labels)


def from_model(
    denoiser: Denoiser,
    held_out: ImageData,
    *,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float = 1.0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Callable[[range], tuple[Tensor, Tensor | None]]:
    """Return a function for ``measure`` that samples a model; seed k takes label k mod N of ``labels_of``."""
    labels = labels_of(denoiser, held_out)

    def sample(seeds: range) -> tuple[Tensor, Tensor | None]:
        parts = []
        for start in progress(range(0, len(seeds), 256)):
            chosen = slice(start, start + 256)
            asked = None if labels is None else [int(labels[k % len(labels)]) for k in seeds[chosen]]
            parts.append(
                generate(
                    denoiser,
                    seeds[chosen],
                    labels=asked,
                    steps=steps,
                    sampler=sampler,
                    guidance=guidance,
                    batch_size=256,
                ).cpu()
            )
        return torch.cat(parts), None if labels is None else labels[torch.tensor(seeds) % len(labels)]

    return sample


def stats_of(features: FeatureNetwork, images: np.ndarray, *, batch_size: int = 256) -> FeatureStats:
    """Return the statistics of images (N, C, H, W) uint8, which may be a memory map larger than memory."""
    stats = FeatureStats(features.dims)
    for start in range(0, len(images), batch_size):
        stats.update(features.features(torch.from_numpy(np.array(images[start : start + batch_size]))))
    return stats


def _vectors(features: FeatureNetwork, images: Tensor) -> Tensor:
    return torch.cat([features.features(part).cpu() for part in images.split(256)])
