"""What a run is described by: frozen dataclasses, which ``config_files`` fills from TOML and the command line.

Nothing here imports torch: these are descriptions, which ``build`` turns into objects. Fields named ``type`` choose
between dataclasses, so an option that does not belong to the choice is an error rather than ignored. The method's part
(schedule, parameterization, objective) is in ``config_method``, what is done to a network before it is trained in
``config_surgery``, and both are named here too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from genflow.config_adapters import BitFitConfig as BitFitConfig
from genflow.config_adapters import ClassLoRAConfig as ClassLoRAConfig
from genflow.config_adapters import DoRAConfig as DoRAConfig
from genflow.config_adapters import FineTuningConfig as FineTuningConfig
from genflow.config_adapters import IA3Config as IA3Config
from genflow.config_adapters import LoHaConfig as LoHaConfig
from genflow.config_adapters import LoRAConfig as LoRAConfig
from genflow.config_adapters import OFTConfig as OFTConfig
from genflow.config_adapters import PiSSAConfig as PiSSAConfig
from genflow.config_adapters import TruncationConfig as TruncationConfig
from genflow.config_consistency import AveragedWeightsConfig as AveragedWeightsConfig
from genflow.config_consistency import ByImageConfig as ByImageConfig
from genflow.config_consistency import ByTeacherConfig as ByTeacherConfig
from genflow.config_consistency import ConsistencyConfig as ConsistencyConfig
from genflow.config_consistency import ConstantConfig as ConstantConfig
from genflow.config_consistency import CurrentWeightsConfig as CurrentWeightsConfig
from genflow.config_consistency import DoublingConfig as DoublingConfig
from genflow.config_consistency import EasyLevelsConfig as EasyLevelsConfig
from genflow.config_consistency import GridLevelsConfig as GridLevelsConfig
from genflow.config_consistency import InverseGapConfig as InverseGapConfig
from genflow.config_consistency import InverseOutputConfig as InverseOutputConfig
from genflow.config_consistency import LogNormalIntervalConfig as LogNormalIntervalConfig
from genflow.config_consistency import SquareRootConfig as SquareRootConfig
from genflow.config_consistency import UniformIntervalConfig as UniformIntervalConfig
from genflow.config_consistency import UnweightedConfig as UnweightedConfig
from genflow.config_method import ConsistencyKarrasConfig as ConsistencyKarrasConfig
from genflow.config_method import ConvertedConfig as ConvertedConfig
from genflow.config_method import CosineConfig as CosineConfig
from genflow.config_method import DiscreteVPConfig as DiscreteVPConfig
from genflow.config_method import KarrasConfig as KarrasConfig
from genflow.config_method import L1Config as L1Config
from genflow.config_method import LinearConfig as LinearConfig
from genflow.config_method import LogitNormalConfig as LogitNormalConfig
from genflow.config_method import LogNormalConfig as LogNormalConfig
from genflow.config_method import LPIPSConfig as LPIPSConfig
from genflow.config_method import LPIPSHuberConfig as LPIPSHuberConfig
from genflow.config_method import MetricConfig as MetricConfig
from genflow.config_method import NormConfig as NormConfig
from genflow.config_method import PackagedConfig as PackagedConfig
from genflow.config_method import ParameterizationConfig as ParameterizationConfig
from genflow.config_method import PerceptualConfig as PerceptualConfig
from genflow.config_method import PredictCleanConfig as PredictCleanConfig
from genflow.config_method import PredictNoiseConfig as PredictNoiseConfig
from genflow.config_method import PredictVConfig as PredictVConfig
from genflow.config_method import PredictVelocityConfig as PredictVelocityConfig
from genflow.config_method import PseudoHuberConfig as PseudoHuberConfig
from genflow.config_method import RawResidualConfig as RawResidualConfig
from genflow.config_method import RegressionConfig as RegressionConfig
from genflow.config_method import ResidualConfig as ResidualConfig
from genflow.config_method import SamplerName as SamplerName
from genflow.config_method import ScheduleConfig as ScheduleConfig
from genflow.config_method import SquaredL2Config as SquaredL2Config
from genflow.config_method import TimesConfig as TimesConfig
from genflow.config_method import UniformConfig as UniformConfig
from genflow.config_method import UShapedConfig as UShapedConfig
from genflow.config_method import VEConfig as VEConfig
from genflow.config_method import VelocityResidualConfig as VelocityResidualConfig
from genflow.config_method import VGGConfig as VGGConfig
from genflow.config_method import VPConfig as VPConfig
from genflow.config_surgery import IntactConfig as IntactConfig
from genflow.config_surgery import KINDConfig as KINDConfig
from genflow.config_surgery import SurgeryConfig as SurgeryConfig
from genflow.config_surgery import TransferConfig as TransferConfig

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images to train on."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    path: str = "digits"
    """digits, mnist5k or shapes (embedded); a folder or zip of images; an .npz file; hf:NAME or hf:./PATH; pairs."""
    pairs: Annotated[int, Field(ge=0)] = 0
    """Take the first so many of a folder of pairs (see genflow pairs); 0 takes all that are there."""
    any_teacher: bool = False
    """Train on pairs that neither the model of init made nor the one on whose pairs it was trained."""
    labels: str = ""
    """File that labels a folder's or zip's images: EDM's dataset.json or a CSV of file,label; "" looks in the data."""
    size: Annotated[int, Field(ge=0)] = 0
    """Side to crop and resize images to; 0 takes them as they are."""
    channels: Literal[0, 1, 3] = 0
    """Convert all to grey (1) or RGB (3), whatever their mode; 0 takes them as they are."""
    background: str = ""
    """Colour that transparent images are laid on, such as white or #8080ff; "" refuses transparency."""
    scale_16_bit: bool = False
    """Scale images of 16 bits a channel to 8; otherwise they are refused."""
    classes: bool = True
    """Train with class labels where the data has them."""
    keep: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Take the images of these classes alone, which are renumbered from 0 in their old order; () takes all."""
    flip: bool = False
    """Mirror half of the images; wrong for anything with a left and a right, such as digits."""
    augment: Share = 0.0
    """Probability of each of EDM's geometric augmentations, of which the network is told (0.12 there); UNet only."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Convolutional network of EDM's DDPM++ form; other values make it NCSN++ or ADM (see genflow.nn.unet_preset)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    type: Literal["UNet"] = "UNet"
    width: Positive = 128
    """Channels at the highest resolution."""
    multipliers: tuple[Positive, ...] = (2, 2, 2)
    """Channels at each resolution, in multiples of width."""
    blocks: Positive = 4
    """Residual blocks per resolution."""
    attention: tuple[Positive, ...] = (16,)
    """Resolutions (shorter side) at which there is attention."""
    heads: Positive = 1
    """Attention heads."""
    dropout: Share = 0.13
    """Share of activations dropped in residual blocks."""
    fourier_scale: NonNegative = 0.0
    """Scale of random Fourier features of the noise level (NCSN++ 16, iCT 0.02); 0 is the positional embedding."""
    resample_filter: tuple[Positive, ...] = (1, 1)
    """Filter for halving and doubling images (NCSN++ 1, 3, 3, 1)."""
    residual_encoder: bool = False
    """Feed a resampled copy of the image to every resolution, as NCSN++ does."""
    adaptive_norm: bool = False
    """Scale and shift normalised features by the noise level, in ADM's blocks."""
    head_channels: Annotated[int, Field(ge=0)] = 0
    """Channels of an attention head (ADM 64); 0 uses heads."""
    decoder_attention: Literal["last", "every"] = "last"
    """Which of a resolution's decoder blocks attend (ADM every)."""
    embedding_multiplier: Positive = 4
    """Width of the conditioning vector, in multiples of width."""


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Diffusion transformer."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    type: Literal["DiT"] = "DiT"
    patch_size: Positive = 2
    """Side of the square patches that become tokens."""
    width: Positive = 384
    """Channels of a token (S 384, B 768, L 1024, XL 1152)."""
    depth: Positive = 12
    """Blocks (S 12, B 12, L 24, XL 28)."""
    heads: Positive = 6
    """Attention heads (S 6, B 12, L 16, XL 16)."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of the MLPs, in multiples of width."""
    dropout: Share = 0.0
    """Share of activations dropped in blocks."""
    fused_qkv: bool = False
    """Give queries, keys and values one kernel: the same function, but decomposed as one."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam or RAdam, and the average of weights that is used for sampling."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    rule: Literal["adam", "radam"] = "adam"
    """Adam, or RAdam, which takes its first steps more carefully and needs no warm-up."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate after warm-up."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate grows from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after warm-up: stay, or fall to 0 along a cosine."""
    beta1: Share = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: Share = 0.999
    """Decay of Adam's mean of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    clip: NonNegative = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    ema_halflife: NonNegative = 500_000
    """Half-life, in images, of the average of weights; 0 averages nothing."""
    ema_rampup: NonNegative = 0.05
    """The half-life is at most this share of the images seen so far."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and rhythm of a run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    steps: Positive = 100_000
    """Optimiser steps."""
    batch_size: Positive = 128
    """Images per optimiser step, over all processes."""
    microbatch: Annotated[int, Field(ge=0)] = 0
    """Most images a process computes at once, to save memory; a step's others are accumulated. 0 computes all."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """What the network computes in; weights and losses stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    log_every: Positive = 50
    """Steps between lines of log.jsonl."""
    preview_every: Annotated[int, Field(ge=0)] = 1000
    """Steps between pictures in previews/, and lines on straightness or one-step samples; 0 makes none."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    keep: Positive = 2
    """Checkpoints kept."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between Fréchet distances to the training images; the best model is kept in best/. 0 measures none."""
    evaluate_features: str = ""
    """Features of these distances, as genflow fid takes them; "" is digits' or mnist5k's own, else inception."""
    stop_after_bad: Positive = 20
    """Stop after this many steps in a row whose gradient was not finite (each is skipped)."""
    tracker: str = ""
    """Any accelerate tracker: tensorboard, wandb, trackio, mlflow, …"""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 leaves torch's choice."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How the saved model samples unless told otherwise."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    sampler: SamplerName = "heun"
    """Default sampler."""
    steps: Positive = 18
    """Default number of steps."""
    middle: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Times between the first and 0 when sampling in one step more than there are, falling: 0.821 for iCT's two."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: data, network and what is done to it, method (schedule, parameterization, objective), optimisation."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")] = "run"
    """Name of the run."""
    out: str = "runs"
    """Folder that holds runs."""
    init: str = ""
    """Saved model to start from, its folder, its run's, or hf:OWNER/NAME; its classes may differ."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random in training."""
    compile: bool = False
    """Compile the network with torch.compile."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: Annotated[UNetConfig | DiTConfig, Field(discriminator="type")] = field(default_factory=UNetConfig)
    surgery: SurgeryConfig = field(default_factory=IntactConfig)
    schedule: ScheduleConfig = field(default_factory=VEConfig)
    parameterization: ParameterizationConfig = field(default_factory=KarrasConfig)
    objective: Annotated[RegressionConfig | ConsistencyConfig, Field(discriminator="type")] = field(
        default_factory=RegressionConfig
    )
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return Path(self.out) / self.name
