"""Parameterizations: what the raw output of a network means.

Each is one row of four coefficients, functions of time alone, in float64:

    clean = c_skip(t) x_t + c_out(t) raw,    raw = network(c_in(t) x_t, c_noise(t))

so one squared error on ``raw`` serves noise, image, v, EDM and velocity prediction alike.
"""

from __future__ import annotations

import abc
import enum
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.schedules import DiscreteVP, Schedule, expand, time_dtype


@dataclass(frozen=True)
class Coefficients:
    """The row of a parameterization at times t; all of t's shape. ``c_noise`` is what the time embedding sees."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_noise: Tensor


class Parameterization(abc.ABC):
    """How a clean image is read out of a raw network output; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        """Return the row at times ``t``, 0-dimensional or (B,)."""

    def clean(self, schedule: Schedule, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``c_skip x_t + c_out raw``, the clean image (B, C, H, W) seen from ``(x_t, t)``."""
        row = self.coefficients(schedule, t)
        return expand(row.c_skip, x_t) * x_t + expand(row.c_out, x_t) * raw

    def target(self, schedule: Schedule, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the raw output (B, C, H, W) that would give ``x``: ``(x - c_skip x_t) / c_out``, for t > 0.

        Written as a mix of ``x`` and ``noise`` whose two weights are formed in t's precision, because the difference of
        images loses all its digits near t = 0.
        """
        row = self.coefficients(schedule, t)
        of_x = (1 - row.c_skip * schedule.alpha(t)) / row.c_out
        of_noise = -row.c_skip * schedule.sigma(t) / row.c_out
        return expand(of_x, x) * x + expand(of_noise, x) * noise


def _clock(schedule: Schedule, t: Tensor) -> Tensor:
    """Return the time as networks conditioned on time see it: DDPM's step k in its table, else 1000 t."""
    match schedule:
        case DiscreteVP():
            return schedule.count * t - 1
        case _:
            return 1000 * t


@dataclass(frozen=True, kw_only=True)
class PredictNoise(Parameterization):
    """The network gives the noise: ``clean = (x_t - sigma raw) / alpha``; needs alpha > 0 up to ``t_max``.

    Source: "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, eq. 14.
    """

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return Coefficients(torch.ones_like(t), 1 / alpha, -sigma / alpha, _clock(schedule, t))


@dataclass(frozen=True, kw_only=True)
class PredictClean(Parameterization):
    """The network gives the clean image itself.

    Source: "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512, section 4.
    """

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(one, torch.zeros_like(t), one, _clock(schedule, t))


@dataclass(frozen=True, kw_only=True)
class PredictV(Parameterization):
    """The network gives ``v = (alpha noise - sigma x) / sqrt(alpha^2 + sigma^2)``.

    Source: "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512, appendix D.
    """

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        power = alpha**2 + sigma**2
        return Coefficients(torch.ones_like(t), alpha / power, -sigma / torch.sqrt(power), _clock(schedule, t))


@dataclass(frozen=True, kw_only=True)
class PredictVelocity(Parameterization):
    """The network gives ``dx_t/dt / sigma_data``; on ``Linear`` with ``sigma_data = 1`` that is ``noise - x``.

    With w = alpha' sigma - sigma' alpha: ``clean = (-sigma' x_t + sigma_data sigma raw) / w``. ``c_in`` is
    1 / sigma_data. Sources: rectified flow, arXiv 2209.03003, eq. 1; TrigFlow, arXiv 2410.11081, section 3.
    """

    sigma_data: float = 1.0

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        alpha_dot, sigma_dot = schedule.alpha_dot(t), schedule.sigma_dot(t)
        sigma = schedule.sigma(t)
        w = alpha_dot * sigma - sigma_dot * schedule.alpha(t)
        c_in = torch.full_like(t, 1 / self.sigma_data)
        return Coefficients(c_in, -sigma_dot / w, self.sigma_data * sigma / w, _clock(schedule, t))


class Conditioning(enum.StrEnum):
    """What the time embedding of a ``Karras`` network sees."""

    LEVEL = "level"
    """``ln(sigma / alpha) / 4``, as EDM's networks do, with the noise level clipped."""
    TIME = "time"
    """``t`` itself, for schedules whose t is in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Karras(Parameterization):
    """EDM's preconditioning, for any schedule: the target has unit variance at every noise level.

    With q = sigma^2 + alpha^2 sigma_data^2: ``c_skip = alpha sigma_data^2 / q``, ``c_out = sigma sigma_data /
    sqrt(q)``, ``c_in = 1 / sqrt(q)``. What the embedding sees, ``c_noise``, matters most to models that sample in one
    step, because all of it then hangs on the noise end, which training hardly visits:

    - ``LEVEL`` up to ``level_max = 80``, where EDM stops (the default): a network trained so keeps what it knows, and
      all times above t = 0.98765 of ``Linear`` look like that one;
    - ``LEVEL`` with ``level_min = 1e-5, level_max = 99999``: unclipped for t in [1e-5, 1 - 1e-5], as 2-RF++ was
      published. The last hundredth of t then takes up more of the embedding than EDM's levels from 1 to 80;
    - ``TIME``: ``c_noise = t``, for training from scratch (as in arXiv 2511.23342).

    Students of an EDM on embedded digits, unclipped against clipped at 80: one-step Fréchet distances to the training
    images of 1.33 against 0.83 at 8x8, and of 34.8 against 2.7 at 16x16 (2-RF++ without real pairs, half-length runs,
    one seed; 0.82 and 2.6 at 20, which the recipe tiny-reflow takes, 0.84 and 2.7 by time).
    Source: arXiv 2206.00364, Table 1 and appendix B.6; on ``Linear``, "Improving the Training of Rectified Flows",
    arXiv 2405.20320, section 4.3.
    """

    sigma_data: float = 0.5
    level_min: float = 0.002
    level_max: float = 80.0
    conditioning: Conditioning = Conditioning.LEVEL

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        q = sigma**2 + (alpha * self.sigma_data) ** 2
        match self.conditioning:
            case Conditioning.LEVEL:
                c_noise = (sigma / alpha).clamp(self.level_min, self.level_max).log() / 4
            case Conditioning.TIME:
                c_noise = t
        return Coefficients(q.rsqrt(), alpha * self.sigma_data**2 / q, sigma * self.sigma_data * q.rsqrt(), c_noise)


@dataclass(frozen=True, kw_only=True)
class ConsistencyKarras(Parameterization):
    """EDM's preconditioning shifted so that the clean image at ``sigma_min`` is the state itself, bit by bit.

    On ``VE``: ``c_skip = sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2)``,
    ``c_out = sigma_data (sigma - sigma_min) / sqrt(sigma^2 + sigma_data^2)``, the rest as ``Karras``.
    Source: "Consistency Models", arXiv 2303.01469, appendix C.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    level_max: float = 80.0

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        sigma = schedule.sigma(t).clamp(min=self.sigma_min)  # at t = 0 there is nothing left to remove
        shifted, norm = sigma - self.sigma_min, (sigma**2 + self.sigma_data**2).rsqrt()
        c_skip = self.sigma_data**2 / (shifted**2 + self.sigma_data**2)
        c_noise = sigma.clamp(max=self.level_max).log() / 4
        return Coefficients(norm, c_skip, self.sigma_data * shifted * norm, c_noise)


@dataclass(frozen=True, kw_only=True)
class Converted(Parameterization):
    """The network gives what it gave as ``row`` on ``schedule``: a model of one schedule on another, weights unchanged.

    A state x_t is the other schedule's at the time s of equal noise level, ``sigma_s / alpha_s = sigma / alpha``, times
    ``k = (alpha_s + sigma_s) / (alpha + sigma)``. With the coefficients c' of ``row`` at s: ``c_in = k c_in'``,
    ``c_skip = k c_skip'``, ``c_out = c_out'``, ``c_noise = c_noise'``. On ``Linear`` k is ``alpha_s + sigma_s``, and
    predicted noise gives ``clean = (x_t - t raw) / (1 - t)``.

    It is equal to the other model up to that model's last noise level (of ``VP`` 152.17, t = 0.99347 on ``Linear``);
    above, s stays at its end, as if the state had no more noise than there, and all is finite up to t = 1.
    Source: "Improving the Training of Rectified Flows", arXiv 2405.20320, proposition 1.
    """

    schedule: Schedule
    row: Parameterization

    @functools.cached_property
    def _last_level(self) -> float:
        end = torch.tensor(self.schedule.t_max, dtype=torch.float64)
        return float(self.schedule.sigma(end) / self.schedule.alpha(end))

    def time_of(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Return the time s, of the shape of ``t``, at which the network's own schedule has the noise level of t."""
        t = t.to(time_dtype(t.device))
        level = (schedule.sigma(t) / schedule.alpha(t)).clamp(max=self._last_level)
        return self.schedule.time_at(level).clamp(0, self.schedule.t_max)  # which rounding may leave

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        s = self.time_of(schedule, t)
        k = (self.schedule.alpha(s) + self.schedule.sigma(s)) / (schedule.alpha(t) + schedule.sigma(t))
        row = self.row.coefficients(self.schedule, s)
        return Coefficients(k * row.c_in, k * row.c_skip, row.c_out, row.c_noise)
