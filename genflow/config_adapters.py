"""The part of a configuration that fits a trained network to new classes without KIND (see ``genflow.adapters``).

W is a kernel (m, n) of the network to start from, which stays as it is but where something else is said. All of these
train the label rows of the new classes too, and nothing else of the network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from genflow.config_method import STRICT, Positive

LINEARS = r"(.*\.)?(q|k|v|qkv|o|fc1|fc2)"  # the layers that KIND decomposes


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """Full fine-tuning: everything is trained, the row of "no class" included."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["FineTuning"] = "FineTuning"


@dataclass(frozen=True, kw_only=True)
class BitFitConfig:
    """BitFit: biases alone are trained (arXiv 2106.10199)."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["BitFit"] = "BitFit"
    biases: Pattern = r".*"
    """Regular expression that the whole name of a bias must match; the default trains all of them."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """LoRA: W + (alpha / rank) B A with B = 0 and A uniform at first (arXiv 2106.09685)."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["LoRA"] = "LoRA"
    rank: Positive = 8
    """Rank of the update."""
    alpha: Positive = 8
    """Scale of the update, times rank."""
    linears: Pattern = LINEARS
    """Regular expression that the whole name of a linear layer must match for it to be adapted."""


@dataclass(frozen=True, kw_only=True)
class ClassLoRAConfig:
    """LoRA for each class: W + (alpha / rank) B_y A_y, and W alone for no class."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["ClassLoRA"] = "ClassLoRA"
    rank: Positive = 4
    """Rank of the update of one class."""
    alpha: Positive = 4
    """Scale of the updates, times rank."""
    linears: Pattern = LINEARS
    """Regular expression that the whole name of a linear layer must match for it to be adapted."""


@dataclass(frozen=True, kw_only=True)
class PiSSAConfig:
    """PiSSA: (W - B A) + B A, where B A starts as the largest singular components of W (arXiv 2404.02948)."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["PiSSA"] = "PiSSA"
    rank: Positive = 8
    """Number of components."""
    linears: Pattern = LINEARS
    """Regular expression that the whole name of a linear layer must match for it to be adapted."""


@dataclass(frozen=True, kw_only=True)
class DoRAConfig:
    """DoRA: LoRA whose sum with W has rows of trained norms, those of W at first (arXiv 2402.09353)."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["DoRA"] = "DoRA"
    rank: Positive = 8
    """Rank of the update."""
    alpha: Positive = 8
    """Scale of the update, times rank."""
    linears: Pattern = LINEARS
    """Regular expression that the whole name of a linear layer must match for it to be adapted."""


@dataclass(frozen=True, kw_only=True)
class LoHaConfig:
    """LoHa: W + (alpha / rank) (B₁ A₁) ⊙ (B₂ A₂) with A₂ = 0 at first (FedPara, arXiv 2108.06098)."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["LoHa"] = "LoHa"
    rank: Positive = 4
    """Rank of each factor."""
    alpha: Positive = 4
    """Scale of the update, times rank."""
    linears: Pattern = LINEARS
    """Regular expression that the whole name of a linear layer must match for it to be adapted."""


@dataclass(frozen=True, kw_only=True)
class OFTConfig:
    """OFT: W times rotations of blocks of its inputs, (I + Q)(I - Q)⁻¹ with Q = 0 at first (arXiv 2306.07280)."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["OFT"] = "OFT"
    block_size: Positive = 32
    """Inputs that are rotated together, a divisor of n."""
    linears: Pattern = LINEARS
    """Regular expression that the whole name of a linear layer must match for it to be adapted."""


@dataclass(frozen=True, kw_only=True)
class IA3Config:
    """(IA)³: trained scales of the outputs of some layers and the inputs of others, 1 at first (arXiv 2205.05638)."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["IA3"] = "IA3"
    outputs: Pattern = r"(.*\.)?(k|v)"
    """Regular expression that the whole names of linear layers with scaled outputs match."""
    inputs: Pattern = r"(.*\.)?fc2"
    """The same of those with scaled inputs; there may be none."""


@dataclass(frozen=True, kw_only=True)
class TruncationConfig:
    """The largest singular components of W stay, the rest goes, and a random tailor for each class is trained.

    This is KIND's transfer from a network that was not trained for it.
    """

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Truncation"] = "Truncation"
    learngenes: Annotated[float, Field(gt=0, le=1)] = 0.27
    """Share of the components that stay."""
    tailor_rank: Positive = 4
    """Components of a tailor."""
    linears: Pattern = LINEARS
    """Regular expression that the whole name of a linear layer must match for it to be decomposed."""


AdapterConfig = (
    FineTuningConfig
    | BitFitConfig
    | LoRAConfig
    | ClassLoRAConfig
    | PiSSAConfig
    | DoRAConfig
    | LoHaConfig
    | OFTConfig
    | IA3Config
    | TruncationConfig
)
