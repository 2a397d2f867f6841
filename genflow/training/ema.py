"""The average of weights that is sampled from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from genflow.denoiser import Denoiser


class EMA:
    """Exponential moving average of a denoiser's weights with its half-life in images.

    After a step of ``batch`` images, ``ema <- w + beta (ema - w)`` with ``beta = 0.5^(batch / h)`` and
    ``h = min(halflife, rampup * images seen)``, so that the average forgets the start of a run at once. Buffers are
    copied. ``halflife = 0`` follows the weights exactly. Source: EDM's training loop, arXiv 2206.00364, appendix F.2.

    Raises ``ValueError`` for a negative half-life or ramp-up.
    """

    def __init__(self, denoiser: Denoiser, *, halflife: float, rampup: float) -> None:
        if halflife < 0 or rampup < 0:
            raise ValueError(f"halflife and rampup must not be negative, got {halflife} and {rampup}")
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(False).eval()
        self.halflife = halflife
        self.rampup = rampup
        self._average: list[Tensor] = list(self.denoiser.parameters())
        self._weights: list[Tensor] = list(denoiser.parameters())
        self._buffers = (list(self.denoiser.buffers()), list(denoiser.buffers()))

    def beta(self, images_seen: int, batch: int) -> float:
        """Return the weight of the old average in a step that ends at ``images_seen`` images."""
        halflife = min(self.halflife, self.rampup * images_seen) if self.rampup else self.halflife
        return 0.5 ** (batch / halflife) if halflife else 0.0

    @torch.no_grad()
    def update(self, images_seen: int, batch: int) -> None:
        """Move the average towards the present weights after a step of ``batch`` images."""
        # one fused pass over all weights; private by name, and what torch's own AveragedModel is made of
        torch._foreach_lerp_(self._average, self._weights, 1 - self.beta(images_seen, batch))  # pyright: ignore[reportPrivateImportUsage]
        for kept, present in zip(*self._buffers, strict=True):
            kept.copy_(present)
