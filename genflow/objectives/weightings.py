"""How much a pair of noise levels counts in the loss of a consistency model."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.denoiser import Denoiser


class Weighting(abc.ABC):
    """A function of the pair's times; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, denoiser: Denoiser, t: Tensor, s: Tensor) -> Tensor:
        """Return (B,) for the student's times ``t`` and the teacher's ``s`` (B,), s < t."""


@dataclass(frozen=True, kw_only=True)
class Unweighted(Weighting):
    """1: CT's and CD's (arXiv 2303.01469, section 4)."""

    def __call__(self, denoiser: Denoiser, t: Tensor, s: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class InverseGap(Weighting):
    """``1 / (sigma_t - sigma_s)``: iCT's (arXiv 2310.14189, section 3.1) and ECT's (arXiv 2406.14548, section 3)."""

    def __call__(self, denoiser: Denoiser, t: Tensor, s: Tensor) -> Tensor:
        return 1 / (denoiser.schedule.sigma(t) - denoiser.schedule.sigma(s))


@dataclass(frozen=True, kw_only=True)
class InverseOutput(Weighting):
    """``1 / c_out(t)^2``, EDM's weight (arXiv 2206.00364, eq. 8), which ECT's runs on ImageNet-64 take."""

    def __call__(self, denoiser: Denoiser, t: Tensor, s: Tensor) -> Tensor:
        return denoiser.parameterization.coefficients(denoiser.schedule, t).c_out ** -2
