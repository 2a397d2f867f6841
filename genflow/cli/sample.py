"""``genflow sample``: from seeds to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from genflow.config_files import parse_arguments
from genflow.files import check_place, remove_partials, write_text
from genflow.pictures import grid, read_image, write_image
from genflow.units import UNIT

if TYPE_CHECKING:
    from genflow.cli.models import Team

ABOUT = "Sample a model: one image per seed, the same image for the same seed."
MANIFEST = "samples.json"


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """What ``genflow sample`` takes."""

    model: Annotated[str, tyro.conf.Positional]
    """A saved model, a run's folder, or a hub repository."""
    out: str = "samples"
    """Folder for the images (SEED.png) and how they were made (samples.json); beside it, OUT-grid.png shows some."""
    num: int = 64
    """How many images."""
    first_seed: int = 0
    """The seed of the first image; the others follow it."""
    labels: tuple[int, ...] = ()
    """Classes, used in turn; by default all that the model has. The number of classes itself means "no class"."""
    steps: int = 0
    """Steps of the sampler; 0 is the model's default."""
    times: tuple[float, ...] = ()
    """The time grid itself instead of --steps, falling to 0: 80 0.821 0 are two steps of a consistency model."""
    sampler: Literal["default", "euler", "heun", "dpmpp_2m", "ancestral", "multistep", "straight", "straight_heun"] = (
        "default"
    )
    """Sampler."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    guidance_interval: tuple[float, float] | None = None
    """Lowest and highest noise level at which guidance acts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def sample(arguments: Sequence[str], *, prog: str = "genflow sample") -> None:
    """Write one PNG per seed; the same command again makes only what is missing."""
    options = parse_arguments(SampleArguments, arguments, prog=prog, about=ABOUT)
    _check_options(options)
    from genflow.cli.cautions import caution_of_solver, caution_of_straight, caution_of_times
    from genflow.cli.models import join_processes, load_model, picture_shape
    from genflow.denoiser import weights_hash
    from genflow.sampling.generate import choose_times, generate, list_labels, network_calls

    team = join_processes(options.device)
    denoiser = load_model(options.model, team.device)
    picture_shape(
        denoiser,
        'not pictures: draw them from Python by genflow.generate(model, seeds, output="float") and decode them with'
        " their autoencoder",
    )
    sampler = denoiser.sampler if options.sampler == "default" else options.sampler
    # refuses what cannot be before anything is written
    times = choose_times(denoiser, options.steps or None, options.times or None, sampler).tolist()
    steps = len(times) - 1
    list_labels(denoiser, options.labels or None, len(options.labels))  # as are labels that it has not
    classes = options.labels or denoiser.classes
    made = {
        "weights": weights_hash(denoiser),
        "sampler": sampler,
        "steps": steps,
        "times": times,
        "network_calls": network_calls(sampler, steps),
        "guidance": options.guidance,
        "guidance_interval": options.guidance_interval and list(options.guidance_interval),
        "labels": list(classes),
    }
    folder = Path(options.out)
    seeds = range(options.first_seed, options.first_seed + options.num)
    _check_folder(folder, seeds, made)
    if team.rank == 0:
        caution_of_straight(options.model, sampler, steps)
        caution_of_solver(options.model, denoiser, sampler, steps)
        caution_of_times(options.model, denoiser, times)

    def draw(wanted: list[int]) -> torch.Tensor:
        return generate(
            denoiser,
            wanted,
            labels=[classes[seed % len(classes)] for seed in wanted] if classes else None,
            times=times,
            sampler=sampler,
            guidance=options.guidance,
            guidance_interval=options.guidance_interval,
            batch_size=UNIT,
        ).cpu()

    how = f"{sampler}, {steps} steps, {made['network_calls']} calls"
    _draw_missing(folder, seeds, team, draw, json.dumps(made, indent=2) + "\n", how)
    team.wait()
    if team.rank == 0:
        picture = _finish(options.out, seeds, len(classes))
        print(f"{folder}: {options.num} images, {made['network_calls']} network calls each; look at {picture}")


def _finish(out: str, seeds: range, classes: int) -> str:
    """Clean the folder up, draw what it holds, and return the name of the picture."""
    remove_partials(Path(out))
    picture = f"{out.rstrip('/')}-grid.png"  # not among the samples, which people measure by the folder
    _show(Path(out), seeds[:UNIT], min(classes, 10) if classes > 1 else 8, picture)
    return picture


def _check_options(options: SampleArguments) -> None:
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    check_place(Path(options.out) / MANIFEST)


def _draw_missing(
    folder: Path, seeds: range, team: Team, draw: Callable[[list[int]], torch.Tensor], manifest: str, how: str
) -> None:
    """Draw the units of which images are missing, this process its share of them."""
    units: dict[int, list[int]] = {}
    for seed in seeds:
        units.setdefault(seed // UNIT, []).append(seed)
    lacking = [unit for unit, wanted in units.items() if not all(_file(folder, seed).is_file() for seed in wanted)]
    mine = team.share(lacking)
    total = sum(len(units[unit]) for unit in mine)
    if team.count > 1:
        how += f", process 1 of {team.count}"
    with tqdm(total=total, unit="img", desc=how, delay=0.1, disable=team.rank > 0) as bar:
        for wanted in (units[unit] for unit in mine):
            images = draw(wanted)
            write_text(folder / MANIFEST, manifest)
            for seed, image in zip(wanted, images, strict=True):
                if not _file(folder, seed).is_file():
                    write_image(_file(folder, seed), image)
            bar.update(len(wanted))


def _show(folder: Path, seeds: range, columns: int, picture: str) -> None:
    """Lay out the first images; those of other machines are there if the folder is shared."""
    files = [_file(folder, seed) for seed in seeds if _file(folder, seed).is_file()]
    images = torch.stack([read_image(file) for file in files])
    write_image(picture, grid(images, columns, scale=max(1, 48 // images.shape[-1])))


def _file(folder: Path, seed: int) -> Path:
    return folder / f"{seed:06d}.png"


def _check_folder(folder: Path, seeds: range, made: dict[str, object]) -> None:
    """Refuse to add images to a folder whose images were made in another way, or by nobody knows whom."""
    path = folder / MANIFEST
    if not path.is_file():
        foreign = next((_file(folder, seed) for seed in seeds if _file(folder, seed).exists()), None)
        if foreign is not None:
            raise ValueError(
                f"{foreign} is there already, and no {path.name} that says how it was made: give another --out"
            )
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in made if before[key] != made[key]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: give another --out folder") from None
    if other:
        raise ValueError(f"{folder} holds samples made with other {' and '.join(other)}: give another --out folder")
