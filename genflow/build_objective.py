"""The composition root's part for objectives: laws of times, metrics, perceptual networks."""

# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from genflow.config import (
    Config,
    LogitNormalConfig,
    LogNormalConfig,
    LPIPSConfig,
    LPIPSHuberConfig,
    MetricConfig,
    PackagedConfig,
    PerceptualConfig,
    PseudoHuberConfig,
    RawResidualConfig,
    ResidualConfig,
    SquaredL2Config,
    UniformConfig,
    UShapedConfig,
    VelocityResidualConfig,
    VGGConfig,
)
from genflow.denoiser import Denoiser
from genflow.evaluation.networks.digits import load_loss_network
from genflow.evaluation.networks.weights import read_state
from genflow.objectives.base import Objective
from genflow.objectives.metrics import LPIPS, Distance, LPIPSHuber, Metric, PseudoHuber, SquaredL2
from genflow.objectives.perceptual import FeatureDistance, vgg_distance
from genflow.objectives.regression import Regression
from genflow.objectives.residuals import RawResidual, Residual, VelocityResidual
from genflow.objectives.time_distributions import (
    DiscreteUniform,
    LogitNormal,
    LogNormal,
    TimeDistribution,
    Uniform,
    UShaped,
)
from genflow.schedules import VE, VP, DiscreteVP, Linear, Schedule

_VGG_FILE = "vgg16-397923af.pth"  # torchvision's name
_VGG_URL = f"https://download.pytorch.org/models/{_VGG_FILE}"


def build_objective(config: Config, denoiser: Denoiser) -> Objective:
    """Return the training objective around a denoiser.

    Raises ``ValueError`` for parts that do not fit the schedule or the images, and for weights that are not there.
    """
    objective = config.objective
    return Regression(
        denoiser,
        build_times(config, denoiser.schedule),
        metric=build_metric(objective.metric, denoiser),
        residual=build_residual(objective.residual),
        label_dropout=objective.label_dropout if denoiser.num_classes else 0.0,
    )


def build_times(config: Config, schedule: Schedule) -> TimeDistribution:
    """Return the law of training times; uniform over a table means uniform over its entries.

    Raises ``ValueError`` for a law that leaves the schedule's range of times.
    """
    match config.objective.times:
        case UniformConfig() if isinstance(schedule, DiscreteVP):
            return DiscreteUniform(count=schedule.count)
        case UniformConfig():
            return Uniform(high=schedule.t_max)
        case LogNormalConfig(mean=mean, std=std):
            if isinstance(schedule, VE):
                return LogNormal(mean=mean, std=std)
            raise ValueError("objective.times LogNormal is a law of noise levels: it goes with schedule VE only")
        case LogitNormalConfig(mean=mean, std=std):
            if isinstance(schedule, Linear | VP):
                return LogitNormal(mean=mean, std=std)
            raise ValueError("objective.times LogitNormal is a law on (0, 1): it goes with schedules Linear and VP")
        case UShapedConfig(a=a, rim=rim):
            if isinstance(schedule, Linear):
                return UShaped(a=a, rim=rim)
            raise ValueError("objective.times UShaped is 2-RF's law on [0, 1]: it goes with schedule Linear only")


def build_residual(config: ResidualConfig) -> Residual:
    """Return what the error is an error of."""
    match config:
        case RawResidualConfig():
            return RawResidual()
        case VelocityResidualConfig():
            return VelocityResidual()


def build_metric(config: MetricConfig, denoiser: Denoiser) -> Metric:
    """Return the metric for a denoiser's images.

    Raises ``ValueError`` for a perceptual distance that depends on t where t is not in [0, 1], for images that the
    perceptual network does not take, and for weights that are not there.
    """
    match config:
        case LPIPSConfig() | LPIPSHuberConfig() if not isinstance(denoiser.schedule, Linear):
            raise ValueError(f"objective.metric {config.type} weighs by t in [0, 1]: it goes with schedule Linear only")
        case SquaredL2Config():
            return SquaredL2()
        case PseudoHuberConfig():
            return _huber(config)
        case LPIPSConfig(perceptual=perceptual, divide_by_t=divide):
            return LPIPS(distance=build_distance(perceptual, denoiser.image_shape[0]), divide_by_t=divide)
        case LPIPSHuberConfig(perceptual=perceptual, huber=huber, divide_by_t=divide):
            distance = build_distance(perceptual, denoiser.image_shape[0])
            return LPIPSHuber(distance=distance, huber=_huber(huber), divide_by_t=divide)


def _huber(config: PseudoHuberConfig) -> PseudoHuber:
    return PseudoHuber(c=config.c, c_power=config.c_power, divisor_power=config.divisor_power)


def build_distance(config: PerceptualConfig, channels: int) -> Distance:
    """Return a perceptual distance for images of so many channels; ``ValueError`` where there can be none."""
    match config:
        case PackagedConfig(name=name):
            if channels != 1:
                raise ValueError(f"the {name} network sees grey images, these have {channels} channels: use VGG")
            return FeatureDistance(load_loss_network(name))
        case VGGConfig(weights=weights):
            if channels not in (1, 3):
                raise ValueError(f"VGG sees grey and RGB images, these have {channels} channels: use PseudoHuber")
            return vgg_distance(read_state(_vgg_file(weights)), read_state(_lpips_heads()))


def _vgg_file(given: str) -> Path:
    """Return the file of VGG-16, half a gigabyte that is never downloaded unasked."""
    path = Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / _VGG_FILE
    if not path.is_file():
        raise ValueError(
            f"there are no VGG-16 weights at {path}: get {_VGG_URL} and put it there, or name it by"
            " objective.metric.perceptual.weights"
        )
    return path


def _lpips_heads() -> Path:
    """Return the file of LPIPS' own weights, which comes with the package lpips."""
    spec = find_spec("lpips")
    if spec is None or spec.origin is None:
        raise ValueError("the metric LPIPS needs the package lpips: pip install lpips")
    return Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth"
