"""``genflow kind extract, grow, recombine, merge``: from decomposed models to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import torch
import tyro

from genflow.cli.kind_models import check_out, listed, load_decomposed, numbers, parameters, write_model
from genflow.config_files import parse_arguments
from genflow.denoiser import Denoiser
from genflow.kind import add_tailors, extract, merge, recombine, remove_tailors

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Out = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True, kw_only=True)
class ExtractArguments:
    """What ``genflow kind extract`` takes."""

    model: Model
    """A decomposed model: a run's folder, a saved model, or a hub repository."""
    classes: str
    """Classes to keep, such as 3,7."""
    max_params: int = 0
    """Leave out the learngenes that matter least until the model has no more parameters; 0 keeps them all."""
    out: Out
    """Folder for the model."""


def extract_classes(arguments: Sequence[str], *, prog: str = "genflow kind extract") -> None:
    """Write the model of some classes: all that is shared, and their tailors and label rows."""
    options = parse_arguments(
        ExtractArguments,
        arguments,
        prog=prog,
        about="Keep some classes of a decomposed model. Nothing is trained: their images stay bit for bit what they"
        " were, unless --max-params leaves out learngenes too. Classes keep their numbers, and others are refused from"
        " then on. Example: genflow kind extract runs/tiny-kind --classes 3,5 -o small/",
    )
    check_out(options.out)
    classes = numbers(options.classes)
    if options.max_params < 0:
        raise ValueError(f"--max-params must be positive, or 0 for all, got {options.max_params}")
    denoiser, model = load_decomposed(options.model)
    small = denoiser.around(extract(model, classes, max_params=options.max_params or None))
    write_model(small, options.out)
    print(
        f"{options.out}: {listed(small.classes)} of {len(denoiser.classes)}, {parameters(small):,} of"
        f" {parameters(denoiser):,} parameters; next: genflow sample {quote(str(options.out))}"
    )


@dataclass(frozen=True, kw_only=True)
class GrowArguments:
    """What ``genflow kind grow`` takes."""

    model: Model
    """A decomposed model: a run's folder, a saved model, or a hub repository."""
    classes: int
    """How many new classes."""
    rank: int = 0
    """Components of a new tailor in each kernel; 0 is as many as tailors have. Others go with --drop only."""
    init: Literal["random", "silent"] = "random"
    """New tailors change the kernels at once, or only after the first step (a scale of 0)."""
    scale: float = 0.3
    """Size of the sigmas of random tailors, as a share of the learngenes' mean in the same kernel."""
    drop: bool = False
    """Remove the old classes with their tailors first: learngenes alone go on to the new classes."""
    seed: int = 0
    """Seed of the new tailors."""
    out: Out
    """Folder for the model."""


def grow(arguments: Sequence[str], *, prog: str = "genflow kind grow") -> None:
    """Write a model with new classes, whose tailors are yet to be trained."""
    options = parse_arguments(
        GrowArguments,
        arguments,
        prog=prog,
        about="Give a decomposed model new classes, each with a random tailor and the label row of no class. Their"
        " labels follow those there are; with --drop they begin at 0. What is written is to be trained, by a recipe"
        ' with [surgery] type = "Transfer". Example: genflow kind grow runs/tiny-kind --classes 4 --drop -o grown/',
    )
    check_out(options.out)
    if options.rank < 0:
        raise ValueError(f"--rank must be at least 1, or 0 for that of the tailors there are, got {options.rank}")
    if not 0 <= options.seed < 2**64:
        raise ValueError(f"--seed must be in [0, 2^64), got {options.seed}")
    denoiser, model = load_decomposed(options.model)
    grown = denoiser.around(
        add_tailors(
            remove_tailors(model) if options.drop else model,
            options.classes,
            rank=options.rank or None,
            init=options.init,
            scale=options.scale,
            generator=torch.Generator().manual_seed(options.seed),
        )
    )
    write_model(grown, options.out)
    print(f"{options.out}: {listed(grown.classes)}, {parameters(grown):,} parameters, the new ones untrained")
    print(f"next: genflow train tiny-kind-transfer --init {quote(str(options.out))}, or a recipe made after it")


@dataclass(frozen=True, kw_only=True)
class RecombineArguments:
    """What ``genflow kind recombine`` takes."""

    parts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PART")]
    """Decomposed models that share their learngenes: runs' folders, saved models, hub repositories."""
    out: Out
    """Folder for the model."""


def recombine_parts(arguments: Sequence[str], *, prog: str = "genflow kind recombine") -> None:
    """Write one model with the classes of several."""
    options = parse_arguments(
        RecombineArguments,
        arguments,
        prog=prog,
        about="Put parts of one decomposed model together again, such as genflow kind extract writes, or those of"
        " one grown model that were extracted and trained apart with learngenes frozen. What they share must be equal,"
        " bit for bit."
        " Example: genflow kind recombine threes/ sevens/ -o both/",
    )
    check_out(options.out)
    loaded = [load_decomposed(part) for part in options.parts]
    if len(loaded) < 2:
        raise ValueError(f"give two parts at least, got {len(loaded)}")
    first = loaded[0][0]
    for path, (other, _) in zip(options.parts, loaded, strict=True):
        _check_alike(first, other, path)
    whole = first.around(recombine([model for _, model in loaded]))
    write_model(whole, options.out)
    print(
        f"{options.out}: {listed(whole.classes)}, {parameters(whole):,} parameters; next: genflow sample"
        f" {quote(str(options.out))}"
    )


@dataclass(frozen=True, kw_only=True)
class MergeArguments:
    """What ``genflow kind merge`` takes."""

    model: Model
    """A decomposed model: a run's folder, a saved model, or a hub repository."""
    label: int
    """The class whose kernels are formed."""
    out: Out
    """Folder for the model."""


def merge_class(arguments: Sequence[str], *, prog: str = "genflow kind merge") -> None:
    """Write the dense model of one class."""
    options = parse_arguments(
        MergeArguments,
        arguments,
        prog=prog,
        about="Form the kernels of one class, W = sum of u sigma v over its components: a dense model of that class,"
        " made of the layers that the network had before it was decomposed. Guidance is not what it was, since"
        " no class now has these kernels too. Example: genflow kind merge runs/tiny-kind --label 3 -o three/",
    )
    check_out(options.out)
    denoiser, model = load_decomposed(options.model)
    if options.label not in denoiser.classes:
        raise ValueError(f"--label must be one of this model's {listed(denoiser.classes)}, got {options.label}")
    others = set(range(model.gate.num_classes)) - {options.label}
    alone = remove_tailors(model, others)
    dense = denoiser.around(alone).around(merge(alone, 0))
    write_model(dense, options.out)
    print(
        f"{options.out}: a dense {type(dense.backbone).__name__} of {parameters(dense):,} parameters, whose class 0 is"
        f" class {options.label}; next: genflow sample {quote(str(options.out))}"
    )


def _check_alike(one: Denoiser, other: Denoiser, path: str) -> None:
    """Refuse parts that read their networks differently."""
    for part in ("schedule", "parameterization", "image_shape"):
        if one.config[part] != other.config[part]:
            raise ValueError(f"these are not parts of one model: {path} has another {part.replace('_', ' ')}")
