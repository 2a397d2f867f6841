"""The part of a configuration that only consistency models have (see ``config`` and ``objectives.consistency``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from genflow.config_method import STRICT, MetricConfig, NonNegative, Positive, PseudoHuberConfig, Share


@dataclass(frozen=True, kw_only=True)
class ConstantConfig:
    """As many noise levels throughout."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Constant"] = "Constant"
    count: Annotated[int, Field(ge=2)] = 18
    """Points of the grid."""


@dataclass(frozen=True, kw_only=True)
class SquareRootConfig:
    """CT's curriculum: the number of noise levels grows as the square root of the step."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["SquareRoot"] = "SquareRoot"
    first: Annotated[int, Field(ge=2)] = 2
    """Points of the grid at the start."""
    last: Annotated[int, Field(ge=2)] = 150
    """Intervals of the grid at the end of the run."""


@dataclass(frozen=True, kw_only=True)
class DoublingConfig:
    """iCT's curriculum: the number of noise levels doubles in stages of equal length."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Doubling"] = "Doubling"
    first: Positive = 10
    """Intervals of the grid at the start."""
    last: Positive = 1280
    """Most intervals of the grid, reached in the last stage."""


def never_doubles(first: int, last: int) -> str:
    """Say so of a doubling curriculum between these numbers of intervals that stays where it starts; else ""."""
    if 1 <= first <= last / 2:
        return ""
    return (
        f"curriculum stuck: objective.levels.curriculum doubles from {first} to at most {last} intervals, so it never"
        " does: last must be at least twice first; iCT goes from 10 to 1280"
    )


CurriculumConfig = Annotated[ConstantConfig | SquareRootConfig | DoublingConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class UniformIntervalConfig:
    """Every interval of the grid alike."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["UniformInterval"] = "UniformInterval"


@dataclass(frozen=True, kw_only=True)
class LogNormalIntervalConfig:
    """iCT's law: what a log-normal law of noise levels leaves in each interval."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["LogNormalInterval"] = "LogNormalInterval"
    mean: float = -1.1
    """Mean of the logarithm of the noise level; negative."""
    std: Annotated[float, Field(gt=0)] = 2.0
    """Its standard deviation."""


IntervalConfig = Annotated[UniformIntervalConfig | LogNormalIntervalConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class GridLevelsConfig:
    """Neighbours of a grid of noise levels, between the schedule's ends: CT, CD, iCT."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Grid"] = "Grid"
    curriculum: CurriculumConfig = field(default_factory=DoublingConfig)
    """How many levels there are, by the step."""
    law: IntervalConfig = field(default_factory=LogNormalIntervalConfig)
    """How often each interval is trained on."""


@dataclass(frozen=True, kw_only=True)
class EasyLevelsConfig:
    """ECT's continuous pairs of noise levels, which come closer in stages."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Easy"] = "Easy"
    mean: float = -1.1
    """Mean of the logarithm of the upper noise level."""
    std: Annotated[float, Field(gt=0)] = 2.0
    """Its standard deviation."""
    q: Annotated[float, Field(gt=1)] = 2.0
    """Factor by which the gap shrinks from stage to stage."""
    k: NonNegative = 8.0
    """How much wider the gap is at low noise levels; 0 makes it a fixed share of the level."""
    b: Annotated[float, Field(gt=0)] = 1.0
    """How soon that wears off as the level rises."""
    stages: Positive = 8
    """Stages of equal length."""


LevelsConfig = Annotated[GridLevelsConfig | EasyLevelsConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class UnweightedConfig:
    """Every pair of noise levels counts alike: CT and CD."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Unweighted"] = "Unweighted"


@dataclass(frozen=True, kw_only=True)
class InverseGapConfig:
    """1 / (upper - lower noise level): iCT and ECT."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["InverseGap"] = "InverseGap"


@dataclass(frozen=True, kw_only=True)
class InverseOutputConfig:
    """EDM's weight of the upper noise level: ECT on ImageNet-64."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["InverseOutput"] = "InverseOutput"


WeightingConfig = Annotated[UnweightedConfig | InverseGapConfig | InverseOutputConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class CurrentWeightsConfig:
    """The student teaches itself, with the weights of the moment: iCT and ECT."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Current"] = "Current"


@dataclass(frozen=True, kw_only=True)
class AveragedWeightsConfig:
    """An average of the student's weights teaches it: CT and CD."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Averaged"] = "Averaged"
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the average that a step keeps; with growing curricula, at the start, and more from there."""


TargetConfig = Annotated[CurrentWeightsConfig | AveragedWeightsConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class ByImageConfig:
    """Training: the state below has less of the same noise on the same image."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["ByImage"] = "ByImage"


@dataclass(frozen=True, kw_only=True)
class ByTeacherConfig:
    """Distillation: the state below is a step of a diffusion model's flow away."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["ByTeacher"] = "ByTeacher"
    teacher: str
    """Saved model, a folder or hf:OWNER/NAME, of schedule VE."""
    solver: Literal["euler", "heun"] = "heun"
    """How the step is taken."""


DescentConfig = Annotated[ByImageConfig | ByTeacherConfig, Field(discriminator="type")]


def _ict_huber() -> PseudoHuberConfig:
    return PseudoHuberConfig(c_power=0.5, divisor_power=0.0)


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """Consistency models: what is seen from one noise level must be what is seen from the level below."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Consistency"] = "Consistency"
    levels: LevelsConfig = field(default_factory=GridLevelsConfig)
    """Which noise levels are compared."""
    metric: MetricConfig = field(default_factory=_ict_huber)
    """How the difference of the two images becomes one number."""
    weighting: WeightingConfig = field(default_factory=InverseGapConfig)
    """How much a pair of noise levels counts."""
    target: TargetConfig = field(default_factory=CurrentWeightsConfig)
    """Whose weights give the image below."""
    descent: DescentConfig = field(default_factory=ByImageConfig)
    """Where the state below comes from."""
    label_dropout: Share = 0.0
    """Share of labels replaced by "no class"."""
