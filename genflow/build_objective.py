"""The composition root's part for objectives: laws of times, metrics, perceptual networks."""

# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from genflow.build_start import load_named
from genflow.config import (
    AveragedWeightsConfig,
    ByImageConfig,
    ByTeacherConfig,
    Config,
    ConsistencyConfig,
    ConstantConfig,
    CurrentWeightsConfig,
    DoublingConfig,
    EasyLevelsConfig,
    GridLevelsConfig,
    InverseGapConfig,
    InverseOutputConfig,
    L1Config,
    LogitNormalConfig,
    LogNormalConfig,
    LogNormalIntervalConfig,
    LPIPSConfig,
    LPIPSHuberConfig,
    MetricConfig,
    NormConfig,
    PackagedConfig,
    PerceptualConfig,
    PseudoHuberConfig,
    RawResidualConfig,
    RegressionConfig,
    ResidualConfig,
    SquaredL2Config,
    SquareRootConfig,
    TimesConfig,
    UniformConfig,
    UniformIntervalConfig,
    UnweightedConfig,
    UShapedConfig,
    VelocityResidualConfig,
    VGGConfig,
)
from genflow.config_consistency import CurriculumConfig, DescentConfig, IntervalConfig, TargetConfig, WeightingConfig
from genflow.denoiser import Denoiser, is_consistency
from genflow.denoiser_parts import network_arguments
from genflow.evaluation.networks.digits import load_loss_network
from genflow.evaluation.networks.weights import read_state
from genflow.objectives.base import Objective
from genflow.objectives.consistency import Consistency
from genflow.objectives.curricula import Constant, Curriculum, Doubling, SquareRoot
from genflow.objectives.descents import ByImage, ByTeacher, ByTeacherHeun, Descent
from genflow.objectives.levels import (
    EasyLevels,
    GridLevels,
    IntervalLaw,
    LogNormalInterval,
    UniformInterval,
)
from genflow.objectives.metrics import L1, LPIPS, Distance, LPIPSHuber, Metric, Norm, PseudoHuber, SquaredL2
from genflow.objectives.perceptual import FeatureDistance, vgg_distance
from genflow.objectives.regression import Regression
from genflow.objectives.residuals import RawResidual, Residual, VelocityResidual
from genflow.objectives.targets import AveragedWeights, CurrentWeights, Target
from genflow.objectives.time_distributions import (
    DiscreteUniform,
    LogitNormal,
    LogNormal,
    TimeDistribution,
    Uniform,
    UShaped,
)
from genflow.objectives.weightings import InverseGap, InverseOutput, Unweighted, Weighting
from genflow.schedules import VE, VP, DiscreteVP, Linear, Schedule

_VGG_FILE = "vgg16-397923af.pth"  # torchvision's name
_VGG_URL = f"https://download.pytorch.org/models/{_VGG_FILE}"


def build_objective(config: Config, denoiser: Denoiser) -> Objective:
    """Return the training objective around a denoiser.

    Raises ``ValueError`` for parts that do not fit the schedule or the images, and for weights that are not there.
    """
    match config.objective:
        case RegressionConfig() as objective:
            return _regression(config, objective, denoiser)
        case ConsistencyConfig() as objective:
            return _consistency(config, objective, denoiser)


def _regression(config: Config, objective: RegressionConfig, denoiser: Denoiser) -> Regression:
    return Regression(
        denoiser,
        build_times(objective.times, denoiser.schedule),
        metric=build_metric(objective.metric, denoiser),
        residual=build_residual(objective.residual),
        label_dropout=objective.label_dropout if denoiser.num_classes else 0.0,
    )


def build_times(config: TimesConfig, schedule: Schedule) -> TimeDistribution:
    """Return the law of training times; uniform over a table means uniform over its entries.

    Raises ``ValueError`` for a law that leaves the schedule's range of times.
    """
    match config:
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


def _consistency(config: Config, objective: ConsistencyConfig, denoiser: Denoiser) -> Consistency:
    schedule, total = denoiser.schedule, config.train.steps
    assert isinstance(schedule, VE)  # see config_findings.check
    curriculum = None
    match objective.levels:
        case GridLevelsConfig(curriculum=growth, law=law):
            curriculum = build_curriculum(growth, total)
            ends = {"low": schedule.sigma_min, "high": schedule.sigma_max, "rho": schedule.rho}
            levels = GridLevels(curriculum=curriculum, law=build_law(law), **ends)
        case EasyLevelsConfig(mean=mean, std=std, q=q, k=k, b=b, stages=stages):
            levels = EasyLevels(total=total, mean=mean, std=std, q=q, k=k, b=b, stages=stages)
    return Consistency(
        denoiser,
        levels,
        metric=build_metric(objective.metric, denoiser),
        weighting=build_weighting(objective.weighting),
        target=build_target(objective.target, denoiser, curriculum),
        descent=build_descent(objective.descent, denoiser),
        label_dropout=objective.label_dropout if denoiser.num_classes else 0.0,
    )


def build_curriculum(config: CurriculumConfig, total: int) -> Curriculum:
    """Return the number of noise levels as a function of the step, for a run of ``total`` steps."""
    match config:
        case ConstantConfig(count=count):
            return Constant(count=count)
        case SquareRootConfig(first=first, last=last):
            return SquareRoot(total=total, first=first, last=last)
        case DoublingConfig(first=first, last=last):
            return Doubling(total=total, first=first, last=last)


def build_law(config: IntervalConfig) -> IntervalLaw:
    """Return how often each interval of a grid is trained on."""
    match config:
        case UniformIntervalConfig():
            return UniformInterval()
        case LogNormalIntervalConfig(mean=mean, std=std):
            return LogNormalInterval(mean=mean, std=std)


def build_weighting(config: WeightingConfig) -> Weighting:
    """Return how much a pair of noise levels counts."""
    match config:
        case UnweightedConfig():
            return Unweighted()
        case InverseGapConfig():
            return InverseGap()
        case InverseOutputConfig():
            return InverseOutput()


def build_target(config: TargetConfig, denoiser: Denoiser, curriculum: Curriculum | None) -> Target:
    """Return whose weights a consistency model learns from; an average slows down as levels grow in number."""
    match config:
        case CurrentWeightsConfig():
            return CurrentWeights()
        case AveragedWeightsConfig(rate=rate):
            growing = None if isinstance(curriculum, Constant) else curriculum
            return AveragedWeights(denoiser, rate=rate, curriculum=growing)


def build_descent(config: DescentConfig, denoiser: Denoiser) -> Descent:
    """Return where the state below comes from.

    Raises ``ValueError`` for a teacher of other images, classes or noise, without a flow, and without an input for the
    augmentation that the student is told of.
    """
    match config:
        case ByImageConfig():
            return ByImage()
        case ByTeacherConfig(teacher=path, solver=solver):
            teacher = load_named(path, "objective.descent.teacher")
            _check_teacher(path, teacher, denoiser)
            return ByTeacher(teacher) if solver == "euler" else ByTeacherHeun(teacher)


def _check_teacher(path: str, teacher: Denoiser, denoiser: Denoiser) -> None:
    if teacher.image_shape != denoiser.image_shape or not isinstance(teacher.schedule, VE):
        raise ValueError(
            f"objective.descent.teacher {path} makes images {teacher.image_shape} on schedule"
            f" {type(teacher.schedule).__name__}; the student's are {denoiser.image_shape} on VE"
        )
    if teacher.num_classes not in (0, denoiser.num_classes):
        raise ValueError(
            f"objective.descent.teacher {path} knows {teacher.num_classes} classes and the data {denoiser.num_classes}"
        )
    if teacher.num_classes and (lacking := sorted({*denoiser.classes} - {*teacher.classes})):
        raise ValueError(
            f"objective.descent.teacher {path} has lost the classes {lacking}, which the student has: give the whole"
            " model"
        )
    if is_consistency(teacher):
        raise ValueError(
            f"objective.descent.teacher {path} is a consistency model, which has no flow to step along: give the"
            " diffusion model that it was made of"
        )
    if _reads_augmentation(denoiser) and not _reads_augmentation(teacher):
        raise ValueError(
            f"objective.descent.teacher {path} was trained without data.augment and cannot be told of it: leave"
            " data.augment out, or give a teacher that was trained with it"
        )


def _reads_augmentation(denoiser: Denoiser) -> bool:
    return bool(network_arguments(denoiser.config["network"]).get("augment_dim"))


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
        case LPIPSConfig(divide_by_t=True) | LPIPSHuberConfig() if not isinstance(denoiser.schedule, Linear):
            raise ValueError(f"objective.metric {config.type} weighs by t in [0, 1]: it goes with schedule Linear only")
        case SquaredL2Config():
            return SquaredL2()
        case L1Config():
            return L1()
        case NormConfig():
            return Norm()
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
