"""What ``genflow pairs`` takes, and what its two kinds of pairs have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tyro

from genflow.cli.models import picture_shape
from genflow.cli.sides import ReadingArguments
from genflow.denoiser import Denoiser, weights_hash

SOLVERS = ("euler", "heun", "dpmpp_2m")  # of the teacher's flow; others add noise, or solve straight flows only


@dataclass(frozen=True, kw_only=True)
class PairsArguments:
    """What ``genflow pairs`` takes."""

    model: Annotated[str, tyro.conf.Positional]
    """The teacher: a saved model, a run's folder, or a hub repository."""
    invert: str = ""
    """Images to pair with the noise that the teacher's flow carries them back to, instead of seeds: a folder, zip or
    .npz file, a data set hf:NAME, or an embedded set (its train split)."""
    out: str = "pairs"
    """Folder for the pairs; what is there already is kept, and a larger --num adds to it."""
    num: int | None = None
    """How many pairs; by default 10,000 of seeds (2-RF++ takes a million for CIFAR-10), or all images of --invert."""
    first_seed: int = 0
    """The seed of the first pair; the others follow it."""
    labels: tuple[int, ...] | Literal["auto", "random", "none"] = "auto"
    """random: any class, by the seed; none: without classes; or classes, used in turn; auto is random, and of images
    their own."""
    steps: int = 0
    """Steps of the solver; 0 is the model's default, and at least 18 (35 calls) of heun on schedule VE; for --invert,
    those of 128 calls, as in 2-RF++."""
    sampler: Literal["default", "euler", "heun", "dpmpp_2m"] = "default"
    """Solver; the default is the model's, and heun on schedule VE and for --invert."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none, as in the papers."""
    data: ReadingArguments = field(default_factory=ReadingArguments)
    """How the images of --invert are read; by default as the teacher's run read its own."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


class Unit(NamedTuple):
    """Pairs that were made together: images (N, C, H, W), labels (N,), and noise as images unless it is a seed's."""

    images: npt.NDArray[np.uint8]
    labels: Sequence[int]
    noise: npt.NDArray[np.floating] | None


Make = Callable[[range], Unit]


def said_of(teacher: Denoiser) -> dict[str, Any]:
    """Return which teacher it is, as the manifest holds it."""
    parts = ("network", "schedule", "parameterization")
    return {"weights": weights_hash(teacher)} | {part: teacher.config[part] for part in parts}


def teacher_shape(teacher: Denoiser) -> tuple[int, int, int]:
    """Return (C, H, W) of a teacher's pictures; ``ValueError`` if it draws none."""
    return picture_shape(teacher, "and pairs hold pictures of 8 bits: give a teacher of pictures")
