"""Pairs of seeds: the noise of a seed, and the image that a teacher's flow carries it to."""

from __future__ import annotations

import math
from typing import Any

from genflow.cli.pair_options import SOLVERS, Make, PairsArguments, Unit, said_of, teacher_shape
from genflow.data.pair_files import Manifest
from genflow.denoiser import Denoiser
from genflow.sampling.generate import choose_times, generate, list_labels, network_calls
from genflow.sampling.noise import random_class
from genflow.schedules import VE

DEFAULT_NUM = 10_000
PAPER_STEPS = 18  # of heun from an EDM teacher: 35 calls


def from_seeds(teacher: Denoiser, options: PairsArguments) -> tuple[Manifest, Make]:
    """Return what these options make of a teacher, and who makes a unit of it.

    Raises ``ValueError`` for teachers of latents or without a solver, for labels that they have not, and for what
    ``generate`` refuses.
    """
    if not math.isfinite(options.guidance):
        raise ValueError(f"--guidance must be finite, got {options.guidance}")
    shape, labels = teacher_shape(teacher), _rule(teacher, options)
    sampler, steps = choose_solver(teacher, options.sampler, options.steps)
    made: dict[str, Any] = {
        "teacher": said_of(teacher),
        "sampler": sampler,
        "steps": steps,
        "times": choose_times(teacher, steps, None, sampler).tolist(),
        "network_calls": network_calls(sampler, steps),
        "guidance": options.guidance,
        "labels": labels,
    }
    manifest = Manifest.of_seeds(
        made=made,
        image_shape=shape,
        num_classes=0 if labels == "none" else teacher.num_classes,
        first_seed=options.first_seed,
        count=DEFAULT_NUM if options.num is None else options.num,
    )
    return manifest, lambda seeds: _draw(teacher, manifest, seeds)


def _draw(teacher: Denoiser, manifest: Manifest, seeds: range) -> Unit:
    made, labels = manifest.made, _labels(manifest, seeds)
    images = generate(
        teacher,
        seeds,
        labels=labels,
        sampler=made["sampler"],
        times=made["times"],
        guidance=made["guidance"],
        batch_size=len(seeds),
    )
    return Unit(images.cpu().numpy(), labels or [0] * len(seeds), None)


def choose_solver(teacher: Denoiser, sampler: str, steps: int) -> tuple[str, int]:
    """Return the solver and its number of steps; for a default sampler and 0 steps those that suit the teacher.

    On VE that is heun with 18 steps, or the model's if it wants more: 35 calls, as 2-RF++ makes its pairs for CIFAR-10
    (79 for ImageNet; arXiv 2405.20320, appendix). Otherwise it is the model's own sampler.

    Raises ``ValueError`` if that does not solve the teacher's flow.
    """
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
    rule = "random" if options.labels == "auto" else options.labels
    if isinstance(rule, tuple):
        rule = list_labels(teacher, rule, len(rule)) or "random"
    if teacher.num_classes == 0:
        rule = "none"
    if rule == "random" and len(teacher.classes) < teacher.num_classes:
        have = " ".join(map(str, teacher.classes))
        raise ValueError(f"this teacher has lost some of its classes: give --labels {have}, those that it has")
    if rule == "none" and options.guidance != 1:
        advice = (
            "leave it out, or give --labels random" if teacher.num_classes else "this teacher has none, leave it out"
        )
        raise ValueError(f"--guidance {options.guidance:g} needs classes: {advice}")
    return rule


def _labels(manifest: Manifest, seeds: range) -> list[int] | None:
    match manifest.made["labels"]:
        case "none":
            return None
        case "random":
            return [random_class(seed, manifest.num_classes) for seed in seeds]
        case classes:
            return [classes[seed % len(classes)] for seed in seeds]
