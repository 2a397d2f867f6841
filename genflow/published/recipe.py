"""From a model to the configuration with which it can be trained further."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from genflow.config import (
    Config,
    ConvertedConfig,
    CosineConfig,
    DataConfig,
    DiscreteVPConfig,
    DiTConfig,
    KarrasConfig,
    LinearConfig,
    LogNormalConfig,
    OptimConfig,
    ParameterizationConfig,
    PredictCleanConfig,
    PredictNoiseConfig,
    PredictVConfig,
    PredictVelocityConfig,
    RegressionConfig,
    SampleConfig,
    ScheduleConfig,
    UNetConfig,
    UniformConfig,
    VEConfig,
    VPConfig,
)
from genflow.denoiser import Denoiser
from genflow.nn.dit import DiT
from genflow.nn.unet import UNet
from genflow.parameterizations import (
    Converted,
    Karras,
    Parameterization,
    PredictClean,
    PredictNoise,
    PredictV,
    PredictVelocity,
)
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, linear_betas

PLACEHOLDER = "GIVE-YOUR-IMAGES"  # no data set's name: training must be told where the images are
LR = 1e-4  # modest: a tenth of what EDM trains with

_Network = TypeVar("_Network", UNetConfig, DiTConfig)


def recipe(denoiser: Denoiser, init: str) -> Config:
    """Return the configuration that trains ``denoiser`` further, from the weights in the folder ``init``.

    The network, schedule, parameterization and default sampler are the model's own; times are drawn as its method
    draws them: log-normal on VE (EDM), uniform elsewhere. ``data.path`` is a placeholder.

    Raises ``ValueError`` for what a configuration cannot express: networks, schedules, parameterizations and samplers
    that it has no name for, tables of betas that are not linear, and time grids of the model's own.
    """
    channels, height, width = denoiser.image_shape
    if denoiser.times:
        raise _inexpressible("time grids of the model's own")
    law = RegressionConfig(times=UniformConfig())
    if isinstance(denoiser.schedule, VE):
        law = RegressionConfig(times=LogNormalConfig(), label_dropout=0.0)
    return Config(
        name=(re.sub(r"[^\w.+-]", "-", Path(init).resolve().name).lstrip("-.+") or "model") + "-tuned",
        init=init,
        data=DataConfig(
            path=PLACEHOLDER,
            size=height if height == width else 0,
            channels=channels if channels in (1, 3) else 0,
            classes=denoiser.num_classes > 0,
        ),
        backbone=_backbone(denoiser.backbone),
        schedule=_schedule(denoiser.schedule),
        parameterization=_parameterization(denoiser.parameterization),
        objective=law,
        optim=OptimConfig(lr=LR),
        sample=_sample(denoiser),
    )


def _inexpressible(what: str) -> ValueError:
    return ValueError(f"a configuration cannot express {what}, so there is no recipe to train this model further")


def _backbone(network: nn.Module) -> UNetConfig | DiTConfig:
    match network:
        case UNet():
            return _take(UNetConfig, network.arguments)
        case DiT():
            return _take(DiTConfig, network.arguments)
        case _:
            raise _inexpressible(f"the network {type(network).__name__}")


def _take(kind: type[_Network], arguments: dict[str, Any]) -> _Network:
    """Fill a network's section; the data and their augmentation decide what it has no key for."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name in arguments:
            value = arguments[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _schedule(schedule: Schedule) -> ScheduleConfig:
    match schedule:
        case VE(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho):
            return VEConfig(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        case VP(beta_d=beta_d, beta_min=beta_min) if schedule == VP(beta_d=beta_d, beta_min=beta_min):
            return VPConfig(beta_d=beta_d, beta_min=beta_min)
        case DiscreteVP(betas=betas):
            if not all(map(math.isclose, betas, linear_betas(len(betas), betas[0], betas[-1]))):
                raise _inexpressible("a table of betas that is not linear")
            return DiscreteVPConfig(count=len(betas), beta_start=betas[0], beta_end=betas[-1])
        case Cosine() if schedule == Cosine():
            return CosineConfig()
        case Linear():
            return LinearConfig()
        case _:
            raise _inexpressible(f"the schedule {schedule}")


def _parameterization(parameterization: Parameterization) -> ParameterizationConfig:
    match parameterization:
        case PredictNoise():
            return PredictNoiseConfig()
        case PredictClean():
            return PredictCleanConfig()
        case PredictV():
            return PredictVConfig()
        case PredictVelocity() if parameterization == PredictVelocity():
            return PredictVelocityConfig()
        case Karras(sigma_data=sigma_data, level_min=low, level_max=high, conditioning=chosen):
            return KarrasConfig(sigma_data=sigma_data, level_min=low, level_max=high, conditioning=chosen.value)
        case Converted(schedule=schedule, row=row):
            return _converted(_schedule(schedule), _parameterization(row))
        case _:
            raise _inexpressible(f"the parameterization {parameterization}")


def _converted(schedule: ScheduleConfig, row: ParameterizationConfig) -> ConvertedConfig:
    match schedule:
        case VPConfig() | DiscreteVPConfig() | CosineConfig():
            pass
        case _:
            raise _inexpressible(f"the parameterization Converted of the schedule {schedule.type}")
    match row:
        case PredictNoiseConfig() | PredictVConfig() | PredictCleanConfig():
            return ConvertedConfig(schedule=schedule, row=row)
        case _:
            raise _inexpressible(f"the parameterization Converted of {row.type}")


def _sample(denoiser: Denoiser) -> SampleConfig:
    match denoiser.sampler:
        case "euler" | "heun" | "dpmpp_2m" | "ancestral" | "straight" | "straight_heun" as sampler:
            return SampleConfig(sampler=sampler, steps=denoiser.steps)
        case other:
            raise _inexpressible(f"the sampler {other}")
