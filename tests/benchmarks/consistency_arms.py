"""The arms of ``consistency.py``: what each changes in one configuration, and the trials that it gets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from consistency_peers import as_diffusers_samples, diffusers_objective, kinyugo_objective

from genflow.config import (
    AveragedWeightsConfig,
    ByTeacherConfig,
    Config,
    ConsistencyConfig,
    ConstantConfig,
    DoublingConfig,
    EasyLevelsConfig,
    GridLevelsConfig,
    KarrasConfig,
    LPIPSConfig,
    MetricConfig,
    NormConfig,
    PackagedConfig,
    SquaredL2Config,
    SquareRootConfig,
    UniformIntervalConfig,
    UnweightedConfig,
)
from genflow.denoiser import Denoiser
from genflow.evaluation.wording import plural
from genflow.objectives.base import Objective

RATES = (5e-4, 1e-3, 2e-3, 4e-3)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is tried of an arm: a learning rate, and the number of levels at the end, 0 where that is not for us to say.

    Fewer levels than published may suit runs that are this short, so every arm that has a number tries a second one.

    ``mu`` is CT's first rate of its average, ``stages`` those of ECT, of which one has the gap of the last of eight.
    """

    rate: float
    last: int = 160
    mu: float = 0.9
    stages: int = 0

    def __str__(self) -> str:
        levels = f", {self.last} levels" if self.last else ""
        stages = f", {plural(self.stages, 'stage')}" if self.stages else ""
        return f"{self.rate:g}{levels}{stages}" + (f", mu {self.mu:g}" if self.mu != 0.9 else "")


RATE_TRIALS = (*(Trial(rate=rate) for rate in RATES), Trial(rate=2e-3, last=40), Trial(rate=4e-3, last=40))
RATES_ONLY = tuple(Trial(rate=rate, last=0) for rate in (*RATES, 2.5e-4, 8e-3))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the table.

    ``change`` makes the configuration of a trial out of iCT's; ``share`` is the part of the budget that the arm's own
    training has, ``edm_share`` that of the EDM it starts from.
    """

    what: str
    change: Callable[[Config, Trial, str], Config]
    trials: tuple[Trial, ...] = RATE_TRIALS
    share: float = 1.0
    edm_share: float = 0.0
    peer: Callable[[Denoiser, int], Objective] | None = None
    sampled: Callable[[Denoiser], Denoiser] = field(default=lambda denoiser: denoiser)

    def config(self, ict: Config, trial: Trial, edm: str) -> Config:
        """Return the configuration of a trial; ``edm`` is the folder of the EDM to start from, if it does."""
        return self.change(replace(ict, optim=replace(ict.optim, lr=trial.rate)), trial, edm)


def with_objective(config: Config, **changes: object) -> Config:
    """Replace parts of a consistency objective."""
    assert isinstance(config.objective, ConsistencyConfig)
    return replace(config, objective=replace(config.objective, **changes))  # pyright: ignore[reportArgumentType]


def ict(config: Config, trial: Trial, edm: str) -> Config:
    """Return iCT: doubling levels, log-normal, inverse gap, vector pseudo-Huber, current weights."""
    return with_objective(config, levels=GridLevelsConfig(curriculum=DoublingConfig(first=10, last=trial.last)))


def without(**changes: object) -> Callable[[Config, Trial, str], Config]:
    """Return iCT with one part as CT has it."""
    return lambda config, trial, edm: with_objective(ict(config, trial, edm), **changes)


def uniform(config: Config, trial: Trial, edm: str) -> Config:
    """Return iCT with intervals drawn alike."""
    levels = GridLevelsConfig(curriculum=DoublingConfig(first=10, last=trial.last), law=UniformIntervalConfig())
    return with_objective(config, levels=levels)


def square_root(config: Config, trial: Trial, edm: str) -> Config:
    """Return iCT with CT's curriculum."""
    return with_objective(config, levels=GridLevelsConfig(curriculum=SquareRootConfig(last=trial.last)))


def as_it_is(config: Config, trial: Trial, edm: str) -> Config:
    """Return the recipe unchanged: a peer's objective is its own."""
    return config


def no_dropout(config: Config, trial: Trial, edm: str) -> Config:
    """Return iCT without dropout."""
    config = ict(config, trial, edm)
    return replace(config, backbone=replace(config.backbone, dropout=0.0))


def ct(metric: MetricConfig | None) -> Callable[[Config, Trial, str], Config]:
    """Return CT as published, by this metric; None is the perceptual one of the data."""

    def change(config: Config, trial: Trial, edm: str) -> Config:
        levels = GridLevelsConfig(curriculum=SquareRootConfig(last=trial.last), law=UniformIntervalConfig())
        perceived = LPIPSConfig(perceptual=PackagedConfig(name=config.data.path))  # pyright: ignore[reportArgumentType]
        parts = {"metric": metric or perceived, "weighting": UnweightedConfig()}
        config = replace(config, backbone=replace(config.backbone, dropout=0.0))
        return with_objective(config, levels=levels, target=AveragedWeightsConfig(rate=trial.mu), **parts)

    return change


def ect(config: Config, trial: Trial, edm: str) -> Config:
    """Return ECT from an EDM's weights; in one stage, as in the paper's short run, with q = 256."""
    levels = EasyLevelsConfig(stages=trial.stages, q=256.0 if trial.stages == 1 else 2.0)
    config = with_objective(config, levels=levels, metric=NormConfig())
    return replace(config, parameterization=KarrasConfig(), init=edm)


def cd(config: Config, trial: Trial, edm: str) -> Config:
    """Return CD by Heun from an EDM's weights, with current weights as published; on CIFAR-10 it has 18 levels."""
    levels = GridLevelsConfig(curriculum=ConstantConfig(count=trial.last), law=UniformIntervalConfig())
    metric = LPIPSConfig(perceptual=PackagedConfig(name=config.data.path))  # pyright: ignore[reportArgumentType]
    descent = ByTeacherConfig(teacher=edm)
    parts = {"metric": metric, "weighting": UnweightedConfig(), "descent": descent}
    config = replace(config, backbone=replace(config.backbone, dropout=0.0))
    return replace(with_objective(config, levels=levels, **parts), init=edm)


CT_TRIALS = tuple(
    Trial(rate=rate, last=last, mu=mu)
    for rate, last, mu in (
        (2e-3, 10, 0.5),
        (2e-3, 40, 0.9),
        (4e-3, 10, 0.5),
        (4e-3, 40, 0.9),
        (2e-3, 40, 0.5),
        (4e-3, 40, 0.5),
    )
)
ECT_TRIALS = tuple(
    Trial(rate=rate, last=0, stages=stages) for rate, stages in itertools.product((5e-4, 1e-3, 2e-3), (1, 8))
)
AGAIN = tuple(
    Trial(rate=rate, last=0, stages=stages)
    for rate, stages in ((2e-3, 4), (3e-3, 4), (4e-3, 4), (3e-3, 8), (4e-3, 8), (8e-3, 8))
)
CD_TRIALS = (*(Trial(rate=rate, last=18) for rate in RATES), Trial(rate=1e-3, last=40), Trial(rate=2e-3, last=40))
ARMS = {
    "CT": Arm(what="CT: squared L2", change=ct(SquaredL2Config()), trials=CT_TRIALS),
    "CT perceptual": Arm(what="CT: perceptual distance", change=ct(None), trials=CT_TRIALS),
    "iCT": Arm(what="iCT", change=ict),
    "iCT 1280": Arm(
        what="iCT with as many levels as the peers below",
        change=ict,
        trials=tuple(Trial(rate=trial.rate, last=1280) for trial in RATES_ONLY),
    ),
    "L2": Arm(what="iCT with squared L2", change=without(metric=SquaredL2Config())),
    "unweighted": Arm(what="iCT with every pair of levels alike", change=without(weighting=UnweightedConfig())),
    "averaged": Arm(
        what="iCT with an average of weights as teacher", change=without(target=AveragedWeightsConfig(rate=0.9))
    ),
    "uniform": Arm(what="iCT with uniform intervals", change=uniform),
    "square root": Arm(what="iCT with CT's curriculum", change=square_root),
    "no dropout": Arm(what="iCT without dropout", change=no_dropout),
    "ECT": Arm(what="ECT, half of the budget on its EDM", change=ect, trials=ECT_TRIALS, share=0.5, edm_share=0.5),
    "ECT tenth": Arm(
        what="ECT in a tenth of the budget, the rest on its EDM",
        change=ect,
        trials=ECT_TRIALS,
        share=0.1,
        edm_share=0.9,
    ),
    "ECT tenth, again": Arm(
        what="the same, with trials of higher rates",
        change=ect,
        trials=AGAIN,
        share=0.1,
        edm_share=0.9,
    ),
    "CD": Arm(what="CD, half of the budget on its EDM", change=cd, trials=CD_TRIALS, share=0.5, edm_share=0.5),
    "diffusers": Arm(
        what="diffusers' example",
        change=as_it_is,
        trials=RATES_ONLY,
        peer=diffusers_objective,
        sampled=as_diffusers_samples,
    ),
    "Kinyugo": Arm(what="Kinyugo's library", change=as_it_is, trials=RATES_ONLY, peer=kinyugo_objective),
}
