"""The average of weights that is sampled from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.training.shards import shard_like, whole


class EMA:
    """Exponential moving average of a denoiser's weights with its half-life in images.

    After a step of ``batch`` images, ``ema <- w + beta (ema - w)`` with ``beta = 0.5^(batch / h)`` and
    ``h = min(halflife, rampup * images seen)``, so that the average forgets the start of a run at once. Buffers are
    copied. ``halflife = 0`` follows the weights exactly. ``denoiser`` is the averaged model; where weights are sharded
    over processes the average is too, and ``gather`` brings it there.
    Source: EDM's training loop, arXiv 2206.00364, appendix F.2.

    Raises ``ValueError`` for a negative half-life or ramp-up.
    """

    def __init__(self, denoiser: Denoiser, *, halflife: float, rampup: float) -> None:
        if halflife < 0 or rampup < 0:
            raise ValueError(f"halflife and rampup must not be negative, got {halflife} and {rampup}")
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(False).eval()
        self.halflife = halflife
        self.rampup = rampup
        self.follow(denoiser)

    def follow(self, denoiser: Denoiser) -> None:
        """Average these weights from now on, in their shards if they have been sharded; the average stays."""
        self._weights: list[Tensor] = list(denoiser.parameters())
        own = [p.detach() for p in self.denoiser.parameters()]
        self._average = [shard_like(a, w) for a, w in zip(own, self._weights, strict=True)]
        self._buffers = (list(self.denoiser.buffers()), list(denoiser.buffers()))

    def gather(self) -> None:
        """Bring the average into ``denoiser``; all processes must call this together."""
        for kept, average in zip(self.denoiser.parameters(), self._average, strict=True):
            gathered = whole(average)
            if gathered is not average:
                kept.data.copy_(gathered)

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
