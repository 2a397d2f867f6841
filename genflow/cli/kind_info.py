"""``genflow kind info``: what the parts of a decomposed model cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from genflow.cli.kind_models import aligned, listed, load_decomposed
from genflow.config_files import parse_arguments
from genflow.kind import Cost, Decomposed, Departure, departures, extract, info


@dataclass(frozen=True, kw_only=True)
class InfoArguments:
    """What ``genflow kind info`` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A decomposed model: a run's folder, a saved model, or a hub repository."""


def show_info(arguments: Sequence[str], *, prog: str = "genflow kind info") -> None:
    """Print what a model's parts cost, and how far its learngenes are from orthonormal."""
    options = parse_arguments(
        InfoArguments,
        arguments,
        prog=prog,
        about="Parameters, multiply-adds of one image with one tailor on, and bytes in a file, by part: learngenes are"
        " on for every class, a tailor for its own; shared is all the rest, which is dense. Example: genflow kind info"
        " runs/tiny-kind",
    )
    denoiser, model = load_decomposed(options.model)
    print(f"{options.model}: {listed(denoiser.classes)}; {_structure(model)}")
    channels, height, width = denoiser.image_shape
    shape = (channels, height, width)
    found = info(model, shape)
    parts = {"learngenes": found.learngenes, "tailors": found.tailors, "label rows": found.rows, "shared": found.shared}
    rows = [("part", "parameters", "MACs an image", "bytes stored")]
    rows += [_row(name, cost) for name, cost in (parts | {"total": found.total}).items()]
    if len(denoiser.classes) > 1:
        owners = (c for c in denoiser.classes if model.gate.class_to_tailor[c] >= 0)  # others have no tailor to count
        one = next(owners, denoiser.classes[0])
        rows.append(_row(f"class {one} alone", info(extract(model, [one]), shape).total))
    print("\n".join(aligned(rows)))
    print(_orthogonality(departures(model)))


def _structure(model: Decomposed) -> str:
    layout = model.layout()
    fixed, ranks = (sorted({pair[k] for pair in layout.ranks.values()}) for k in (0, 1))
    count = len(model.gate.tailors)
    tailors = f"{count} tailor{'s' * (count != 1)} of rank {_span(ranks)}" if count else "no tailors"
    return f"{len(layout.ranks)} kernels of {_span(fixed)} learngenes and {tailors}"


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _row(name: str, cost: Cost) -> tuple[str, str, str, str]:
    return (name, f"{cost.parameters:,}", f"{cost.macs:,}", f"{cost.stored:,}")


def _orthogonality(found: dict[str, Departure]) -> str:
    """Say how far learngenes are from orthonormal, on average and where most."""
    name, worst = max(found.items(), key=lambda pair: max(pair[1].u, pair[1].v))
    u, v = (sum(values) / len(found) for values in zip(*((d.u, d.v) for d in found.values()), strict=True))
    return (
        f"learngenes from orthonormal, |U^T U - I| and |V V^T - I| (Frobenius): {u:.3g} and {v:.3g} on average, at most"
        f" {worst.u:.3g} and {worst.v:.3g} in {name}"
    )
