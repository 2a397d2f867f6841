"""``genflow demo``: from nothing to figures and pictures, on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genflow.build import build_trainer
from genflow.cli.models import choose_device, load_model
from genflow.cli.train import check_resume
from genflow.config_files import find_recipe, load_config, override, parse_arguments
from genflow.data.images import ImageData
from genflow.denoiser import Denoiser
from genflow.evaluation.embedded import Embedded
from genflow.evaluation.measurement import RANGES, Measured
from genflow.files import write_text
from genflow.pictures import grid, write_image
from genflow.sampling.generate import generate, network_calls

STEPS = (1, 4, 32)


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """What ``genflow demo`` takes."""

    out: str = "runs"
    """Folder that holds the run demo/."""
    seed: int = 0
    """Seed of the training run."""


def demo(arguments: Sequence[str], *, prog: str = "genflow demo") -> None:
    """Train class-conditional rectified flow on embedded digits; sample with 1, 4 and 32 steps, measure, draw."""
    about = "Train rectified flow on embedded digits, then sample, measure and draw: a few minutes on two CPU cores."
    options = parse_arguments(DemoArguments, arguments, prog=prog, about=about)
    chosen = ["--out", options.out, "--seed", str(options.seed)]
    config = override(load_config(find_recipe("demo")), chosen, prog=prog, about=about)
    check_resume(config)
    print(f"1/3  training: {config.train.steps} steps of {config.train.batch_size} images of {config.data.path}")
    started = time.perf_counter()
    device = choose_device("auto")
    denoiser = load_model(str(build_trainer(config).fit()), device)
    trained = time.perf_counter()
    digits = Embedded.load("digits", device)
    count = len(digits.held_out)
    print(f"2/3  sampling {RANGES} times {count} images with each number of steps, and measuring")
    results = {steps: digits.measure(denoiser, steps=steps, progress=bar(f"{steps} steps")) for steps in STEPS}
    sampled = time.perf_counter()
    print("3/3  drawing")
    for steps in STEPS:
        images = generate(denoiser, range(80), labels=[seed % 10 for seed in range(80)], steps=steps).cpu()
        write_image(config.folder / f"samples-{steps}.png", grid(images, 10, scale=6))
    write_image(config.folder / "real.png", grid(real_rows(digits.held_out), 10, scale=6))
    report = _report(
        denoiser, results, count, f"trained in {trained - started:.0f} s, sampled in {sampled - trained:.0f} s"
    )
    write_text(config.folder / "report.md", report)
    print("\n" + report)
    print(f"{config.folder / 'report.md'} shows this with the pictures; {config.folder / 'model'} is the model")


def bar(name: str) -> Callable[[Iterable[int]], Iterable[int]]:
    """Return a progress bar of this name for measuring."""
    return lambda units: tqdm(units, desc=name, unit="unit", leave=False)


def real_rows(data: ImageData, rows: int = 8) -> Tensor:
    """Return the first images of every class, row after row."""
    assert data.labels is not None
    places = [np.flatnonzero(data.labels == label)[:rows] for label in range(data.num_classes)]
    return torch.from_numpy(data.images[np.stack(places, axis=1).ravel()])


def _report(denoiser: Denoiser, results: dict[int, Measured], count: int, times: str) -> str:
    """Return the figures as Markdown, each beside what real images score."""
    floor = next(iter(results.values())).figures["floor"].value
    sampler = denoiser.sampler
    lines = [
        "# Rectified flow on handwritten digits",
        "",
        f"Fréchet distance between {count} samples and {count} held-out images, in the features of a frozen"
        f" classifier; mean of {RANGES} ranges of seeds. Sampler {sampler}; {times}.",
        "",
        "| steps | network calls | distance | over floor | memorising ratio | asked class |",
        "|---|---|---|---|---|---|",
    ]
    for steps, result in results.items():
        lines.append(
            f"| {steps} | {network_calls(sampler, steps)} | {result.figures['fd'].value:.3f} |"
            f" {result.over_floor:.2f} x | {result.figures['memorising'].value:.2f} |"
            f" {result.figures['accuracy'].value:.1%} |"
        )
    lines.append(f"| real images | | {floor:.3f} | 1 x | 1 | |")
    lines += ["", "The memorising ratio is the distance to the nearest training image over that of held-out images."]
    pictures = [*(f"samples-{steps}" for steps in results), "real"]
    lines += [f"\n{name.replace('-', ', steps: ')}\n\n![{name}]({name}.png)" for name in pictures]
    return "\n".join(lines) + "\n"
