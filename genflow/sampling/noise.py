"""Noise as a function of seeds: the same for an image whatever batch, process or device it is made in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GENERATOR = (
    "philox4x64-10/box-muller/1"  # names the function from (seed, draw) to values; any change to it is a new name
)
_CLASSES = 2**63  # second word of the key of a seed's random class; that of its noise is 0


def standard_normal(seed: int, draw: int, count: int) -> np.ndarray:
    """Return ``count`` standard normal float32 values for a seed in [0, 2^64) and the number of the draw.

    Philox-4x64-10 with the seed as its key and the draw in the last word of its counter gives 64-bit words w; pairs of
    them give pairs of normals, ``sqrt(-2 ln u1) (cos, sin)(2 pi u2)`` with u = (w >> 11 + 1/2) / 2^53. Only numpy's
    raw words are used, which it promises never to change, unlike its normal variates.
    Sources: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011; Box and Muller 1958.
    """
    half = (count + 1) // 2
    words = np.random.Philox(key=_words(seed, 0), counter=_words(0, 0, 0, draw)).random_raw(2 * half)
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * math.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].astype(np.float32)


def random_class(seed: int, count: int) -> int:
    """Return a class in [0, count) for a seed in [0, 2^64), uniformly at random and apart from the seed's noise.

    ``floor(w count / 2^64)`` of one Philox-4x64-10 word w, whose bias is below count / 2^64.
    Source: "Fast Random Integer Generation in an Interval", arXiv 1805.10941.
    """
    word = np.random.Philox(key=_words(seed, _CLASSES), counter=_words(0, 0, 0, 0)).random_raw()
    return int(word) * count >> 64


def generator_checksum() -> str:
    """Return the sha256 of first values of the generator: another one here makes other noise of the same seeds."""
    digest = hashlib.sha256()
    for seed in (0, 1, 2**64 - 1):
        digest.update(standard_normal(seed, 0, 48).astype("<f4").tobytes())
    return digest.hexdigest()


def _words(*values: int) -> np.ndarray:
    """Return 64-bit words; numpy would turn a list with a large integer into floats."""
    return np.array(values, dtype=np.uint64)


class SeededNoise:
    """Standard normal noise for a batch of seeds: ``noise(k)`` is the k-th draw, (len(seeds), *shape) float32.

    Made on the CPU in units of one seed, so that it is bitwise the same at any batch size, process count and device.
    Raises ``ValueError`` for seeds outside [0, 2^64).
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> None:
        for seed in seeds:
            if not 0 <= seed < 2**64:
                raise ValueError(f"seeds must be in [0, 2^64), got {seed}")
        self.seeds = [int(seed) for seed in seeds]
        self.shape = shape
        self.device = device

    def __call__(self, draw: int) -> Tensor:
        """Return draw number ``draw`` >= 0 for every seed."""
        count = math.prod(self.shape)
        values = np.stack([standard_normal(seed, draw, count) for seed in self.seeds])
        return torch.from_numpy(values).view(-1, *self.shape).to(self.device)
