r"""Noise schedules: two scalar functions that say how an image turns into noise.

Every process here is ``x_t = alpha(t) x + sigma(t) noise`` with data at ``t = 0``, so ``alpha(0) = 1`` and
``sigma(0) = 0``. Times are float64 tensors, either 0-dimensional (samplers: one time for the whole batch) or of
shape ``(B,)`` (training); images are ``(B, C, H, W)``. The *noise level* is the ratio ``sigma / alpha``, which all
schedules share: two schedules at equal noise level see the same image up to a scale.
"""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


def time_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for scalars of time: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient, 0-dimensional or (B,), so that it multiplies images ``x`` (B, C, H, W) in x's dtype."""
    coefficient = coefficient.to(x.dtype)
    return coefficient if coefficient.ndim == 0 else coefficient.view(-1, *[1] * (x.ndim - 1))


class Schedule(abc.ABC):
    """How much of the image, ``alpha(t)``, and of the noise, ``sigma(t)``, is left at time ``t``.

    Subclasses are frozen dataclasses of pure maths.
    """

    @property
    @abc.abstractmethod
    def t_max(self) -> float:
        """The time of pure noise, where sampling starts."""

    @property
    def t_min(self) -> float:
        """The time of hardly any noise, where the way back from images to noise starts.

        The lowest above 0 that grids have, or a thousandth of ``t_max`` where that depends on the number of steps.
        """
        return 1e-3 * self.t_max

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the share of the image at ``t``, of the shape of ``t``."""

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the share of the noise at ``t``, of the shape of ``t``."""

    @abc.abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """Return d alpha / d t."""

    @abc.abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        """Return d sigma / d t."""

    @abc.abstractmethod
    def time_at(self, noise_level: Tensor) -> Tensor:
        """Return the time whose noise level ``sigma / alpha`` is the one given."""

    @abc.abstractmethod
    def times(self, steps: int) -> Tensor:
        """Return the grid for ``steps`` intervals: (steps + 1,) float64, from ``t_max`` down to 0."""

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return ``x_t = alpha x + sigma noise``."""
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * noise

    def noise_in(self, x_t: Tensor, clean: Tensor, t: Tensor) -> Tensor:
        """Return the noise that, mixed with ``clean``, gives ``x_t``: ``(x_t - alpha clean) / sigma``, for t > 0."""
        return (x_t - expand(self.alpha(t), x_t) * clean) / expand(self.sigma(t), x_t)

    def move(self, x_t: Tensor, clean: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Carry a state from ``t > 0`` to ``s`` along the line through the clean image.

        ``x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) clean``. At ``s = 0`` this is
        ``clean``, bit by bit. It is EDM's Euler step on ``VE``, the rectified-flow Euler step on ``Linear`` and
        DDIM's on the variance-preserving schedules ("Denoising Diffusion Implicit Models", arXiv 2010.02502, eq. 12).
        """
        ratio = self.sigma(s) / self.sigma(t)
        return expand(ratio, x_t) * x_t + expand(self.alpha(s) - self.alpha(t) * ratio, x_t) * clean

    def correct(self, x_t: Tensor, clean: Tensor, t: Tensor, x_s: Tensor, clean_s: Tensor, s: Tensor) -> Tensor:
        """Return the state at ``s`` by the trapezoid rule, from ``x_s = move(x_t, clean, t, s)`` and what it shows.

        ``x_s + (alpha_s - alpha_t) (clean_s - clean) / 2 + (sigma_s - sigma_t) (noise_s - noise_t) / 2``, for
        ``s > 0``: Heun's method for ``dx = clean d(alpha) + noise d(sigma)`` (on ``VE`` arXiv 2206.00364, algorithm 1).
        """
        turn = self.noise_in(x_s, clean_s, s) - self.noise_in(x_t, clean, t)
        x_s = x_s + expand((self.alpha(s) - self.alpha(t)) / 2, x_t) * (clean_s - clean)
        return x_s + expand((self.sigma(s) - self.sigma(t)) / 2, x_t) * turn


def _power_grid(schedule: Schedule, low: float, high: float, rho: float, steps: int) -> Tensor:
    """Return times whose noise levels are evenly spaced in the power 1/rho, then 0 (arXiv 2206.00364, eq. 5)."""
    _check_steps(steps)
    i = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    levels = (high ** (1 / rho) + i * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    levels[0] = high  # the power and its root do not cancel to the last digit
    return torch.cat([schedule.time_at(levels), torch.zeros(1, dtype=torch.float64)])


def _uniform_grid(t_max: float, steps: int) -> Tensor:
    """Return ``steps`` equal intervals from ``t_max`` to 0."""
    _check_steps(steps)
    return t_max * (1 - torch.arange(steps + 1, dtype=torch.float64) / steps)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


@dataclass(frozen=True, kw_only=True)
class VE(Schedule):
    """Variance exploding: ``alpha = 1, sigma = t``; t in [0, sigma_max] is the noise level itself.

    Source: "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364, Table 1; the grid
    is its eq. 5.

    Raises ``ValueError`` unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must lie between 0 and sigma_max {self.sigma_max}")

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_at(self, noise_level: Tensor) -> Tensor:
        return noise_level

    def times(self, steps: int) -> Tensor:
        return _power_grid(self, self.sigma_min, self.sigma_max, self.rho, steps)


@dataclass(frozen=True, kw_only=True)
class VP(Schedule):
    """Variance preserving in continuous time: ``alpha = exp(-b/2)``, ``sigma = sqrt(1 - alpha^2)``, t in [0, 1].

    ``b(t) = beta_d t^2 / 2 + beta_min t``. Source: "Score-Based Generative Modeling through Stochastic Differential
    Equations", arXiv 2011.13456, eq. 33, in the form of arXiv 2206.00364, Table 1. The grid is even in the power
    1/rho of the noise level, between its value at t = 1 and ``level_min``.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    level_min: float = 0.002
    rho: float = 7.0

    @property
    def t_max(self) -> float:
        return 1.0

    @property
    def t_min(self) -> float:
        return float(self.time_at(torch.tensor(self.level_min, dtype=torch.float64)))

    def _b(self, t: Tensor) -> Tensor:
        return self.beta_d / 2 * t**2 + self.beta_min * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._b(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._b(t)))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -(self.beta_d * t + self.beta_min) / 2 * self.alpha(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return (self.beta_d * t + self.beta_min) / 2 * torch.exp(-self._b(t)) / self.sigma(t)

    def time_at(self, noise_level: Tensor) -> Tensor:
        b = torch.log1p(noise_level**2)
        # the root written without a difference, which would lose digits near t = 0
        return 2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * self.beta_d * b))

    def times(self, steps: int) -> Tensor:
        high = math.sqrt(math.expm1(self.beta_d / 2 + self.beta_min))
        grid = _power_grid(self, self.level_min, high, self.rho, steps)
        grid[0] = self.t_max
        return grid


def linear_betas(count: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """Return DDPM's variances, evenly spaced from ``start`` to ``end`` (arXiv 2006.11239, section 4)."""
    step = (end - start) / max(count - 1, 1)
    return tuple(start + k * step for k in range(count))


@dataclass(frozen=True, kw_only=True)
class DiscreteVP(Schedule):
    """DDPM's table: step k of T stands at ``t = (k + 1) / T``, with ``alpha_k^2 = prod_{i <= k} (1 - beta_i)``.

    Between the entries log alpha is linear in t, so that any t in [0, 1] may be asked for. Grids consist of entries of
    the table and always begin at the last one, pure noise. Source: "Denoising Diffusion Probabilistic Models", arXiv
    2006.11239, eq. 4.
    """

    betas: tuple[float, ...] = linear_betas()

    @property
    def t_max(self) -> float:
        return 1.0

    @property
    def t_min(self) -> float:
        return 1 / self.count

    @property
    def count(self) -> int:
        """T, the number of entries of the table."""
        return len(self.betas)

    @functools.cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        betas = torch.tensor(self.betas, dtype=torch.float64)
        log_alpha = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0) / 2])
        return {torch.device("cpu"): log_alpha}

    def _table(self, t: Tensor) -> Tensor:
        if t.device not in self._tables:  # copied once per device, never in the training step
            self._tables[t.device] = self._tables[torch.device("cpu")].to(time_dtype(t.device)).to(t.device)
        return self._tables[t.device]

    def _log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log alpha and its slope in t."""
        table, position = self._table(t), t * self.count
        k = position.long().clamp(0, self.count - 1)
        rise = table[k + 1] - table[k]
        return table[k] + (position - k) * rise, rise * self.count

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t)[0])

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)[0]))

    def alpha_dot(self, t: Tensor) -> Tensor:
        log_alpha, slope = self._log_alpha(t)
        return slope * torch.exp(log_alpha)

    def sigma_dot(self, t: Tensor) -> Tensor:
        log_alpha, slope = self._log_alpha(t)
        return -slope * torch.exp(2 * log_alpha) / torch.sqrt(-torch.expm1(2 * log_alpha))

    def time_at(self, noise_level: Tensor) -> Tensor:
        depth, table = torch.log1p(noise_level**2) / 2, -self._table(noise_level)
        k = (torch.searchsorted(table, depth.contiguous(), right=True) - 1).clamp(0, self.count - 1)
        return (k + (depth - table[k]) / (table[k + 1] - table[k])) / self.count

    def times(self, steps: int) -> Tensor:
        if steps > self.count:
            raise ValueError(f"steps must be at most {self.count}, the length of the table of betas, got {steps}")
        return (_uniform_grid(1.0, steps) * self.count).round() / self.count


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Cosine schedule: ``alpha = cos(a(t)) / cos(a(0))`` with ``a(t) = pi/2 (t + offset) / (1 + offset)``.

    t in [0, end]; ``end < 1`` keeps alpha above 0, which reading a clean image out of predicted noise needs (the
    default stops at a noise level of 80). Source: "Improved Denoising Diffusion Probabilistic Models",
    arXiv 2102.09672, eq. 17.
    """

    offset: float = 0.008
    end: float = 0.992

    @property
    def t_max(self) -> float:
        return self.end

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t + self.offset) / (1 + self.offset)

    @property
    def _angle_0(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    @property
    def _speed(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t)) / math.cos(self._angle_0)

    def sigma(self, t: Tensor) -> Tensor:
        # sqrt(1 - alpha^2) as a product, exact near t = 0
        a, b = self._angle(t), self._angle_0
        return torch.sqrt(torch.sin(self._speed * t) * torch.sin(a + b)) / math.cos(b)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self._speed * torch.sin(self._angle(t)) / math.cos(self._angle_0)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)

    def time_at(self, noise_level: Tensor) -> Tensor:
        angle = torch.acos(math.cos(self._angle_0) / torch.sqrt(1 + noise_level**2))
        return (angle - self._angle_0) / self._speed

    def times(self, steps: int) -> Tensor:
        return _uniform_grid(self.end, steps)


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """The straight path of rectified flow: ``alpha = 1 - t, sigma = t``, t in [0, 1].

    Source: "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow", arXiv 2209.03003,
    eq. 1, whose time runs the other way (its data at 1).
    """

    @property
    def t_max(self) -> float:
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_at(self, noise_level: Tensor) -> Tensor:
        return 1 / (1 + 1 / noise_level)  # right at an infinite level too

    def times(self, steps: int) -> Tensor:
        return _uniform_grid(1.0, steps)


@dataclass(frozen=True, kw_only=True)
class Trig(Schedule):
    """TrigFlow: ``alpha = cos t, sigma = sigma_data sin t``, t in [0, arctan(sigma_max / sigma_data)].

    Source: "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", arXiv 2410.11081, section 3.
    """

    sigma_data: float = 0.5
    sigma_max: float = 80.0

    @property
    def t_max(self) -> float:
        return math.atan(self.sigma_max / self.sigma_data)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_data * torch.sin(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.sin(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self.sigma_data * torch.cos(t)

    def time_at(self, noise_level: Tensor) -> Tensor:
        return torch.atan(noise_level / self.sigma_data)

    def times(self, steps: int) -> Tensor:
        return _uniform_grid(self.t_max, steps)
