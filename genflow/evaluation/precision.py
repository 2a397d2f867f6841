"""What computing features in bfloat16 gains and costs, measured on the very images that are evaluated."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from genflow.evaluation.features import FeatureNetwork
from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.sources import Source
from genflow.evaluation.statistics import FeatureStats

CHECKED = 1  # units of each side that are computed in both precisions


def effect(fast: FeatureNetwork, exact: FeatureNetwork, samples: Source, reference: Source) -> str:
    """Return a sentence: how much faster, and how the distance of the first units changes, in figures.

    The change of a distance between few images is not that between many, but of its order: both come from features
    that are off by the same share.
    """
    found: dict[str, tuple[float, float]] = {}
    count = 0
    for name, network in (("fast", fast), ("exact", exact)):
        network.outputs(samples.unit(0)[0][:8])  # the first call makes plans that the others use
        seconds, sides = 0.0, []
        for source in (samples, reference):
            units = [source.unit(number)[0] for number in range(min(CHECKED, source.units))]
            started = time.perf_counter()
            vectors = torch.cat([_vectors(network, unit) for unit in units])[: source.count]
            seconds += time.perf_counter() - started
            sides.append(FeatureStats.of(vectors))
            count = len(vectors)
        found[name] = frechet_distance(*sides), seconds
    (there, took), (here, takes) = found["exact"], found["fast"]
    change = f"{abs(here / there - 1):.2%}" if there > 0 else f"{abs(here - there):.2g}"
    return (
        f"{fast.identity.dtype} here is {took / takes:.1f} times as fast as {exact.identity.dtype}, and moves the"
        f" distance of {count} images a side by {change} ({there:.5g} to {here:.5g})"
    )


def _vectors(network: FeatureNetwork, images: Tensor) -> Tensor:
    return network.features(images).cpu()  # which waits for the device
