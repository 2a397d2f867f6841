"""How far a network's output is from its target, as one number per image."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""A perceptual distance: two batches of images (B, C, H, W) in [-1, 1] to (B,)."""


class Metric(abc.ABC):
    """A distance per image; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return (B,) from the residual, the clean image that the network gives, the true one and the times."""


@dataclass(frozen=True, kw_only=True)
class SquaredL2(Metric):
    """Mean of the squared residual over the values of an image."""

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return residual.square().flatten(1).mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class L1(Metric):
    """Mean of the residual's absolute values over the values of an image."""

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return residual.abs().flatten(1).mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class Norm(Metric):
    """``|residual|``, the Euclidean norm over the values of an image: the pseudo-Huber metric as c goes to 0.

    Its gradient is the residual's direction, and 0 where there is none.
    Source: "Consistency Models Made Easy", arXiv 2406.14548, section 3.
    """

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        square = residual.flatten(1).square().sum(dim=1)
        return square * square.clamp(min=torch.finfo(square.dtype).tiny).rsqrt()


@dataclass(frozen=True, kw_only=True)
class PseudoHuber(Metric):
    """``(sqrt(|residual|^2 + k^2) - k) / D^divisor_power`` with ``k = c D^c_power``, for images of D = C H W values.

    The defaults are 2-RF++'s: k = 0.00054 D, divided by D, so that it is a mean to which a perceptual distance can be
    added; ``ict`` is iCT's, k = 0.00054 sqrt(D) and undivided. A residual per value of rms ``c D^(c_power - 1/2)`` is
    where the square turns into the absolute value. Computed as ``|r|^2 / (sqrt(|r|^2 + k^2) + k)``, which keeps the
    digits of small residuals.
    Sources: "Improving the Training of Rectified Flows", arXiv 2405.20320, section 4.2 (the division by D is in the
    authors' programs, not in the text); "Improved Techniques for Training Consistency Models", arXiv 2310.14189, eq. 9.

    Raises ``ValueError`` unless c > 0.
    """

    c: float = 0.00054
    c_power: float = 1.0
    divisor_power: float = 1.0

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise ValueError(f"c must be positive, got {self.c}")

    @classmethod
    def ict(cls) -> PseudoHuber:
        """Return iCT's: ``sqrt(|residual|^2 + 0.00054^2 D) - 0.00054 sqrt(D)``."""
        return cls(c_power=0.5, divisor_power=0.0)

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        values = residual.flatten(1)
        size = values.shape[1]
        k = self.c * size**self.c_power
        square = values.square().sum(dim=1)
        return square / ((square + k**2).sqrt() + k) / size**self.divisor_power


@dataclass(frozen=True, kw_only=True)
class LPIPS(Metric):
    """Perceptual distance of the clean image seen by the network from the true one: ``d(clean, x)``, or that over t.

    Near t = 0 the distance is about quadratic in ``clean - x``, which is itself t times the error of the velocity, so
    its gradient fades as t^2; dividing by t undoes half of that and leaves the value finite. Gradients flow through
    the clean image.
    Source: "Improving the Training of Rectified Flows", arXiv 2405.20320, section 4.2.
    """

    distance: Distance
    divide_by_t: bool = False

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        distance = self.distance(clean, x)
        return distance / t.to(distance.dtype) if self.divide_by_t else distance


@dataclass(frozen=True, kw_only=True)
class LPIPSHuber(Metric):
    """2-RF++'s ``(1 - t) huber(residual) + d(clean, x)``, or with the last term over t.

    At t = 0 the clean image is the state itself and the task is to tell the noise, which takes the pixels' error; at
    t = 1 only what is perceived counts. Meant for times of ``Linear``, in [0, 1].
    Source: "Improving the Training of Rectified Flows", arXiv 2405.20320, section 4.2 and Table 1: configurations E
    and, divided by t, F.
    """

    distance: Distance
    huber: PseudoHuber = PseudoHuber()
    divide_by_t: bool = False

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        perceived = LPIPS(distance=self.distance, divide_by_t=self.divide_by_t)(residual, clean, x, t)
        pixels = self.huber(residual, clean, x, t)
        return (1 - t).to(pixels.dtype) * pixels + perceived
