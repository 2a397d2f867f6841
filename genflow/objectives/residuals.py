"""What the error of a regression is an error of: the raw residual times a function of time.

Whatever a network was trained to output, the errors of its raw output, of the velocity and of the clean image differ
by factors of t alone. Scaling the raw residual keeps all digits where forming the others from images would not: near
t = 0 a velocity ``(x_t - clean) / t`` is a small difference divided by a small number.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.parameterizations import Parameterization
from genflow.schedules import Schedule


class Residual(abc.ABC):
    """A choice of units for the error; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def scale(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        """Return the factor (B,) by which ``raw - target`` is multiplied at times ``t`` (B,), t > 0."""


@dataclass(frozen=True, kw_only=True)
class RawResidual(Residual):
    """``raw - target``: EDM's weighted error with ``Karras``, DDPM's simple one with ``PredictNoise``."""

    def scale(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class VelocityResidual(Residual):
    """``dx_t/dt - v``, the true velocity of the path minus the network's; on ``Linear``, ``(noise - x) - v``.

    A clean image gives the velocity ``v = alpha' clean + sigma' (x_t - alpha clean) / sigma``, so an error of the raw
    output counts ``-(alpha' - alpha sigma' / sigma) c_out`` times. For ``Karras`` on ``Linear`` that is
    ``sigma_data / sqrt(t^2 + sigma_data^2 (1 - t)^2)``, for ``PredictVelocity`` -sigma_data.
    Source: "Improving the Training of Rectified Flows", arXiv 2405.20320, section 4.2.
    """

    def scale(self, schedule: Schedule, parameterization: Parameterization, t: Tensor) -> Tensor:
        sigma = schedule.sigma(t)
        turn = schedule.alpha(t) * schedule.sigma_dot(t) - schedule.alpha_dot(t) * sigma
        return turn * (parameterization.coefficients(schedule, t).c_out / sigma)
