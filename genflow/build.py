"""The composition root: from a configuration to objects, one explicit ``match`` per family."""

# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false
# (torch and diffusers leave some of their functions unannotated)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genflow.build_objective import build_objective as build_objective
from genflow.build_objective import load_model
from genflow.config import (
    Config,
    ConsistencyConfig,
    ConsistencyKarrasConfig,
    CosineConfig,
    DataConfig,
    DiscreteVPConfig,
    DiTConfig,
    KarrasConfig,
    LinearConfig,
    PredictCleanConfig,
    PredictNoiseConfig,
    PredictVConfig,
    PredictVelocityConfig,
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
from genflow.denoiser import Denoiser
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

_AUGMENT = "backbone.conditioning.time.augment.weight"  # the UNet's kernel for augmentation labels
EVALUATION_SEEDS = 2**40  # in-training distances draw from here on, far from the seeds people use
PROBES = 64  # seeds, and pairs, that straightness is measured on beside previews


def build_data(config: DataConfig) -> ImageData | PairData:
    """Return the training images, or pairs; without labels if the configuration does not want classes.

    Raises ``ValueError`` for pairs that are to be anything else than they are, and a number of pairs of no pairs.
    """
    if is_pairs(config.path):
        _check_plain(config)
        pairs = load_pairs(config.path, config.pairs)
        return pairs if config.classes else replace(pairs, labels=None, class_names=())
    if config.pairs:
        raise ValueError(f"data.pairs goes with a folder that genflow pairs writes, and {config.path} is none")
    decoding = Decoding(
        size=config.size or None,
        channels=config.channels,
        background=config.background,
        scale_16_bit=config.scale_16_bit,
    )
    data = load_images(config.path, "train", decoding=decoding, labels=config.labels)
    return data if config.classes else replace(data, labels=None, class_names=())


def _check_plain(config: DataConfig) -> None:
    """Refuse what would part images from their noise: pairs are trained on as they are."""
    plain = DataConfig(path=config.path, pairs=config.pairs, classes=config.classes)
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
            )


def build_schedule(config: Config) -> Schedule:
    """Return the schedule."""
    match config.schedule:
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


def build_parameterization(config: Config) -> Parameterization:
    """Return the parameterization."""
    match config.parameterization:
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
            assert isinstance(config.schedule, VEConfig)  # see check
            ends = config.schedule
            return ConsistencyKarras(sigma_data=sigma_data, sigma_min=ends.sigma_min, level_max=ends.sigma_max)


def build_denoiser(config: Config, image_shape: tuple[int, int, int], num_classes: int) -> Denoiser:
    """Return a fresh denoiser, or one that starts from the weights of ``config.init``."""
    check(config)
    schedule, parameterization = build_schedule(config), build_parameterization(config)
    middle = [schedule.t_max, *config.sample.middle, 0.0]
    torch.manual_seed(config.seed)
    denoiser = Denoiser(
        build_backbone(config.backbone, image_shape, num_classes, LABELS if config.data.augment else 0),
        schedule,
        parameterization,
        image_shape=image_shape,
        num_classes=num_classes,
        sampler=config.sample.sampler,
        steps=config.sample.steps,
        times={str(len(middle) - 1): middle} if config.sample.middle else None,
    )
    resumes = any((config.folder / "checkpoints").glob("step-*"))
    if config.init and not resumes:
        source = load_model(config.init, "init")
        if is_pairs(config.data.path) and source.image_shape != denoiser.image_shape:
            raise ValueError(
                f"init {config.init} makes images {source.image_shape}, and the pairs of {config.data.path} are"
                f" {denoiser.image_shape}: start from their teacher, or from another model of such images"
            )
        load_weights(denoiser, source)
    return denoiser


def load_weights(denoiser: Denoiser, source: Denoiser) -> None:
    """Copy the weights of ``source``.

    If its classes differ in number, the class table starts anew but for "no class"; if only one of the two reads
    augmentation labels, those weights start at 0 or are left out, for the same function of images without any.
    Raises ``ValueError`` naming the weights that do not fit.
    """
    given, wanted = source.state_dict(), denoiser.state_dict()
    if _AUGMENT not in given and _AUGMENT in wanted:
        given[_AUGMENT] = torch.zeros_like(wanted[_AUGMENT])
    elif _AUGMENT in given and _AUGMENT not in wanted:
        del given[_AUGMENT]
    if source.num_classes != denoiser.num_classes:
        for name, fresh in wanted.items():
            old = given.get(name)
            rows = (source.num_classes + 1, denoiser.num_classes + 1)
            if old is not None and (len(old), len(fresh)) == rows and old.shape[1:] == fresh.shape[1:]:
                given[name] = torch.cat([fresh[:-1], old[-1:]])  # the last row is "no class"
            elif old is None and source.num_classes == 0 and len(fresh) == denoiser.num_classes + 1:
                given[name] = fresh  # a table where there was none
        if denoiser.num_classes == 0:  # and none where there was one
            given = {k: v for k, v in given.items() if k in wanted or len(v) != source.num_classes + 1}
    wrong = [k for k in {*given, *wanted} if k not in given or k not in wanted or given[k].shape != wanted[k].shape]
    if wrong:
        raise ValueError(
            f"the model to start from has another network: {len(wrong)} of its weights do not fit, such as"
            f" {min(wrong)}; give [backbone] the values that its config.json lists"
        )
    _check_arguments(denoiser, source)
    denoiser.load_state_dict(given)


def _check_arguments(denoiser: Denoiser, source: Denoiser) -> None:
    """Refuse networks whose weights have the same shapes and which compute something else, such as other heads."""
    given, wanted = (dict(d.config["network"]["arguments"]) for d in (source, denoiser))
    if given.get("fourier_scale") and wanted.get("fourier_scale"):  # the frequencies come with the weights
        given["fourier_scale"] = wanted["fourier_scale"]
    free = {"num_classes", "augment_dim", "dropout", "image_size"}
    other = [name for name in given if name in wanted and name not in free and given[name] != wanted[name]]
    if other:
        raise ValueError(
            f"the model to start from has another network: {other[0]} is"
            f" {given[other[0]]} there and {wanted[other[0]]} here; give [backbone] what its config.json lists"
        )


def build_trainer(config: Config) -> Trainer:
    """Return a trainer that is ready to ``fit``; raises before anything is written if the parts do not fit together."""
    accelerator = make_accelerator(config)
    parts_of(config.train, accelerator.num_processes)  # refuses a batch that cannot be shared before images are read
    data = build_data(config.data)
    agree("the training images", {"their fingerprint": data.fingerprint}, accelerator)
    denoiser = build_denoiser(config, data.image_shape, data.num_classes)
    objective = build_objective(config, denoiser)
    if isinstance(data, PairData) and not data.complete and not config.data.pairs:
        accelerator.print(f"{data.name}: {len(data)} of {data.manifest.count} pairs are there; {data.advice}")
    return Trainer(
        objective,
        build_loader(config, data, accelerator),
        config,
        accelerator=accelerator,
        images=data.fingerprint,
        augment=Augmentation(config.data.augment) if config.data.augment else None,
        preview=preview,
        probe=_probe(data, config, denoiser),
        evaluate=_Distance(data, config, accelerator.device) if config.train.evaluate_every else None,
        export=export,
    )


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
    columns = min(denoiser.num_classes, 10) or 8
    labels = [k % columns for k in range(8 * columns)] if denoiser.num_classes else None
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
        classes = denoiser.num_classes

        def label(seed: int) -> int:
            return seed % classes

        asked = label if classes else None
        samples = Samples(denoiser=denoiser, count=self.count, first_seed=EVALUATION_SEEDS, label=asked)
        return frechet_distance(moments_of(samples, self.network), self.reference)
