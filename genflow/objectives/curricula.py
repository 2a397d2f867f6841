"""Curricula: how many noise levels a consistency model is trained on, as a function of the step alone."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

from genflow.config_consistency import never_doubles


class Curriculum(abc.ABC):
    """N(k), the number of points of the grid of noise levels at step k; subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def points(self, step: int) -> int:
        """Return N >= 2 at ``step``, counted from 0; the N - 1 intervals between them are trained on."""


@dataclass(frozen=True, kw_only=True)
class Constant(Curriculum):
    """The same N throughout: distillation's (arXiv 2303.01469, Table 3).

    Raises ``ValueError`` for fewer than 2 points.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"a grid of noise levels has at least 2 points, got {self.count}")

    def points(self, step: int) -> int:
        return self.count


@dataclass(frozen=True, kw_only=True)
class SquareRoot(Curriculum):
    """CT's growth over ``total`` steps K: ``N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1``.

    From s0 = ``first`` to s1 + 1, with s1 = ``last``.
    Source: "Consistency Models", arXiv 2303.01469, appendix C.

    Raises ``ValueError`` unless 2 <= first <= last and total >= 1.
    """

    total: int
    first: int = 2
    last: int = 150

    def __post_init__(self) -> None:
        if not 2 <= self.first <= self.last or self.total < 1:
            raise ValueError(
                "objective.levels.curriculum SquareRoot needs 2 <= first <= last and train.steps >= 1, got"
                f" first {self.first}, last {self.last}, steps {self.total}"
            )

    def points(self, step: int) -> int:
        share = min(step / self.total, 1.0)
        return math.ceil(math.sqrt(share * ((self.last + 1) ** 2 - self.first**2) + self.first**2) - 1) + 1


@dataclass(frozen=True, kw_only=True)
class Doubling(Curriculum):
    """iCT's growth over ``total`` steps K: ``N(k) = min(s0 2^floor(k / K'), s1) + 1``.

    ``K' = floor(K / (log2(floor(s1 / s0)) + 1))``, so that the last stage ends with the run; s0 = ``first``,
    s1 = ``last``. Source: "Improved Techniques for Training Consistency Models", arXiv 2310.14189, section 3.4.

    Raises ``ValueError`` if ``last`` is less than twice ``first``, which leaves N where it starts, and if ``total`` is
    too short for a step per stage.
    """

    total: int
    first: int = 10
    last: int = 1280

    def __post_init__(self) -> None:
        if never_doubles(self.first, self.last):
            raise ValueError(never_doubles(self.first, self.last))
        if self.total < math.log2(self.last // self.first) + 1:
            raise ValueError(
                f"train.steps {self.total} are too few for objective.levels.curriculum from {self.first} to"
                f" {self.last}, which has {math.floor(math.log2(self.last // self.first)) + 1} stages"
            )

    @property
    def stage(self) -> int:
        """K', the number of steps between doublings."""
        return math.floor(self.total / (math.log2(self.last // self.first) + 1))

    def points(self, step: int) -> int:
        doublings = min(step // self.stage, self.last.bit_length())  # more than reach the cap
        return min(self.first * 2**doublings, self.last) + 1
