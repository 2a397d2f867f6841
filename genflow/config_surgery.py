"""The part of a configuration that changes a network before it is trained (see ``config`` and ``genflow.kind``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from genflow.config_adapters import LINEARS, AdapterConfig, Pattern
from genflow.config_method import STRICT


@dataclass(frozen=True, kw_only=True)
class IntactConfig:
    """The network is trained as it is built."""

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Intact"] = "Intact"


@dataclass(frozen=True, kw_only=True)
class KINDConfig:
    """KIND: kernels are decomposed into learngenes, for every class, and tailors, for some (arXiv 2408.07337).

    A fresh network is decomposed as it is drawn; with init, a dense model's weights are.
    """

    __pydantic_config__: ClassVar = STRICT
    type: Literal["KIND"] = "KIND"
    class_to_tailor: tuple[Annotated[int, Field(ge=-1)], ...] = ()
    """The tailor of each class, from 0; -1 is learngenes only. Classes may share one; () is one for each class."""
    learngenes: Annotated[float, Field(gt=0, le=1)] = 0.27
    """Share of a kernel's components that are learngenes."""
    tailor_rank: Annotated[int, Field(ge=0)] = 0
    """Components of a tailor; 0 shares out evenly what the learngenes leave."""
    linears: Pattern = LINEARS
    """Regular expression that the whole name of a linear layer must match for it to be decomposed."""
    order: Literal["descending", "interleaved"] = "descending"
    """Which singular values the learngenes get: the largest, or some of every size."""
    no_class: Literal["learngenes", "tailor"] = "learngenes"
    """What images of "no class" have, for guidance: learngenes only, or a tailor of their own too."""
    rescale: bool = True
    """Give the active components the norm of the kernel that was decomposed."""
    lazy_tailors: bool = False
    """Leave tailors and label rows of absent classes as they are; otherwise old momentum and decay move them."""


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """KIND's transfer: train a decomposed model, which init names, further; the run takes over its structure.

    New tailors come from ``genflow kind grow``.
    """

    __pydantic_config__: ClassVar = STRICT
    type: Literal["Transfer"] = "Transfer"
    trains: Literal["tailors", "learngenes", "all"] = "tailors"
    """Train the tailors and label rows alone, or only the learngenes and all else that is shared, or everything."""
    lazy_tailors: bool = False
    """Leave tailors and label rows of absent classes as they are; otherwise old momentum and decay move them."""


SurgeryConfig = Annotated[IntactConfig | KINDConfig | TransferConfig | AdapterConfig, Field(discriminator="type")]
