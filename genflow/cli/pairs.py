"""``genflow pairs``: from a teacher to reflow pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm

from genflow.config_files import parse_arguments

if TYPE_CHECKING:
    from genflow.data.pair_files import Manifest
    from genflow.denoiser import Denoiser

UNIT = 64  # consecutive seeds made together, always all of them: interruptions and --num leave no trace in files
SOLVERS = ("euler", "heun", "dpmpp_2m")  # of the teacher's flow; others add noise, or solve straight flows only
PAPER_STEPS = 18  # of heun from an EDM teacher: 35 calls


@dataclass(frozen=True, kw_only=True)
class PairsArguments:
    """What ``genflow pairs`` takes."""

    model: Annotated[str, tyro.conf.Positional]
    """The teacher: a saved model, a run's folder, or a hub repository."""
    out: str = "pairs"
    """Folder for the pairs; what is there already is kept, and a larger --num adds to it."""
    num: int = 10_000
    """How many pairs (2-RF++ takes a million for CIFAR-10)."""
    first_seed: int = 0
    """The seed of the first pair; the others follow it."""
    labels: tuple[int, ...] | Literal["random", "none"] = "random"
    """random: any class, by the seed; none: without classes; or classes, used in turn."""
    steps: int = 0
    """Steps of the solver; 0 is the model's default, and at least 18 (35 calls) of heun on schedule VE."""
    sampler: Literal["default", "euler", "heun", "dpmpp_2m"] = "default"
    """Solver; the default is the model's, and heun on schedule VE."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none, as in the papers."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def pairs(arguments: Sequence[str], *, prog: str = "genflow pairs") -> None:
    """Write pairs of noise and image; the same command again makes only what is missing."""
    options = parse_arguments(
        PairsArguments,
        arguments,
        prog=prog,
        about="Make reflow pairs: the noise of a seed, and the image that a teacher's flow carries it to. Train on them"
        " by --data.path PAIRS.",
    )
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    from genflow.cli.models import join_processes, load_model
    from genflow.data.pair_files import begin, finish, lacking, write_manifest
    from genflow.files import remove_partials

    team = join_processes(options.device)
    teacher = load_model(options.model, team.device)
    folder = Path(options.out)
    manifest = begin(folder, describe(teacher, options))
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
            _make(folder, manifest, number, teacher, bar)
    team.wait()
    if team.rank == 0:
        remove_partials(folder)
        finish(folder, manifest)
        calls = f"{made['network_calls']} network calls each"
        print(f"{folder}: {manifest.count} pairs, {calls}; train on them by --data.path {folder}")


def describe(teacher: Denoiser, options: PairsArguments) -> Manifest:
    """Return what these options make of a teacher.

    Raises ``ValueError`` for teachers of latents or without a solver, for labels that it has not, and for what
    ``generate`` refuses.
    """
    from genflow.cli.models import weights_hash
    from genflow.data.pair_files import Manifest
    from genflow.sampling.generate import choose_times, network_calls

    channels, height, width = teacher.image_shape
    if channels not in (1, 3):
        raise ValueError(
            f"this model draws latents of {channels} channels, and pairs hold pictures of 8 bits: give a"
            " teacher of pictures"
        )
    labels = _rule(teacher, options)
    sampler, steps = choose_solver(teacher, options.sampler, options.steps)
    made: dict[str, Any] = {
        "teacher": {"weights": weights_hash(teacher)}
        | {part: teacher.config[part] for part in ("network", "schedule", "parameterization")},
        "sampler": sampler,
        "steps": steps,
        "times": choose_times(teacher, steps, None).tolist(),
        "network_calls": network_calls(sampler, steps),
        "guidance": options.guidance,
        "labels": labels,
    }
    return Manifest.of_seeds(
        made=made,
        image_shape=(channels, height, width),
        num_classes=0 if labels == "none" else teacher.num_classes,
        first_seed=options.first_seed,
        count=options.num,
    )


def choose_solver(teacher: Denoiser, sampler: str, steps: int) -> tuple[str, int]:
    """Return the solver and its number of steps; for a default sampler and 0 steps those that suit the teacher.

    On VE that is heun with 18 steps, or the model's if it wants more: 35 calls, as 2-RF++ makes its pairs for CIFAR-10
    (79 for ImageNet; arXiv 2405.20320, appendix). Otherwise it is the model's own sampler.

    Raises ``ValueError`` if that does not solve the teacher's flow.
    """
    from genflow.schedules import VE

    if sampler == "default":
        sampler = "heun" if isinstance(teacher.schedule, VE) else teacher.sampler
    if sampler not in SOLVERS:
        raise ValueError(
            f"the model's sampler {sampler} does not follow the flow from a seed's noise to one image: give"
            f" --sampler {' or '.join(SOLVERS)}"
        )
    if steps == 0:
        steps = teacher.steps
        if isinstance(teacher.schedule, VE) and sampler == "heun":
            steps = max(PAPER_STEPS, steps) if teacher.sampler == "heun" else PAPER_STEPS
    return sampler, steps


def _rule(teacher: Denoiser, options: PairsArguments) -> str | list[int]:
    """Return the rule of labels; "none" for a teacher that has no classes."""
    if isinstance(options.labels, tuple):
        outside = [label for label in options.labels if not 0 <= label <= teacher.num_classes]
        if teacher.num_classes == 0:
            raise ValueError("this model has no classes: leave the labels out")
        if outside:
            raise ValueError(
                f"label {outside[0]} is out of range: this model has the classes 0 to {teacher.num_classes - 1}"
                f" ({teacher.num_classes} means none)"
            )
    rule = list(options.labels) if isinstance(options.labels, tuple) else options.labels
    rule = rule if teacher.num_classes else "none"
    if rule == "none" and options.guidance != 1:
        raise ValueError(f"--guidance {options.guidance:g} needs classes: leave it out, or give --labels random")
    return rule


def _make(folder: Path, manifest: Manifest, number: int, teacher: Denoiser, bar: tqdm[Any]) -> None:
    """Write one shard: its units are made in full, and what is over at either end is cut."""
    import torch

    from genflow.data.pair_files import write_shard
    from genflow.sampling.generate import generate

    asked, made = manifest.seeds(number), manifest.made
    first = asked[0] // UNIT
    images: list[torch.Tensor] = []
    for unit in range(first, asked[-1] // UNIT + 1):
        seeds = range(unit * UNIT, (unit + 1) * UNIT)
        drawn = generate(
            teacher,
            seeds,
            labels=_labels(manifest, seeds),
            sampler=made["sampler"],
            times=made["times"],
            guidance=made["guidance"],
            batch_size=UNIT,
        )
        images.append(drawn.cpu())
        bar.update(len(range(max(seeds[0], asked[0]), min(seeds[-1], asked[-1]) + 1)))
    start = asked[0] - first * UNIT
    pixels = torch.cat(images)[start : start + len(asked)].numpy()
    write_shard(folder, asked, pixels, _labels(manifest, asked) or [0] * len(asked))


def _labels(manifest: Manifest, seeds: range) -> list[int] | None:
    from genflow.sampling.noise import random_class

    match manifest.made["labels"]:
        case "none":
            return None
        case "random":
            return [random_class(seed, manifest.num_classes) for seed in seeds]
        case classes:
            return [classes[seed % len(classes)] for seed in seeds]
