"""The method's part of a configuration: schedule, parameterization, objective, sampler (see ``config``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")

SamplerName = Literal["euler", "heun", "dpmpp_2m", "ancestral", "multistep", "straight", "straight_heun"]

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class VEConfig:
    """Variance exploding: noise levels up to sigma_max."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["VE"] = "VE"
    sigma_min: Annotated[float, Field(gt=0)] = 0.002
    """Lowest noise level of the sampling grid."""
    sigma_max: Annotated[float, Field(gt=0)] = 80.0
    """Highest noise level."""
    rho: Annotated[float, Field(gt=0)] = 7.0
    """Power of the sampling grid."""


@dataclass(frozen=True, kw_only=True)
class VPConfig:
    """Variance preserving, continuous time."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["VP"] = "VP"
    beta_d: Annotated[float, Field(gt=0)] = 19.9
    """Growth of beta over time."""
    beta_min: Annotated[float, Field(gt=0)] = 0.1
    """beta at time 0."""


@dataclass(frozen=True, kw_only=True)
class DiscreteVPConfig:
    """Variance preserving, DDPM's table with linear betas."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["DiscreteVP"] = "DiscreteVP"
    count: Positive = 1000
    """Entries of the table."""
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """First beta."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Last beta."""


@dataclass(frozen=True, kw_only=True)
class CosineConfig:
    """Variance preserving, cosine."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Cosine"] = "Cosine"


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """The straight path of rectified flow."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Linear"] = "Linear"


ScheduleConfig = Annotated[
    VEConfig | VPConfig | DiscreteVPConfig | CosineConfig | LinearConfig, Field(discriminator="type")
]


@dataclass(frozen=True, kw_only=True)
class PredictNoiseConfig:
    """The network gives the noise."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["PredictNoise"] = "PredictNoise"


@dataclass(frozen=True, kw_only=True)
class PredictCleanConfig:
    """The network gives the clean image."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["PredictClean"] = "PredictClean"


@dataclass(frozen=True, kw_only=True)
class PredictVConfig:
    """The network gives v."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["PredictV"] = "PredictV"


@dataclass(frozen=True, kw_only=True)
class PredictVelocityConfig:
    """The network gives the velocity of rectified flow."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["PredictVelocity"] = "PredictVelocity"


@dataclass(frozen=True, kw_only=True)
class KarrasConfig:
    """EDM's preconditioning."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Karras"] = "Karras"
    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    """Standard deviation of the data, in [-1, 1] units."""
    level_min: Annotated[float, Field(gt=0)] = 0.002
    """Lowest noise level that the network is told; lower ones look like it."""
    level_max: Annotated[float, Field(gt=0)] = 80.0
    """Highest noise level that the network is told; 80 is where EDM's networks stop, 99999 does not clip 2-RF."""
    conditioning: Literal["level", "time"] = "level"
    """What the network is told: ln(noise level) / 4, which EDM's weights know, or t itself, to start afresh."""


@dataclass(frozen=True, kw_only=True)
class ConsistencyKarrasConfig:
    """EDM's preconditioning, shifted so that images at the lowest noise level stay as they are."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["ConsistencyKarras"] = "ConsistencyKarras"
    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    """Standard deviation of the data, in [-1, 1] units."""


@dataclass(frozen=True, kw_only=True)
class ConvertedConfig:
    """A diffusion model's weights as they are, on another schedule: DDPM's, to start rectified flow from."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Converted"] = "Converted"
    schedule: Annotated[VPConfig | DiscreteVPConfig | CosineConfig, Field(discriminator="type")] = field(
        default_factory=VPConfig
    )
    """The schedule that the weights know."""
    row: Annotated[PredictNoiseConfig | PredictVConfig | PredictCleanConfig, Field(discriminator="type")] = field(
        default_factory=PredictNoiseConfig
    )
    """What the network gives there."""


ParameterizationConfig = Annotated[
    PredictNoiseConfig
    | PredictCleanConfig
    | PredictVConfig
    | PredictVelocityConfig
    | KarrasConfig
    | ConsistencyKarrasConfig
    | ConvertedConfig,
    Field(discriminator="type"),
]


@dataclass(frozen=True, kw_only=True)
class UniformConfig:
    """Times uniform over the schedule."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Uniform"] = "Uniform"


@dataclass(frozen=True, kw_only=True)
class LogNormalConfig:
    """Noise levels log-normal: EDM's law."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["LogNormal"] = "LogNormal"
    mean: float = -1.2
    """Mean of ln t."""
    std: Annotated[float, Field(gt=0)] = 1.2
    """Standard deviation of ln t."""


@dataclass(frozen=True, kw_only=True)
class LogitNormalConfig:
    """Times logit-normal on (0, 1)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["LogitNormal"] = "LogitNormal"
    mean: float = 0.0
    """Mean of ln(t / (1 - t))."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of ln(t / (1 - t))."""


@dataclass(frozen=True, kw_only=True)
class UShapedConfig:
    """Times in [0, 1], more of them near both ends: 2-RF++'s law."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["UShaped"] = "UShaped"
    a: Annotated[float, Field(ge=0, le=100)] = 4.0
    """How much denser the ends are than the middle: cosh(a / 2) times; 0 is uniform."""
    rim: Annotated[float, Field(ge=0, lt=0.5)] = 1e-5
    """Distance that all times keep from 0 and 1."""


TimesConfig = Annotated[
    UniformConfig | LogNormalConfig | LogitNormalConfig | UShapedConfig, Field(discriminator="type")
]


@dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """LPIPS of VGG-16 with average pooling, on images enlarged to 224x224."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["VGG"] = "VGG"
    weights: str = ""
    """File of torchvision's VGG-16; "" looks for vgg16-397923af.pth in torch's hub cache."""


@dataclass(frozen=True, kw_only=True)
class PackagedConfig:
    """The small network for losses on grey digits that comes with genflow."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Packaged"] = "Packaged"
    name: Literal["digits", "mnist5k"] = "digits"
    """The images it was trained on; any size will do."""


PerceptualConfig = Annotated[VGGConfig | PackagedConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class SquaredL2Config:
    """Mean of the squared error."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["SquaredL2"] = "SquaredL2"


@dataclass(frozen=True, kw_only=True)
class L1Config:
    """Mean of the error's absolute values."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["L1"] = "L1"


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Euclidean norm of the error of an image: ECT's."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Norm"] = "Norm"


@dataclass(frozen=True, kw_only=True)
class PseudoHuberConfig:
    """(sqrt(|error|^2 + k^2) - k) / D^divisor_power with k = c D^c_power, of images of D values."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["PseudoHuber"] = "PseudoHuber"
    c: Annotated[float, Field(gt=0)] = 0.00054
    """Where the square turns into the absolute value."""
    c_power: NonNegative = 1.0
    """How that grows with D: 1 in 2-RF++, 0.5 in iCT."""
    divisor_power: NonNegative = 1.0
    """How the value is scaled: 1 in 2-RF++ (a mean), 0 in iCT (a sum)."""


@dataclass(frozen=True, kw_only=True)
class LPIPSConfig:
    """Perceptual distance of the clean image."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["LPIPS"] = "LPIPS"
    perceptual: PerceptualConfig = field(default_factory=VGGConfig)
    """The network that perceives."""
    divide_by_t: bool = False
    """Divide it by t."""


@dataclass(frozen=True, kw_only=True)
class LPIPSHuberConfig:
    """2-RF++'s metric: (1 - t) pseudo-Huber + perceptual distance of the clean image."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["LPIPSHuber"] = "LPIPSHuber"
    perceptual: PerceptualConfig = field(default_factory=VGGConfig)
    """The network that perceives."""
    huber: PseudoHuberConfig = field(default_factory=PseudoHuberConfig)
    """The pseudo-Huber part."""
    divide_by_t: bool = False
    """Divide the perceptual distance by t (configuration F of the paper; E does not)."""


MetricConfig = Annotated[
    SquaredL2Config | L1Config | NormConfig | PseudoHuberConfig | LPIPSConfig | LPIPSHuberConfig,
    Field(discriminator="type"),
]


@dataclass(frozen=True, kw_only=True)
class RawResidualConfig:
    """Error of the raw output: EDM's weighting with Karras, DDPM's with PredictNoise."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Raw"] = "Raw"


@dataclass(frozen=True, kw_only=True)
class VelocityResidualConfig:
    """Error of the velocity, whatever the network gives."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Velocity"] = "Velocity"


ResidualConfig = Annotated[RawResidualConfig | VelocityResidualConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class RegressionConfig:
    """Diffusion and rectified flow: regression of the network's output."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    type: Literal["Regression"] = "Regression"
    times: TimesConfig = field(default_factory=UniformConfig)
    """The law of training times."""
    residual: ResidualConfig = field(default_factory=RawResidualConfig)
    """What the error is an error of."""
    metric: MetricConfig = field(default_factory=SquaredL2Config)
    """How the error becomes one number."""
    label_dropout: Share = 0.1
    """Share of labels replaced by "no class", which guidance needs."""
