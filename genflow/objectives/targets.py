"""Whose weights a consistency model learns from: its own as they are, or an average of them."""

from __future__ import annotations

import abc
import copy
import math

import torch
from torch import Tensor, nn

from genflow.denoiser import Denoiser
from genflow.objectives.curricula import Curriculum


class Target(nn.Module, abc.ABC):
    """The network that gives the student its goal, and how it follows the student."""

    @abc.abstractmethod
    def network(self, student: Denoiser) -> Denoiser:
        """Return the network to ask."""

    @abc.abstractmethod
    def follow(self, student: Denoiser, step: int) -> None:
        """Do what follows optimiser step ``step``."""


class CurrentWeights(Target):
    """The student itself without gradient: iCT's and ECT's.

    With an average instead, the loss does not become that of a consistency model as levels get closer.
    Source: "Improved Techniques for Training Consistency Models", arXiv 2310.14189, section 3.2.
    """

    def network(self, student: Denoiser) -> Denoiser:
        return student

    def follow(self, student: Denoiser, step: int) -> None:
        """It is the student."""


class AveragedWeights(Target):
    """CT's and CD's target network: ``w <- mu w + (1 - mu) student`` after every step.

    ``mu(k) = exp(N(0) ln(rate) / N(k))`` with N of the curriculum, which is 2 at first in CT; a ``curriculum`` of None
    keeps ``rate``, for CD. (The authors' programs divide by N(k) - 1 instead.)
    Source: "Consistency Models", arXiv 2303.01469, section 5 and appendix C.

    Raises ``ValueError`` for a rate outside (0, 1).
    """

    def __init__(self, student: Denoiser, *, rate: float, curriculum: Curriculum | None = None) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise ValueError(f"the rate of a target's average must be in (0, 1), got {rate}")
        self.rate = rate
        self.curriculum = curriculum
        self.average = copy.deepcopy(student).requires_grad_(False)

    def mu(self, step: int) -> float:
        """Return the share of the old average that a step keeps."""
        if self.curriculum is None:
            return self.rate
        return math.exp(self.curriculum.points(0) * math.log(self.rate) / self.curriculum.points(step))

    def network(self, student: Denoiser) -> Denoiser:
        return self.average

    @torch.no_grad()
    def follow(self, student: Denoiser, step: int) -> None:
        weights: list[Tensor] = [p.detach() for p in student.parameters()]
        # one fused pass over all weights, as in training.EMA
        torch._foreach_lerp_(list(self.average.parameters()), weights, 1 - self.mu(step))  # pyright: ignore[reportPrivateImportUsage]
        for kept, present in zip(self.average.buffers(), student.buffers(), strict=True):
            kept.copy_(present)
