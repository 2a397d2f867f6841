"""``genflow straightness``: how straight the flows of models are, measured and drawn beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from genflow.config_files import parse_arguments

if TYPE_CHECKING:
    from genflow.data.pairs import PairData
    from genflow.denoiser import Denoiser

ABOUT = (
    "Measure how straight models carry noise to images, on any schedule, in the coordinates of the linear path."
    " straightness: the mean square of velocity minus that of the straight line, per value; 0 is straight, and then one"
    " step is as good as many. one-step gap: the mean square difference of images of one step and of all. noise,"
    " middle, images: the shares of straightness in the three thirds of the way. crossing, with --pairs: what the model"
    " gets wrong of the pairs' own straight lines, an upper bound of how much they cross."
)


@dataclass(frozen=True, kw_only=True)
class StraightnessArguments:
    """What ``genflow straightness`` takes."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL ...")]
    """Saved models, runs' folders or hub repositories: a teacher, its student, ..."""
    num: int = 256
    """How many seeds, and pairs: the same for every model."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    steps: int = 32
    """Equal steps of Euler's method from noise to image, one network call each; with more the figures rise a little."""
    pairs: str = ""
    """Folder of reflow pairs, for the crossing of its first --num pairs."""
    out: Path | None = None
    """JSON file for all figures and their course over time."""
    picture: Path | None = None
    """PNG file: paths of 16 seeds, and the clean images predicted along three of them, a card for each model."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def straightness(arguments: Sequence[str], *, prog: str = "genflow straightness") -> None:
    """Print a table of the models, one line each."""
    options = parse_arguments(StraightnessArguments, arguments, prog=prog, about=ABOUT)
    _check(options)
    from genflow.cli.cautions import caution_of_flow
    from genflow.cli.models import choose_device, load_model
    from genflow.data.pairs import load_pairs
    from genflow.evaluation.trajectory_picture import PATHS, draw
    from genflow.files import write_text
    from genflow.pictures import write_image

    pairs = load_pairs(options.pairs) if options.pairs else None
    device = choose_device(options.device)
    models = {name: load_model(name, device) for name in options.models}
    for name, model in models.items():
        caution_of_flow(name, model)
    seeds = range(options.first_seed, options.first_seed + options.num)
    picture = draw(models, seeds[:PATHS]) if options.picture is not None else None
    found = [_measure(name, model, seeds, options.steps, pairs) for name, model in models.items()]
    print(_table(found, crossing=pairs is not None))
    if options.out is not None:
        how = {"first_seed": options.first_seed, "num": options.num, "steps": options.steps, "pairs": options.pairs}
        write_text(options.out, json.dumps({**how, "models": found}, indent=2) + "\n")
    if options.picture is not None and picture is not None:
        write_image(options.picture, picture)
        print(f"look at {options.picture}")


def _check(options: StraightnessArguments) -> None:
    """Refuse what cannot be before models are loaded."""
    from genflow.denoiser import saved_in
    from genflow.files import check_place

    if not options.models:
        raise ValueError("no model: give at least one, a saved model, a run's folder or a hub repository")
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    if options.steps < 2:
        raise ValueError(f"--steps must be at least 2, got {options.steps}: in one step every path is straight")
    if not 0 <= options.first_seed <= 2**64 - options.num:
        raise ValueError(f"seeds must be in [0, 2^64), got --first-seed {options.first_seed} --num {options.num}")
    places = [saved_in(name.rstrip("/")).rstrip("/") for name in options.models]
    twice = next((name for n, name in enumerate(options.models) if places[n] in places[:n]), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice, and is the same model both times: name each once")
    for path in (options.out, options.picture):
        if path is not None:
            check_place(path)
    if options.picture is not None and options.picture.suffix.lower() != ".png":
        raise ValueError(f"--picture {options.picture} must end in .png: pictures are written as PNG, and nothing else")


def _measure(name: str, model: Denoiser, seeds: range, steps: int, pairs: PairData | None) -> dict[str, Any]:
    """Return what is found of one model, as it is written to JSON."""
    from genflow.denoiser import weights_hash
    from genflow.evaluation import straightness as flow
    from genflow.evaluation.crossing import crossing_of_pairs

    measured = flow.straightness(model, seeds, steps=steps)
    figures = {"straightness": measured.straightness, "one_step_gap": measured.one_step_gap}
    if pairs is not None:
        figures["crossing"] = crossing_of_pairs(model, pairs, len(seeds))
    return {
        "model": name,
        "weights": weights_hash(model),
        "schedule": model.config["schedule"]["class"],
        **{key: {"value": figure.value, "standard_error": figure.standard_error} for key, figure in figures.items()},
        "thirds": measured.thirds(),
        "times": measured.times,
        "profile": measured.profile,
    }


def _table(found: Sequence[dict[str, Any]], *, crossing: bool) -> str:
    """Return the figures with their standard errors, a line for each model, in Markdown whose columns line up."""
    columns = {"straightness": "straightness", "one_step_gap": "one-step gap"} | (
        {"crossing": "crossing"} if crossing else {}
    )
    rows = [["model", *columns.values(), "noise", "middle", "images"]]
    for record in found:
        figures = [_shown(**record[column]) for column in columns]
        rows.append([record["model"], *figures, *(f"{share:.0%}" for share in record["thirds"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))} |" for row in rows)


def _shown(value: float, standard_error: float | None) -> str:
    return f"{value:.4f}" if standard_error is None else f"{value:.4f} (s.e. {standard_error:.4f})"
