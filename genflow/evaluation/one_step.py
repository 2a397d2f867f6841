"""What one-step samples look like as numbers: the sign of life of a consistency model, whose loss tells nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genflow.data.images import ImageData
from genflow.data.pairs import PairData
from genflow.denoiser import Denoiser
from genflow.sampling.generate import generate

WIDEST = 1.5  # spread of samples over that of the data beyond which a run is taken to diverge
NARROWEST = 0.5  # and below which, once it has been wider, to collapse
LOOKED_AT = 2000  # training images, at most


class OneStep:
    """Mean value of one-step samples, and how far they differ from each other, beside the training images.

    The spread is that of samples within their class, pixel by pixel (see ``spread``): the mean image alone has most of
    the spread of all values together, which would tell nothing of a model that draws no other. Nearly all of a
    consistency model's loss is noise that no network can remove: at random weights and at the exact solution it
    differs by a hundredth. The spread of ``f(sigma_max z, sigma_max)`` rises from 0 to the data's as the levels get
    closer, and leaves it when training breaks, of which a line on stderr then tells.

    Args:
        data: the training images, of which at most 2,000 are looked at, evenly apart.
        seeds: of the samples; the first classes take turns, as many as have two samples and more each.
    """

    def __init__(self, data: ImageData | PairData, seeds: Sequence[int]) -> None:
        # evenly apart, since sets may lie class by class
        chosen = np.linspace(0, len(data) - 1, min(len(data), LOOKED_AT)).astype(np.int64)
        labels = None if data.labels is None else data.labels[chosen]
        self.std = spread(torch.from_numpy(data.images[chosen]), labels) / 127.5
        self.seeds = seeds
        self._wide = False

    def __call__(self, denoiser: Denoiser) -> dict[str, float]:
        """Return ``one_step_mean``, ``one_step_std`` and ``one_step_std_over_data``, in [-1, 1] units."""
        classes = denoiser.classes[: max(1, len(self.seeds) // 2)]  # of a single sample no spread is known
        labels = [classes[seed % len(classes)] for seed in self.seeds] if classes else None
        images = generate(denoiser, self.seeds, labels=labels, steps=1, output="float").cpu()
        mean, std = float(images.mean()), spread(images, None if labels is None else np.array(labels))
        ratio = std / self.std if self.std else math.nan  # equal images have no spread to compare with
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


def spread(images: Tensor, labels: npt.NDArray[np.int64] | None = None) -> float:
    """Return the root of the mean over pixels of the variance across images (N, C, H, W), of equal labels (N,) if any.

    Variances within labels are pooled, and unbiased, so that few images of each are comparable with many. NaN where no
    two images share a label.
    """
    named, group = np.unique(np.zeros(len(images)) if labels is None else labels, return_inverse=True)
    squares = 0.0
    for k in range(len(named)):
        part = images[torch.from_numpy(group == k)].double()
        squares += float((part - part.mean(0)).square().sum())
    freedom = (len(images) - len(named)) * images[0].numel()
    return math.sqrt(squares / freedom) if freedom else math.nan
