"""Laws of training times, given by their quantile functions, so that one uniform draw per image decides its time."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _normal_quantile(u: Tensor) -> Tensor:
    """Return the standard normal quantile; by erfinv, because ndtri is not to be had on every device."""
    return math.sqrt(2) * torch.erfinv(2 * u - 1)


class TimeDistribution(abc.ABC):
    """A law of times; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Return the times (B,) below which a share ``u`` (B,) in (0, 1) of the law lies: the inverse CDF."""


@dataclass(frozen=True, kw_only=True)
class Uniform(TimeDistribution):
    """``t = low + u (high - low)``."""

    low: float = 0.0
    high: float = 1.0

    def quantile(self, u: Tensor) -> Tensor:
        return self.low + u * (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class DiscreteUniform(TimeDistribution):
    """One of ``count`` times (k + 1) / count with equal chance: DDPM's steps (arXiv 2006.11239, algorithm 1)."""

    count: int = 1000

    def quantile(self, u: Tensor) -> Tensor:
        return ((u * self.count).floor() + 1).clamp(max=self.count) / self.count


@dataclass(frozen=True, kw_only=True)
class LogNormal(TimeDistribution):
    """``ln t ~ N(mean, std^2)``: EDM's law of noise levels on ``VE`` (arXiv 2206.00364, Table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: Tensor) -> Tensor:
        return torch.exp(self.mean + self.std * _normal_quantile(u))


@dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeDistribution):
    """``ln(t / (1 - t)) ~ N(mean, std^2)``, on (0, 1).

    Source: "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206, eq. 19.
    """

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal_quantile(u))


@dataclass(frozen=True, kw_only=True)
class UShaped(TimeDistribution):
    """2-RF++'s law on [0, 1], which visits both ends more than the middle: ``p(t) ~ e^(a t) + e^(a (1 - t))``.

    ``p(t) = a cosh(a (t - 1/2)) / (2 sinh(a / 2))``, drawn exactly by its inverse CDF
    ``t = 1/2 + asinh((2 u - 1) sinh(a / 2)) / a``, then shrunk linearly to ``[rim, 1 - rim]``. The ends are
    cosh(a / 2) times as dense as the middle; ``a = 0`` is uniform.
    Source: "Improving the Training of Rectified Flows", arXiv 2405.20320, section 4.1, Figure 3 (a = 4). The density
    printed there, e^(a t) + e^(-a t) on [0, 1], rises all the way and is not U-shaped; what the figure shows and the
    authors' programs draw from is the mixture above.

    Raises ``ValueError`` unless 0 <= a <= 100 and 0 <= rim < 1/2.
    """

    a: float = 4.0
    rim: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.a <= 100 or not 0 <= self.rim < 0.5:
            raise ValueError(f"a must be in [0, 100] and rim in [0, 0.5), got {self.a} and {self.rim}")

    def quantile(self, u: Tensor) -> Tensor:
        t = u if self.a == 0 else torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a + 0.5
        return self.rim + (1 - 2 * self.rim) * t
