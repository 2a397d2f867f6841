"""Pairs of real images: each with the noise that a teacher's flow carries it back to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genflow.cli.model_images import own_labels, read_for
from genflow.cli.pair_options import Make, PairsArguments, Unit, said_of, teacher_shape
from genflow.data.images import ImageData
from genflow.data.pair_files import Manifest
from genflow.denoiser import Denoiser
from genflow.sampling.inversion import inversion_calls, invert, rising_times
from genflow.sampling.noise import GENERATOR

PAPER_CALLS = 128


def from_images(teacher: Denoiser, options: PairsArguments) -> tuple[Manifest, Make]:
    """Return what these options make of a teacher and images, and who makes a unit of it.

    The default solver is heun in 64 steps: 2-RF++ takes 128 network calls, and does not say of what solver
    (arXiv 2405.20320, section 4.4). Heun's 64 steps cost as much and follow the flow more closely: of Gaussian data of
    std 0.5 on ``VE`` the noise comes out 0.3 % too short instead of 2.2 %.

    Raises ``ValueError`` for teachers of latents, for options of pairs of seeds, for images or labels that do not fit
    the teacher, for more pairs than there are images, and for what ``invert`` refuses.
    """
    shape = teacher_shape(teacher)
    _check_options(options)
    sampler = "heun" if options.sampler == "default" else options.sampler
    steps = options.steps or (PAPER_CALLS if sampler == "euler" else PAPER_CALLS // 2)
    calls = inversion_calls(teacher.schedule, sampler, steps)
    times = rising_times(teacher.schedule, steps).tolist()
    data = read_for(teacher, options.model, options.invert, "train", options.data)
    count = len(data) if options.num is None else options.num
    if count > len(data):
        raise ValueError(f"--num is {count}, and {data.name} has {len(data)} images: ask for as many, or leave it out")
    labels = None if options.labels == "none" else own_labels(teacher, data)
    made: dict[str, Any] = {
        "teacher": said_of(teacher),
        "images": {"fingerprint": data.fingerprint, "count": len(data)},
        "sampler": sampler,
        "steps": steps,
        "times": times,
        "network_calls": calls,
        "blend": {"time": times[0], "generator": GENERATOR},
        "labels": "none" if labels is None else "the images' own",
    }
    classes = 0 if labels is None else teacher.num_classes
    manifest = Manifest.of_images(made=made, image_shape=shape, num_classes=classes, count=count)
    return manifest, lambda numbers: _invert(teacher, made, data, labels, numbers)


def _invert(teacher: Denoiser, made: dict[str, Any], data: ImageData, labels: list[int] | None, numbers: range) -> Unit:
    there = np.arange(numbers.start, min(numbers.stop, len(data)))  # the last unit ends where the images do
    images = np.asarray(data.images[there])
    given = None if labels is None else [labels[k] for k in there.tolist()]
    noise = invert(
        teacher,
        torch.from_numpy(images),
        seeds=there.tolist(),
        labels=given,
        sampler=made["sampler"],
        times=made["times"],
        batch_size=len(there),
    )
    stored = noise.cpu().numpy().astype(np.float16)
    if not np.isfinite(stored).all():
        worst = there[~np.isfinite(stored).reshape(len(there), -1).all(1)][0]
        raise ValueError(
            f"the noise of image {worst} of {data.name} is not finite in 16 bits: this teacher has no flow"
        )
    return Unit(images, given or [0] * len(there), stored)


def _check_options(options: PairsArguments) -> None:
    """Refuse what goes with pairs of seeds only."""
    unlike = {
        "--first-seed": options.first_seed != 0,
        "--guidance": options.guidance != 1,
        "--labels random, or of classes,": options.labels not in ("auto", "none"),
    }
    given = [name for name, is_given in unlike.items() if is_given]
    if given:
        raise ValueError(f"{given[0]} goes with pairs of seeds, and --invert asks for those of images: leave it out")
