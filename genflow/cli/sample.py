"""``genflow sample``: from seeds to files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from genflow.config_files import parse_arguments
from genflow.files import write_text
from genflow.pictures import grid, read_image, write_image

UNIT = 64  # consecutive seeds made together, always the same ones, so that interruptions leave no trace in the files


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
    """Classes, used in turn; by default all of the model's. The number of classes itself means "no class"."""
    steps: int = 0
    """Steps of the sampler; 0 is the model's default."""
    sampler: Literal["default", "euler", "heun", "dpmpp_2m", "ancestral"] = "default"
    """Sampler."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    guidance_interval: tuple[float, float] | None = None
    """Lowest and highest noise level at which guidance acts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def sample(arguments: Sequence[str], *, prog: str = "genflow sample") -> None:
    """Write one PNG per seed; the same command again makes only what is missing."""
    options = parse_arguments(
        SampleArguments,
        arguments,
        prog=prog,
        about="Sample a model: one image per seed, the same image for the same seed.",
    )
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    from genflow.cli.models import choose_device, load_model, weights_hash
    from genflow.sampling.generate import choose_times, generate, network_calls

    denoiser = load_model(options.model, choose_device(options.device))
    sampler = denoiser.sampler if options.sampler == "default" else options.sampler
    steps = options.steps or denoiser.steps
    choose_times(denoiser, steps, None)  # refuses what cannot be before anything is written
    classes = options.labels or tuple(range(denoiser.num_classes))
    made = {
        "weights": weights_hash(denoiser),
        "sampler": sampler,
        "steps": steps,
        "network_calls": network_calls(sampler, steps),
        "guidance": options.guidance,
        "guidance_interval": options.guidance_interval and list(options.guidance_interval),
        "labels": list(classes),
    }
    folder = Path(options.out)
    _check_manifest(folder / "samples.json", made)
    seeds = range(options.first_seed, options.first_seed + options.num)
    how = f"{sampler}, {steps} steps, {made['network_calls']} calls"
    with tqdm(total=options.num, unit="img", desc=how, delay=0.1) as bar:  # refusals come before the bar
        for unit in range(seeds.start // UNIT, (seeds.stop - 1) // UNIT + 1):
            wanted = [seed for seed in range(unit * UNIT, (unit + 1) * UNIT) if seed in seeds]
            missing = [seed for seed in wanted if not _file(folder, seed).is_file()]
            if missing:
                images = generate(
                    denoiser,
                    wanted,
                    labels=[classes[seed % len(classes)] for seed in wanted] if classes else None,
                    steps=steps,
                    sampler=sampler,
                    guidance=options.guidance,
                    guidance_interval=options.guidance_interval,
                    batch_size=UNIT,
                ).cpu()
                write_text(folder / "samples.json", json.dumps(made, indent=2) + "\n")
                for seed in missing:
                    write_image(_file(folder, seed), images[seed - wanted[0]])
            bar.update(len(wanted))
    first = torch.stack([read_image(_file(folder, seed)) for seed in seeds[:UNIT]])
    columns = min(len(classes), 10) if len(classes) > 1 else 8
    picture = f"{options.out.rstrip('/')}-grid.png"  # not among the samples, which people measure by the folder
    write_image(picture, grid(first, columns, scale=max(1, 48 // first.shape[-1])))
    print(f"{folder}: {options.num} images, {made['network_calls']} network calls each; look at {picture}")


def _file(folder: Path, seed: int) -> Path:
    return folder / f"{seed:06d}.png"


def _check_manifest(path: Path, made: dict[str, object]) -> None:
    """Refuse to add images to a folder whose images were made in another way."""
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key in made if before.get(key) != made[key]]
    if other:
        raise ValueError(
            f"{path.parent} holds samples made with other {' and '.join(other)}: give another --out folder"
        )
