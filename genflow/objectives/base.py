"""What every training objective is: a module that owns the denoiser and gives one loss per image."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from genflow.denoiser import Denoiser
from genflow.schedules import time_dtype


@dataclass(frozen=True)
class Batch:
    """What a training step sees: images with their labels, and the noise and the luck that go with each.

    ``x`` and ``noise`` (B, C, H, W) float32; ``y`` (B,) int64 or None; ``index`` (B,) int64, which images these are;
    ``u`` (B,) in (0, 1), the rank of each image's time within the law of times; ``augment`` (B, K) float32, labels that
    tell how images were augmented, or None. Keeping ``u`` here rather than inside the objective lets the log sort
    losses by decile of time whatever the objective makes of it.
    """

    x: Tensor
    y: Tensor | None
    noise: Tensor
    index: Tensor
    u: Tensor
    augment: Tensor | None = None

    @staticmethod
    def draw(
        x: Tensor, y: Tensor | None, index: Tensor, augment: Tensor | None = None, noise: Tensor | None = None
    ) -> Batch:
        """Join images with ranks of their own, and with noise if they bring none, from torch's global generator."""
        u = torch.rand(x.shape[0], device=x.device, dtype=time_dtype(x.device))
        rim = max(1e-9, torch.finfo(u.dtype).eps)  # quantiles at exactly 0 or 1 are infinite
        noise = torch.randn_like(x) if noise is None else noise
        return Batch(x=x, y=y, noise=noise, index=index, u=u.clamp(rim, 1 - rim), augment=augment)


class Objective(nn.Module, abc.ABC):
    """A loss on a denoiser. It owns the denoiser, so that whatever wraps it for training wraps both."""

    denoiser: Denoiser
    exact: ClassVar[bool] = False
    """Whether the loss is a small difference that TF32, rounding to three digits, would drown."""

    @abc.abstractmethod
    def forward(self, batch: Batch, step: int) -> Tensor:
        """Return one loss per image, (B,) float32; ``step`` counts optimiser steps from 0."""

    @abc.abstractmethod
    def after_step(self, step: int) -> None:
        """Do what follows an optimiser step, such as moving a target network."""

    def pace(self, step: int) -> dict[str, int]:
        """Return what the log is to say of a step, by name: nothing, if all steps are alike."""
        return {}


def drop_labels(y: Tensor | None, probability: float, num_classes: int) -> Tensor | None:
    """Replace each label by "no class" with this probability (arXiv 2207.12598, algorithm 1)."""
    if y is None or probability == 0:
        return y
    return torch.where(torch.rand(y.shape, device=y.device) < probability, num_classes, y)
