"""``genflow pairs``: from a teacher, of seeds or of real images, to reflow pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from genflow.cli.cautions import caution_of_flow
from genflow.cli.image_pairs import from_images
from genflow.cli.models import join_processes, load_model
from genflow.cli.pair_options import Make, PairsArguments, Unit
from genflow.cli.seed_pairs import from_seeds
from genflow.cli.sides import ReadingArguments
from genflow.config_files import parse_arguments
from genflow.data.images import EMBEDDED
from genflow.data.pair_files import MANIFEST, Manifest, begin, finish, lacking, write_manifest, write_shard
from genflow.files import check_place, remove_partials
from genflow.units import UNIT

ABOUT = (
    "Make reflow pairs: the noise of a seed, and the image that a teacher's flow carries it to; or, by --invert, real"
    " images and the noise that it carries them back to, which is stored with them in 16 bits. Train on them by"
    " --data.path PAIRS."
)


def pairs(arguments: Sequence[str], *, prog: str = "genflow pairs") -> None:
    """Write pairs of noise and image; the same command again makes only what is missing."""
    options = parse_arguments(PairsArguments, arguments, prog=prog, about=ABOUT)
    if options.num is not None and options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    if not options.invert and options.data != ReadingArguments():
        raise ValueError("--data options say how the images of --invert are read: leave them out, or give images")
    if options.out in EMBEDDED:
        raise ValueError(f"{options.out} names an embedded set, which would hide this folder: give another --out")
    check_place(Path(options.out) / MANIFEST)
    team = join_processes(options.device)
    teacher = load_model(options.model, team.device)
    if team.rank == 0:
        caution_of_flow(options.model, teacher)
    folder = Path(options.out)
    asked, make = from_images(teacher, options) if options.invert else from_seeds(teacher, options)
    manifest = begin(folder, asked)
    if team.rank == 0:
        write_manifest(folder, manifest)
    wanted = team.share(lacking(folder, manifest) if team.rank == 0 else [])
    made = manifest.made
    how = f"{made['sampler']}, {made['steps']} steps, {made['network_calls']} calls"
    if team.count > 1:
        how += f", process 1 of {team.count}"
    total = sum(len(manifest.seeds(number)) for number in wanted)
    with tqdm(total=total, unit="pair", desc=how, delay=0.1, disable=team.rank > 0) as bar:
        for number in wanted:
            _make(folder, manifest, number, make, bar)
    team.wait()
    if team.rank == 0:
        remove_partials(folder)
        finish(folder, manifest)
        calls = f"{made['network_calls']} network calls each"
        print(f"{folder}: {manifest.count} pairs, {calls}; train on them by --data.path {folder}")


def _make(folder: Path, manifest: Manifest, number: int, make: Make, bar: tqdm[Any]) -> None:
    """Write one shard: its units are made in full, and what is over at either end is cut."""
    asked = manifest.seeds(number)
    first = asked[0] // UNIT
    units: list[Unit] = []
    for unit in range(first, asked[-1] // UNIT + 1):
        seeds = range(unit * UNIT, (unit + 1) * UNIT)
        units.append(make(seeds))
        bar.update(len(range(max(seeds[0], asked[0]), min(seeds[-1], asked[-1]) + 1)))
    start = asked[0] - first * UNIT
    part = slice(start, start + len(asked))
    images = np.concatenate([unit.images for unit in units])[part]
    labels = np.concatenate([unit.labels for unit in units])[part]
    noise = [unit.noise for unit in units if unit.noise is not None]
    write_shard(folder, asked, images, labels, np.concatenate(noise)[part] if noise else None)
