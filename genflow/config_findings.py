"""What is known to be wrong with a configuration before anything is built: what cannot work, and what seldom does.

The findings on consistency models are the mistakes for which public re-implementations stay far from the papers; each
names itself, so that who makes one on purpose knows which one it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from genflow.config import (
    AveragedWeightsConfig,
    ByImageConfig,
    ByTeacherConfig,
    ClassLoRAConfig,
    Config,
    ConsistencyConfig,
    ConsistencyKarrasConfig,
    ConstantConfig,
    DoublingConfig,
    EasyLevelsConfig,
    GridLevelsConfig,
    IntactConfig,
    KarrasConfig,
    KINDConfig,
    LinearConfig,
    LogNormalIntervalConfig,
    PredictCleanConfig,
    PredictNoiseConfig,
    PredictVConfig,
    PredictVelocityConfig,
    PseudoHuberConfig,
    RegressionConfig,
    SquareRootConfig,
    TransferConfig,
    TruncationConfig,
    UNetConfig,
    UnweightedConfig,
    VEConfig,
)
from genflow.config_consistency import never_doubles

LEAST_BATCH = 128  # of a consistency model's training, below which none is known to have worked
LEAST_MEAN = -4.0  # of the law of ln sigma; noise of e^-4 is about two steps of 8 bits
LARGEST_C = 0.002  # of the pseudo-Huber metric, before sqrt(D); iCT's is 0.00054
MOST_RESOLUTIONS = 5  # of a UNet on images below LARGE, as those of unknown size are taken to be
LARGE = 256  # at which published networks have 6
LEAST_FOURIER_SCALE = 0.01  # 2 pi of it, times the 2.65 that the times of all levels span, is 0.17 radians
LARGEST_FOURIER_SCALE = 1.0  # iCT has 0.02; 16, EDM's and CT's, turns 25 radians per unit of ln sigma


def check(config: Config) -> None:
    """Raise ``ValueError`` for parts that cannot work together, saying what would."""
    _check_row(config)
    _check_middle(config)
    _check_surgery(config)
    if isinstance(config.objective, ConsistencyConfig):
        _check_consistency(config, config.objective)


def _check_row(config: Config) -> None:
    match config.schedule, config.parameterization:
        case VEConfig(), PredictNoiseConfig() | PredictVConfig() | PredictVelocityConfig() | PredictCleanConfig():
            why = "leaves the inputs of schedule VE, up to 80 times too large, unscaled: use Karras"
        case VEConfig(), KarrasConfig(conditioning="time"):
            why = "with conditioning time needs t in [0, 1], and that of schedule VE is a noise level: use level"
        case LinearConfig(), PredictNoiseConfig():
            why = "needs alpha > 0, which schedule Linear lacks at t = 1: use PredictVelocity or Karras, or Converted"
            why += " with the weights of a model that predicts noise on a schedule of its own"
        case VEConfig(), ConsistencyKarrasConfig() if isinstance(config.objective, RegressionConfig):
            why = "gives images back untouched at the lowest noise level, where nothing can be regressed: use Karras"
        case VEConfig(), _:
            return
        case _, ConsistencyKarrasConfig():
            why = "is made for the noise levels of schedule VE: use that"
        case _:
            return
    raise ValueError(f"parameterization {config.parameterization.type} {why}")


def _check_middle(config: Config) -> None:
    """Refuse times between the first and 0 that are not between them, or do not fall, or leave nothing to do."""
    first = config.schedule.sigma_max if isinstance(config.schedule, VEConfig) else 1.0
    match config.objective, config.schedule, config.sample.middle:
        case ConsistencyConfig(), VEConfig(sigma_min=low), (*_, last) if last <= low:
            raise ValueError(
                f"sample.middle ends at {last:g}, and at {low:g} and below a consistency model gives the image back as"
                " it is: every call must begin above"
            )
        case _:
            pass
    if any(s >= t for t, s in itertools.pairwise((first, *config.sample.middle))):
        shown = " ".join(f"{t:g}" for t in config.sample.middle)
        raise ValueError(f"sample.middle must fall, from below {first:g}, where sampling starts, got {shown}")


def _check_surgery(config: Config) -> None:
    lost = not config.data.classes
    match config.surgery:
        case KINDConfig(class_to_tailor=()) | TransferConfig() | TruncationConfig() | ClassLoRAConfig() if lost:
            raise ValueError(
                f"surgery {config.surgery.type} trains a part of the network for each class, and data.classes = false"
                " takes the classes away: leave it out"
            )
        case TransferConfig() if not config.init:
            raise ValueError(
                "surgery Transfer trains a decomposed model further: name it by --init, as genflow kind grow writes it"
            )
        case IntactConfig() | KINDConfig() | TransferConfig():
            return
        case adapter if not config.init:
            raise ValueError(f"surgery {adapter.type} fits a trained model to new classes: name it by --init")
        case _:
            return


def _check_consistency(config: Config, objective: ConsistencyConfig) -> None:
    if config.schedule.type != "VE":
        raise ValueError(f"objective Consistency goes with schedule VE, not {config.schedule.type}")
    if config.sample.sampler != "multistep":
        raise ValueError(
            f"sample.sampler is {config.sample.sampler}, which follows a flow, and a consistency model has none: it is"
            ' drawn by sampler = "multistep", with steps = 1 or 2'
        )
    match objective.levels:
        case GridLevelsConfig() if not isinstance(config.parameterization, ConsistencyKarrasConfig):
            raise ValueError(
                "objective Consistency on a grid needs parameterization ConsistencyKarras: with"
                f" {config.parameterization.type} the image at the lowest noise level is not the state itself, and"
                " nothing anchors what the model learns"
            )
        case GridLevelsConfig(curriculum=DoublingConfig(first=first, last=last)) if stuck := never_doubles(first, last):
            raise ValueError(stuck)
        case EasyLevelsConfig() if not isinstance(config.parameterization, KarrasConfig):
            raise ValueError(
                "objective.levels Easy (ECT) goes down to noise level 0 and needs parameterization Karras:"
                f" {config.parameterization.type} stops above it"
            )
        case EasyLevelsConfig() if not config.init:
            raise ValueError(
                "objective.levels Easy (ECT) starts from a trained diffusion model of schedule VE and parameterization"
                " Karras: name it by --init"
            )
        case _:
            return


def findings(config: Config) -> list[str]:
    """Return warnings, one line each, of choices that are known to keep a model from becoming what it is meant to."""
    found = [*_of_surgery(config)]
    if isinstance(config.objective, ConsistencyConfig):
        for part in (_of_levels, _of_loss, _of_network, _of_training):
            found += part(config, config.objective)
    return found


def _of_surgery(config: Config) -> Iterator[str]:
    match config.surgery:
        case KINDConfig(lazy_tailors=False) | TransferConfig(lazy_tailors=False) if config.optim.weight_decay:
            yield (
                f"weight decay {config.optim.weight_decay:g} shrinks the tailors of classes that are absent from a"
                " batch, and decays U, sigma and V rather than the kernel: optim.weight_decay = 0, or"
                " surgery.lazy_tailors = true"
            )
        case _:
            return


def _improved(objective: ConsistencyConfig) -> bool:
    """Tell iCT and ECT from CT and CD, which were published with Fourier scale 16, an average and no dropout.

    By any part that CT and CD have not, so that a wrong part does not hide the others.
    """
    match objective:
        case ConsistencyConfig(descent=ByTeacherConfig()):
            return False
        case ConsistencyConfig(levels=EasyLevelsConfig()):
            return True
        case ConsistencyConfig(levels=GridLevelsConfig(curriculum=DoublingConfig())):
            return True
        case ConsistencyConfig(levels=GridLevelsConfig(law=LogNormalIntervalConfig())):
            return True
        case ConsistencyConfig(metric=PseudoHuberConfig()):
            return True
        case _:
            return False


def _stays(levels: GridLevelsConfig | EasyLevelsConfig) -> int:
    """Return the number of points of a grid that never grows; else 0."""
    match levels:
        case GridLevelsConfig(curriculum=ConstantConfig(count=count)):
            return count
        case GridLevelsConfig(curriculum=SquareRootConfig(first=first, last=last)) if first >= last:
            return first
        case _:
            return 0


def _of_levels(config: Config, objective: ConsistencyConfig) -> Iterator[str]:
    levels = objective.levels
    law = levels.law if isinstance(levels, GridLevelsConfig) else levels
    if isinstance(law, LogNormalIntervalConfig | EasyLevelsConfig) and law.mean > 0:
        yield (
            f"sign of the mean: noise levels are log-normal about e^{law.mean:g}, far above what matters most for"
            " images; iCT's and ECT's mean is -1.1"
        )
    if isinstance(law, LogNormalIntervalConfig | EasyLevelsConfig) and law.mean < LEAST_MEAN:
        yield (
            f"mean of the law: noise levels are log-normal about e^{law.mean:g}, where hardly any noise is seen; iCT's"
            " and ECT's mean is -1.1"
        )
    if isinstance(law, LogNormalIntervalConfig | EasyLevelsConfig) and not 0.5 <= law.std <= 4:
        yield (
            f"deviation of the law: ln sigma spreads by {law.std:g}, so that"
            f" {'hardly any level but those about the mean' if law.std < 1 else 'every level, however far,'} is trained"
            " on; iCT's and ECT's deviation is 2"
        )
    match objective.descent:
        case ByTeacherConfig(teacher=teacher) if not config.init:
            yield f"CD from nothing: published students start from their teacher's weights: --init {teacher}"
        case ByImageConfig() if count := _stays(levels):
            yield (
                f"curriculum stuck: the grid has {count} points throughout, and without a teacher few levels leave an"
                " image that is too smooth; CT's grow to 151, iCT's to 1281"
            )
        case _:
            pass


def _of_loss(config: Config, objective: ConsistencyConfig) -> Iterator[str]:
    match objective.weighting:
        case UnweightedConfig() if _improved(objective):
            yield "every pair of levels alike: iCT's and ECT's weighting is InverseGap, 1 / (t - s)"
        case _:
            pass
    match objective.metric:
        case PseudoHuberConfig(c_power=power, divisor_power=divisor) if (power, divisor) != (0.5, 0.0):
            yield (
                "c of the wrong dimension: iCT's pseudo-Huber metric is that of the whole image as one vector, c ="
                " 0.00054 sqrt(D): objective.metric.c_power = 0.5, divisor_power = 0"
            )
        case PseudoHuberConfig(c=c) if c > LARGEST_C:
            yield (
                f"c counted twice: objective.metric.c = {c:g} is multiplied by sqrt(D); iCT's 0.03 on CIFAR-10 is"
                " c = 0.00054"
            )
        case _:
            pass
    if isinstance(objective.target, AveragedWeightsConfig) and _improved(objective):
        yield (
            "an average of weights as teacher: iCT and ECT learn from the weights of the moment (objective.target"
            " Current); the average is for sampling"
        )


def _of_network(config: Config, objective: ConsistencyConfig) -> Iterator[str]:
    match config.backbone:
        case UNetConfig(multipliers=multipliers) if len(multipliers) > MOST_RESOLUTIONS and config.data.size < LARGE:
            yield (
                f"wrong network: {len(multipliers)} resolutions, as in diffusers' default UNet, leave a pixel or two of"
                " small images; published networks have 3 at 32x32 and 4 at 64x64"
            )
        case UNetConfig(attention=()) if _improved(objective):
            yield "wrong network: no attention; published networks attend at 16x16, or at 32, 16 and 8"
        case _:
            pass
    if not config.backbone.dropout and config.train.steps > 10_000 and _improved(objective):
        yield "no dropout: iCT has 0.3 on CIFAR-10, 0.2 on ImageNet-64"
    match objective.levels, config.backbone:
        case GridLevelsConfig(), UNetConfig(adaptive_norm=True) if _improved(objective):
            yield (
                "adaptive norm: scale and shift by the time, as in ADM's blocks, are reported to make iCT diverge;"
                " backbone.adaptive_norm = false"
            )
        case _:
            pass
    match config.backbone:
        case UNetConfig(fourier_scale=scale) if scale > LARGEST_FOURIER_SCALE and _improved(objective):
            yield (
                f"Fourier scale {scale:g}: the embedding of neighbouring noise levels differs far too much; iCT has"
                " backbone.fourier_scale = 0.02, and 0 (positional) is about as calm"
            )
        case UNetConfig(fourier_scale=scale) if 0 < scale < LEAST_FOURIER_SCALE:
            yield (
                f"Fourier scale {scale:g}: the embedding hardly differs from the lowest noise level to the highest; iCT"
                " has backbone.fourier_scale = 0.02"
            )
        case _:
            pass


def _of_training(config: Config, objective: ConsistencyConfig) -> Iterator[str]:
    train, optim = config.train, config.optim
    # with few levels apart, CT and CD were published in fp16 on ImageNet
    if train.mixed_precision == "bf16" or (train.mixed_precision == "fp16" and _improved(objective)):
        yield (
            f"{train.mixed_precision}: neighbouring noise levels differ by less than what the network's output is"
            " rounded by; train in float32 (the grid itself is float64 in any case)"
        )
    if train.batch_size < LEAST_BATCH:
        yield (
            f"batch of {train.batch_size}: published runs have 128 (ECT), 512 (CT, CD) and 1024 (iCT) and more, and"
            " small batches are known to stall"
        )
    unusual = []
    if optim.rule != "radam":
        unusual.append(f"rule = {optim.rule}")
    if optim.weight_decay:
        unusual.append(f"weight_decay = {optim.weight_decay:g}")
    if optim.decay != "constant":
        unusual.append(f"decay = {optim.decay}")
    if optim.warmup:
        unusual.append(f"warmup = {optim.warmup}")
    factors = isinstance(config.surgery, KINDConfig | TransferConfig)  # which fall apart without, with some seeds
    if optim.clip and not factors:
        unusual.append(f"clip = {optim.clip:g}")
    if optim.beta1 != 0.9:
        unusual.append(f"beta1 = {optim.beta1:g}")
    if optim.beta2 != 0.999 and not factors:
        unusual.append(f"beta2 = {optim.beta2:g}")
    if unusual:
        yield (
            "optimiser: published runs have RAdam at a constant rate from the start, betas 0.9 and 0.999, no weight"
            f" decay and no clipping; here {', '.join(unusual)}"
        )
    if not optim.ema_halflife:
        yield "no average of weights: the model that is sampled from is the last step's, which is far worse"
