"""How far a network's output is from its target, as one number per image."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor


class Metric(abc.ABC):
    """A distance per image; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return (B,) from the residual of the raw output, the clean image it gives, the true one and the times."""


@dataclass(frozen=True, kw_only=True)
class SquaredL2(Metric):
    """Mean of the squared residual over the values of an image."""

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return residual.square().flatten(1).mean(dim=1)
