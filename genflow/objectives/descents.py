"""How a consistency model's training gets from a state to the one below it: by the image itself, or by a teacher."""

from __future__ import annotations

import abc
from typing import Self

import torch
from torch import Tensor, nn

from genflow.denoiser import Denoiser
from genflow.objectives.base import Batch
from genflow.schedules import Schedule, expand


class Descent(nn.Module, abc.ABC):
    """A step down from time t to time s < t."""

    @abc.abstractmethod
    def forward(self, schedule: Schedule, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        """Return the states (B, C, H, W) at ``s`` (B,) that belong to ``x_t`` at ``t`` (B,), labels ``y`` or None."""


class ByImage(Descent):
    """Training (CT, iCT, ECT): less of the same noise on the same image, ``x_s = alpha_s x + sigma_s noise``.

    That is an Euler step of the flow whose denoiser is replaced by the image (arXiv 2303.01469, section 5).
    """

    def forward(self, schedule: Schedule, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        return schedule.interpolate(batch.x, batch.noise, s)


class ByTeacher(Descent):
    """Distillation (CD) by Euler: one step of a frozen teacher's flow, ``move(x_t, teacher(x_t, t), t, s)``.

    Source: "Consistency Models", arXiv 2303.01469, section 4.
    """

    def __init__(self, teacher: Denoiser) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Leave the teacher as it samples, without dropout."""
        super().train(mode)
        self.teacher.eval()
        return self

    def clean(self, batch: Batch, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Return the clean images that the teacher sees."""
        return self.teacher.denoise(x_t, t, y if self.teacher.num_classes else None, augment=batch.augment)

    def forward(self, schedule: Schedule, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        return schedule.move(x_t, self.clean(batch, x_t, t, y), t, s)


class ByTeacherHeun(ByTeacher):
    """Distillation by Heun: the step of ``ByTeacher`` with its slope averaged over both ends; two calls.

    On ``VE``: ``x_s = x_t + (s - t) (noise_in(x_t) + noise_in(x_s')) / 2``, x_s' being Euler's. To below ``t_min``,
    where there is no noise to read, it is Euler's step, as the last one of EDM's sampler.
    Source: "Consistency Models", arXiv 2303.01469, section 4, after arXiv 2206.00364, algorithm 1.
    """

    def forward(self, schedule: Schedule, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        clean = self.clean(batch, x_t, t, y)
        x_s = schedule.move(x_t, clean, t, s)
        known = s.clamp(min=schedule.t_min)
        corrected = schedule.correct(x_t, clean, t, x_s, self.clean(batch, x_s, known, y), known)
        return torch.where(expand(s, x_s) == expand(known, x_s), corrected, x_s)
