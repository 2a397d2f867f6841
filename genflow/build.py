"""The composition root: from a configuration to objects, one explicit ``match`` per family."""

# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false
# (torch and diffusers leave some of their functions unannotated)

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genflow.build_objective import build_objective as build_objective
from genflow.build_start import check_pairs, load_named, misreading, resumes
from genflow.build_surgery import make_lazy, numbered, operate, to_save
from genflow.config import (
    Config,
    ConsistencyConfig,
    ConsistencyKarrasConfig,
    ConvertedConfig,
    CosineConfig,
    DataConfig,
    DiscreteVPConfig,
    DiTConfig,
    EasyLevelsConfig,
    KarrasConfig,
    LinearConfig,
    ParameterizationConfig,
    PredictCleanConfig,
    PredictNoiseConfig,
    PredictVConfig,
    PredictVelocityConfig,
    ScheduleConfig,
    UNetConfig,
    VEConfig,
    VPConfig,
)
from genflow.config_findings import check
from genflow.data.augmentation import LABELS, Augmentation
from genflow.data.decoding import Decoding
from genflow.data.images import ImageData, load_images
from genflow.data.loader import Ahead, ImageLoader
from genflow.data.pairs import MOST_PAIRS, PairData, is_pairs, load_pairs
from genflow.denoiser import Denoiser, is_consistency
from genflow.evaluation.crossing import crossing_of_pairs
from genflow.evaluation.features import load_features
from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.measurement import moments_of
from genflow.evaluation.one_step import OneStep
from genflow.evaluation.sources import FoundImages, Samples
from genflow.evaluation.straightness import straightness
from genflow.files import replace_files
from genflow.nn.dit import DiT
from genflow.nn.unet import UNet
from genflow.parameterizations import (
    Conditioning,
    ConsistencyKarras,
    Converted,
    Karras,
    Parameterization,
    PredictClean,
    PredictNoise,
    PredictV,
    PredictVelocity,
)
from genflow.pictures import grid
from genflow.sampling.generate import generate
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, linear_betas
from genflow.training.agreement import agree
from genflow.training.trainer import Loader, Trainer, make_accelerator, parts_of

EVALUATION_SEEDS = 2**40  # in-training distances draw from here on, far from the seeds people use
PROBES = 64  # seeds, and pairs, that straightness is measured on beside previews


def build_data(config: DataConfig) -> ImageData | PairData:
    """Return the training images, or pairs; without labels if the configuration does not want classes.

    Raises ``ValueError`` for pairs that are to be anything else than they are, and for options of pairs without any.
    """
    if is_pairs(config.path):
        _check_plain(config)
        pairs = load_pairs(config.path, config.pairs)
        return pairs if config.classes else replace(pairs, labels=None, class_names=())
    if config.pairs or config.any_teacher:
        given = "data.pairs" if config.pairs else "data.any_teacher"
        raise ValueError(f"{given} goes with a folder that genflow pairs writes, and {config.path} is none")
    decoding = Decoding(
        size=config.size or None,
        channels=config.channels,
        background=config.background,
        scale_16_bit=config.scale_16_bit,
    )
    data = load_images(config.path, "train", decoding=decoding, labels=config.labels)
    data = data.of_classes(config.keep) if config.keep else data
    return data if config.classes else replace(data, labels=None, class_names=())


def _check_plain(config: DataConfig) -> None:
    """Refuse what would part images from their noise: pairs are trained on as they are."""
    plain = DataConfig(path=config.path, pairs=config.pairs, any_teacher=config.any_teacher, classes=config.classes)
    given = [f.name for f in fields(config) if getattr(config, f.name) != getattr(plain, f.name)]
    if given:
        raise ValueError(
            f"{config.path} holds pairs, whose noise is that of the image as it is: leave out"
            f" {' and '.join(f'data.{name}' for name in given)}"
        )


def build_backbone(
    config: UNetConfig | DiTConfig, image_shape: tuple[int, int, int], num_classes: int, augment_dim: int = 0
) -> nn.Module:
    """Return a fresh network for images of this shape (C, H, W), which reads augmentation labels of this width.

    Raises ``ValueError`` for augmentation labels and a network that reads none.
    """
    channels, *size = image_shape
    image_size = (size[0], size[1])
    match config:
        case UNetConfig():
            return UNet(
                image_size=image_size,
                in_channels=channels,
                num_classes=num_classes,
                width=config.width,
                multipliers=config.multipliers,
                blocks=config.blocks,
                attention=config.attention,
                heads=config.heads,
                dropout=config.dropout,
                fourier_scale=config.fourier_scale,
                resample_filter=config.resample_filter,
                residual_encoder=config.residual_encoder,
                adaptive_norm=config.adaptive_norm,
                head_channels=config.head_channels,
                decoder_attention=config.decoder_attention,
                embedding_multiplier=config.embedding_multiplier,
                augment_dim=augment_dim,
            )
        case DiTConfig():
            if augment_dim:
                raise ValueError("data.augment tells the network what was done to an image, which DiT has no input for")
            return DiT(
                image_size=image_size,
                in_channels=channels,
                num_classes=num_classes,
                patch_size=config.patch_size,
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                dropout=config.dropout,
                fused_qkv=config.fused_qkv,
            )


def build_schedule(config: ScheduleConfig) -> Schedule:
    """Return the schedule."""
    match config:
        case VEConfig(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho):
            return VE(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        case VPConfig(beta_d=beta_d, beta_min=beta_min):
            return VP(beta_d=beta_d, beta_min=beta_min)
        case DiscreteVPConfig(count=count, beta_start=start, beta_end=end):
            return DiscreteVP(betas=linear_betas(count, start, end))
        case CosineConfig():
            return Cosine()
        case LinearConfig():
            return Linear()


def build_parameterization(config: ParameterizationConfig, schedule: Schedule) -> Parameterization:
    """Return the parameterization of a model on this schedule."""
    match config:
        case PredictNoiseConfig():
            return PredictNoise()
        case PredictCleanConfig():
            return PredictClean()
        case PredictVConfig():
            return PredictV()
        case PredictVelocityConfig():
            return PredictVelocity()
        case KarrasConfig(sigma_data=sigma_data, level_min=low, level_max=high, conditioning=chosen):
            return Karras(sigma_data=sigma_data, level_min=low, level_max=high, conditioning=Conditioning(chosen))
        case ConsistencyKarrasConfig(sigma_data=sigma_data):
            assert isinstance(schedule, VE)  # see config_findings.check
            return ConsistencyKarras(sigma_data=sigma_data, sigma_min=schedule.sigma_min, level_max=schedule.sigma_max)
        case ConvertedConfig(schedule=known, row=row):
            own = build_schedule(known)
            return Converted(schedule=own, row=build_parameterization(row, own))


def build_denoiser(
    config: Config,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    pairs: PairData | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Denoiser:
    """Return a fresh denoiser, or one that starts from the weights of ``config.init``, after the run's surgery.

    Of ``pairs`` to train on it remembers the teacher. ``warn`` is handed one line if the weights meant something else
    where they come from, or are no diffusion model's where ECT needs one. Raises ``ValueError`` for parts that do not
    go together, for weights that do not fit, and for pairs of other images than the model's, or of another teacher
    than ``config.data`` allows.
    """
    check(config)
    schedule = build_schedule(config.schedule)
    parameterization = build_parameterization(config.parameterization, schedule)
    middle = [schedule.t_max, *config.sample.middle, 0.0]
    torch.manual_seed(config.seed)
    fresh = Denoiser(
        build_backbone(config.backbone, image_shape, num_classes, LABELS if config.data.augment else 0),
        schedule,
        parameterization,
        image_shape=image_shape,
        num_classes=num_classes,
        sampler=config.sample.sampler,
        steps=config.sample.steps,
        times={str(len(middle) - 1): middle} if config.sample.middle else None,
        teacher="" if pairs is None else pairs.manifest.teacher,
    )
    source = load_named(config.init, "init") if config.init and not resumes(config) else None
    if source is not None and pairs is not None:
        check_pairs(config, source, pairs)
    denoiser = operate(config, fresh, source)
    if source is not None:
        if found := misreading(source, denoiser):
            warn(f"init {config.init}: {found}")
        if _is_easy(config) and is_consistency(source):
            warn(f"init {config.init} is a consistency model, and ECT starts from a diffusion model: name that instead")
    return denoiser


def _is_easy(config: Config) -> bool:
    return isinstance(config.objective, ConsistencyConfig) and isinstance(config.objective.levels, EasyLevelsConfig)


def build_trainer(config: Config) -> Trainer:
    """Return a trainer that is ready to ``fit``; raises before anything is written if the parts do not fit together."""
    check(config)
    accelerator = make_accelerator(config)
    parts_of(config.train, accelerator.num_processes)  # refuses a batch that cannot be shared before images are read
    data = numbered(config, build_data(config.data))
    agree("the training images", {"their fingerprint": data.fingerprint}, accelerator)
    denoiser = build_denoiser(
        config,
        data.image_shape,
        data.num_classes,
        pairs=data if isinstance(data, PairData) else None,
        warn=lambda text: accelerator.print(f"genflow: warning: {text}", file=sys.stderr),
    )
    objective = build_objective(config, denoiser)
    if isinstance(data, PairData) and not data.complete and not config.data.pairs:
        accelerator.print(f"{data.name}: {len(data)} of {data.manifest.count} pairs are there; {data.advice}")
    trainer = Trainer(
        objective,
        build_loader(config, data, accelerator),
        config,
        accelerator=accelerator,
        images=data.fingerprint,
        augment=Augmentation(config.data.augment) if config.data.augment else None,
        preview=preview,
        probe=_probe(data, config, denoiser),
        evaluate=_Distance(data, config, accelerator.device) if config.train.evaluate_every else None,
        export=lambda average, folder: export(to_save(config, average), folder),
    )
    make_lazy(config, trainer.optimizer, denoiser)
    return trainer


def build_loader(config: Config, data: ImageData | PairData, accelerator: Accelerator) -> Loader:
    """Return the loader of this process's share of every batch; of pairs a step ahead, since their noise takes time."""
    parts = parts_of(config.train, accelerator.num_processes)
    loader = ImageLoader(
        data,
        batch_size=config.train.batch_size // (parts * accelerator.num_processes),
        seed=config.seed,
        flip=config.data.flip,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    return Ahead(loader) if isinstance(data, PairData) else loader


def preview(denoiser: Denoiser) -> Tensor:
    """Return a picture of 8 rows of samples, uint8 (C, H, W): one column per class (at most 10), or 8 columns."""
    columns = min(len(denoiser.classes), 10) or 8
    labels = [*denoiser.classes[:columns]] * 8 if denoiser.classes else None
    images = generate(denoiser, range(8 * columns), labels=labels)
    return grid(images, columns, scale=max(1, 48 // denoiser.image_shape[-1]))


def export(denoiser: Denoiser, folder: Path) -> None:
    """Write a diffusers pipeline folder, each of its files whole or not at all."""
    from genflow.pipeline import GenflowPipeline

    partial = folder.with_name(f".partial-{folder.name}")
    GenflowPipeline(denoiser).save_pretrained(str(partial))
    replace_files(partial, folder)
    _remove_empty(partial)


def _remove_empty(folder: Path) -> None:
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        inner.rmdir()
    folder.rmdir()


def _probe(
    data: ImageData | PairData, config: Config, denoiser: Denoiser
) -> Callable[[Denoiser], dict[str, float]] | None:
    """Return what the log says beside previews: what the loss does not tell."""
    if isinstance(config.objective, ConsistencyConfig):
        return OneStep(data, range(EVALUATION_SEEDS, EVALUATION_SEEDS + PROBES))
    return _Straightness(data) if isinstance(denoiser.schedule, Linear) else None


class _Straightness:
    """How straight a rectified flow has become, and on pairs, how far the model takes their lines to cross.

    On 64 seeds in 32 steps, and on the first 64 pairs at 16 times: 2,048 evaluations of the network, or 3,072, about
    what training on 1,000 images costs. Held-out images play no part in it.
    """

    def __init__(self, data: ImageData | PairData) -> None:
        self.pairs = data if isinstance(data, PairData) else None

    def __call__(self, denoiser: Denoiser) -> dict[str, float]:
        flow = straightness(denoiser, range(EVALUATION_SEEDS, EVALUATION_SEEDS + PROBES))
        found = {"straightness": flow.straightness.value, "one_step_gap": flow.one_step_gap.value}
        if self.pairs is not None:
            found["crossing"] = crossing_of_pairs(denoiser, self.pairs, PROBES).value
        return found


class _Distance:
    """Fréchet distance to the training images: a model chosen by it has not seen the held-out ones."""

    def __init__(self, data: ImageData | PairData, config: Config, device: torch.device) -> None:
        data = data.unpaired(MOST_PAIRS) if isinstance(data, PairData) else data
        own = config.data.path if config.data.path in ("digits", "mnist5k") else "inception"
        name = config.train.evaluate_features or own
        self.network = load_features(name, device=device, image_shape=data.image_shape)
        self.count = min(len(data), 2000)
        self.reference = moments_of(FoundImages(data), self.network)

    def __call__(self, denoiser: Denoiser) -> float:
        classes = denoiser.classes

        def label(seed: int) -> int:
            return classes[seed % len(classes)]

        asked = label if classes else None
        samples = Samples(denoiser=denoiser, count=self.count, first_seed=EVALUATION_SEEDS, label=asked)
        return frechet_distance(moments_of(samples, self.network), self.reference)
