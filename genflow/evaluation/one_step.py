"""What one-step samples look like as numbers: the sign of life of a consistency model, whose loss tells nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

from genflow.data.images import ImageData
from genflow.data.pairs import PairData
from genflow.denoiser import Denoiser
from genflow.sampling.generate import generate

WIDEST = 1.5  # spread of samples over that of the data beyond which a run is taken to diverge
NARROWEST = 0.5  # and below which, once it has been wider, to collapse


class OneStep:
    """Mean and spread of the values of one-step samples, beside those of the training images.

    Nearly all of a consistency model's loss is noise that no network can remove: at random weights and at the exact
    solution it differs by a hundredth. The spread of ``f(sigma_max z, sigma_max)`` rises from 0 to the data's as the
    levels get closer, and leaves it when training breaks, of which a line on stderr then tells.

    Args:
        data: the training images, of which at most 2,000 are looked at.
        seeds: of the samples.
    """

    def __init__(self, data: ImageData | PairData, seeds: Sequence[int]) -> None:
        images = data.images[np.arange(min(len(data), 2000))]
        self.mean, self.std = float(images.mean() / 127.5 - 1), float(images.std() / 127.5)
        self.seeds = seeds
        self._wide = False

    def __call__(self, denoiser: Denoiser) -> dict[str, float]:
        """Return ``one_step_mean``, ``one_step_std`` and ``one_step_std_over_data``, in [-1, 1] units."""
        labels = [seed % denoiser.num_classes for seed in self.seeds] if denoiser.num_classes else None
        images = generate(denoiser, self.seeds, labels=labels, steps=1, output="float")
        mean, std = float(images.mean()), float(images.std())
        ratio = std / self.std if self.std else math.nan  # images of one value have no spread to compare with
        said = self._alarm(std, ratio)
        if said:
            print(f"genflow: {said}", file=sys.stderr)  # noqa: T201 (above the progress bar)
        return {"one_step_mean": mean, "one_step_std": std, "one_step_std_over_data": ratio}

    def _alarm(self, std: float, ratio: float) -> str:
        """Return what is to be said of a spread and of that over the data's, or nothing."""
        before, self._wide = self._wide, self._wide or NARROWEST <= ratio <= WIDEST
        many = "the loss does not show it; a lower --optim.lr, float32 and fewer last levels are what helps"
        if not math.isfinite(std):
            return f"one-step samples are not finite: training has diverged ({many})"
        if ratio > WIDEST:
            return f"one-step samples spread {ratio:.2f} times as wide as the data: training diverges ({many})"
        if before and ratio < NARROWEST:
            return f"one-step samples have shrunk to {ratio:.2f} of the spread of the data: training collapses ({many})"
        return ""
