"""Which two neighbouring noise levels a consistency model is made to agree on: the student's, and the teacher's below.

Grids, probabilities and gaps are formed in float64. In bfloat16 a twentieth of iCT's last 1,281 levels coincide with
their neighbours, and in float16 gaps are wrong by up to a sixth.
"""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.objectives.curricula import Curriculum
from genflow.objectives.time_distributions import LogNormal
from genflow.parameterizations import ConsistencyKarras
from genflow.schedules import VE, time_dtype


def karras_grid(points: int, *, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """Return noise levels (points,) float64, rising: ``(low^(1/rho) + i (high^(1/rho) - low^(1/rho)))^rho``.

    i runs over [0, 1] evenly. Both ends are set, not computed: the lowest must be the one at which a consistency model
    is the identity, to the last bit, since all others lean on it.
    Source: arXiv 2303.01469, section 3, after arXiv 2206.00364, eq. 5.
    """
    grid = VE(sigma_min=low, sigma_max=high, rho=rho).times(points)[:-1].flip(0)
    grid[0], grid[-1] = low, high
    return grid


def _check_ve(denoiser: Denoiser, high: float) -> None:
    match denoiser.schedule:
        case VE(sigma_max=most) if high > most * (1 + 1e-6):
            raise ValueError(f"levels up to {high:g} are above the schedule's last, {most:g}")
        case VE():
            return
        case other:
            raise ValueError(f"consistency models are trained on schedule VE, and this one has {type(other).__name__}")


class IntervalLaw(abc.ABC):
    """How often each interval of a grid is trained on; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def probabilities(self, grid: Tensor) -> Tensor:
        """Return (N - 1,) float64 with sum 1 for a rising grid of noise levels (N,)."""


@dataclass(frozen=True, kw_only=True)
class UniformInterval(IntervalLaw):
    """Every interval alike: CT's and CD's (arXiv 2303.01469, algorithms 2 and 3)."""

    def probabilities(self, grid: Tensor) -> Tensor:
        return torch.full_like(grid[1:], 1 / (len(grid) - 1))


@dataclass(frozen=True, kw_only=True)
class LogNormalInterval(IntervalLaw):
    """What a log-normal law of noise levels leaves in each interval: ``erf(z_{i + 1}) - erf(z_i)``, normalised.

    ``z_i = (ln sigma_i - mean) / (sqrt(2) std)``; the mean is negative: iCT's -1.1 has its mode at 0.19 of the last
    grid. Source: "Improved Techniques for Training Consistency Models", arXiv 2310.14189, section 3.5.

    Raises ``ValueError`` for a deviation that is not above 0, and where the law leaves nothing between the grid's ends.
    """

    mean: float = -1.1
    std: float = 2.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"the deviation of a log-normal law must be above 0, got {self.std}")

    def probabilities(self, grid: Tensor) -> Tensor:
        weights = torch.erf((grid.log() - self.mean) / (math.sqrt(2) * self.std)).diff()
        if not weights.sum() > 0:
            raise ValueError(
                f"a log-normal law of mean {self.mean:g} and deviation {self.std:g} leaves nothing between the noise"
                f" levels {float(grid[0]):g} and {float(grid[-1]):g}: iCT's are -1.1 and 2"
            )
        return weights / weights.sum()


class Levels(abc.ABC):
    """A law of pairs of times; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def pairs(self, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the times t > s (B,) of images at ranks ``u`` (B,) in (0, 1) of the law, at optimiser step ``step``.

        The student sees t, the teacher s; both rise with u.
        """

    def check(self, denoiser: Denoiser) -> None:  # noqa: B027
        """Raise ``ValueError`` for a model that cannot be trained on these levels, saying which could."""

    def pace(self, step: int) -> dict[str, int]:
        """Return how far the law has come at a step, under the name that the log gives it; nothing if it stays."""
        return {}


@dataclass(frozen=True, kw_only=True)
class GridLevels(Levels):
    """Neighbours of a grid on ``VE`` that grows finer: ``t = sigma_{i + 1}, s = sigma_i``, i drawn by ``law``.

    Sources: arXiv 2303.01469, section 5; arXiv 2310.14189, sections 3.4 and 3.5.
    """

    curriculum: Curriculum
    law: IntervalLaw
    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0

    @functools.cached_property
    def _tables(self) -> dict[tuple[int, torch.device], tuple[Tensor, Tensor]]:
        return {}

    def table(self, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the grid (N,) at a step and the cumulative probabilities (N - 1,) of its intervals, on a device.

        Copied there once for every N, so that steps do not wait for it.
        """
        key = (self.curriculum.points(step), device)
        if key not in self._tables:
            grid = karras_grid(key[0], low=self.low, high=self.high, rho=self.rho)
            both = grid, self.law.probabilities(grid).cumsum(0)
            self._tables[key] = (both[0].to(time_dtype(device)).to(device), both[1].to(time_dtype(device)).to(device))
        return self._tables[key]

    def pairs(self, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        grid, cumulative = self.table(step, u.device)
        i = torch.searchsorted(cumulative, u.contiguous(), right=True).clamp(max=len(grid) - 2)
        return grid[i + 1], grid[i]

    def check(self, denoiser: Denoiser) -> None:
        """Refuse other schedules than ``VE``, levels above its last, laws of none, and models that change the lowest.

        There ``f(x, low) = x`` must hold, ``c_skip = 1, c_out = 0``, or nothing anchors what is learnt.
        """
        _check_ve(denoiser, self.high)
        self.table(0, torch.device("cpu"))
        low = torch.tensor(self.low, dtype=torch.float64)
        at = denoiser.parameterization.coefficients(denoiser.schedule, low)
        if not math.isclose(at.c_skip, 1.0, abs_tol=1e-9) or not math.isclose(at.c_out, 0.0, abs_tol=1e-9):
            raise ValueError(
                f"at the lowest level of the grid, {self.low:g}, this model gives {float(at.c_skip):g} times the image"
                f" and {float(at.c_out):g} times what its network says, where it must give the image alone: use"
                " ConsistencyKarras with that sigma_min"
            )

    def pace(self, step: int) -> dict[str, int]:
        """Return ``levels``, the number N of points of the grid."""
        return {"levels": self.curriculum.points(step)}


@dataclass(frozen=True, kw_only=True)
class EasyLevels(Levels):
    """ECT's continuous pairs: ``s = max(0, t (1 - n(t) / q^(stage + 1)))``, ``n(t) = 1 + k sigmoid(-b t)``.

    ``ln t ~ N(mean, std^2)``. Of ``total`` steps each of ``stages`` equal parts takes s nearer to t; while s is 0 the
    teacher gives the clean image itself and the loss is a diffusion model's, so training starts from one. ``k = 0`` is
    the constant mapping, ``q = 256, stages = 1`` the paper's short run.
    Source: "Consistency Models Made Easy", arXiv 2406.14548, section 3.

    Raises ``ValueError`` unless q > 1, k >= 0, b >= 0, std > 0, stages >= 1 and total >= stages.
    """

    total: int
    mean: float = -1.1
    std: float = 2.0
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    stages: int = 8

    def __post_init__(self) -> None:
        if not self.q > 1 or self.k < 0 or self.b < 0 or not self.std > 0 or not 1 <= self.stages <= self.total:
            raise ValueError(
                "objective.levels Easy needs q > 1, k >= 0, b >= 0, std > 0 and stages from 1 to train.steps, got"
                f" q {self.q:g}, k {self.k:g}, b {self.b:g}, std {self.std:g}, stages {self.stages}, steps {self.total}"
            )

    def stage(self, step: int) -> int:
        """Return the stage in [0, stages) at a step."""
        return min(step * self.stages // self.total, self.stages - 1)

    def below(self, t: Tensor, step: int) -> Tensor:
        """Return s for times ``t`` (B,)."""
        n = 1 + self.k * torch.sigmoid(-self.b * t)
        return (t * (1 - n / self.q ** (self.stage(step) + 1))).clamp(min=0)

    def check(self, denoiser: Denoiser) -> None:
        """Refuse other schedules than ``VE``, and models that do not reach down to noise level 0."""
        _check_ve(denoiser, 0.0)
        match denoiser.parameterization:
            case ConsistencyKarras():
                raise ValueError("ECT goes down to noise level 0, and ConsistencyKarras stops above it: use Karras")
            case _:
                return

    def pairs(self, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        t = LogNormal(mean=self.mean, std=self.std).quantile(u)
        return t, self.below(t, step)

    def pace(self, step: int) -> dict[str, int]:
        """Return ``stage``, counted from 0."""
        return {"stage": self.stage(step)}
