"""``genflow demo-reflow``: a rectified flow made straight, on a CPU."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from genflow.build import build_trainer
from genflow.cli.demo import DemoArguments, bar, real_rows
from genflow.cli.models import choose_device, load_model
from genflow.cli.pairs import pairs
from genflow.cli.train import check_resume
from genflow.config_files import find_recipe, load_config, override, parse_arguments
from genflow.denoiser import Denoiser
from genflow.evaluation.embedded import Embedded
from genflow.evaluation.measurement import RANGES, Measured
from genflow.evaluation.straightness import straightness
from genflow.evaluation.trajectory_picture import PATHS, draw
from genflow.files import write_text
from genflow.pictures import grid, write_image
from genflow.sampling.generate import generate

PAIRS = 20_000
STEPS = (1, 2, 32)
ABOUT = (
    "Train rectified flow on embedded digits, make pairs with it, train 2-RF++ on them, then sample both in one step,"
    " measure and draw. Takes the model of genflow demo, if that is there, and leaves one for it if not."
)


def demo_reflow(arguments: Sequence[str], *, prog: str = "genflow demo-reflow") -> None:
    """Train a rectified flow and its 2-RF++; sample both with 1, 2 and 32 steps, measure, draw."""
    options = parse_arguments(DemoArguments, arguments, prog=prog, about=ABOUT)
    chosen = ["--out", options.out, "--seed", str(options.seed)]
    first = override(load_config(find_recipe("demo")), chosen, prog=prog, about=ABOUT)
    folder = Path(options.out) / "demo-pairs"
    second = override(load_config(find_recipe("demo-reflow")), chosen, prog=prog, about=ABOUT)
    second = replace(second, init=str(first.folder / "model"), data=replace(second.data, path=str(folder)))
    device, times = choose_device("auto"), [time.perf_counter()]
    print(f"1/4  rectified flow: {first.train.steps} steps of {first.train.batch_size} images of {first.data.path}")
    check_resume(first)
    before = load_model(str(build_trainer(first).fit()), device)
    times.append(time.perf_counter())
    print(f"2/4  pairs: {PAIRS} times noise, and the image that the flow carries it to")
    pairs([str(first.folder), "--num", str(PAIRS), "--out", str(folder)])
    times.append(time.perf_counter())
    print(f"3/4  2-RF++: {second.train.steps} steps of {second.train.batch_size} pairs")
    check_resume(second)
    after = load_model(str(build_trainer(second).fit()), device)
    times.append(time.perf_counter())
    print(f"4/4  sampling {RANGES} times as many images as are held out, by both; measuring and drawing")
    models = {"before": before, "after": after}
    report = _report(models, Embedded.load("digits", device), second.folder, times)
    write_text(second.folder / "report.md", report)
    print("\n" + report)
    print(f"{second.folder / 'report.md'} shows this with the pictures; {second.folder / 'model'} is the model")


def _report(models: dict[str, Denoiser], digits: Embedded, folder: Path, times: Sequence[float]) -> str:
    """Measure and draw both models, and return the figures and pictures as Markdown."""
    took = [f"{after - before:.0f} s" for before, after in itertools.pairwise(times)]
    lines = [
        "# Rectified flow on handwritten digits, made straight",
        "",
        f"Fréchet distance between {len(digits.held_out)} samples and as many held-out images, in the features of a"
        f" frozen classifier; mean of {RANGES} ranges of seeds. Euler's rule. Straightness is the mean square by which"
        " velocities stray from the straight line, the gap that between images of 1 and 32 steps of the same seed, in"
        f" [-1, 1]. Rectified flow took {took[0]}, {PAIRS} pairs {took[1]}, 2-RF++ {took[2]}.",
        "",
        "| model | network calls | distance | over floor | memorising ratio | asked class | straightness | gap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, model in models.items():
        flow = straightness(model, range(256))
        tail = f"{flow.straightness.value:.4f} | {flow.one_step_gap.value:.4f} |"
        for steps in STEPS:
            result = digits.measure(model, steps=steps, sampler="euler", progress=bar(f"{name}, {steps} steps"))
            lines.append(f"| {_title(name)} | {steps} | {_row(result)} | {tail if steps == 1 else '| |'}")
            images = generate(
                model, range(80), labels=[k % 10 for k in range(80)], steps=steps, sampler="euler", batch_size=80
            )
            write_image(folder / f"{name}-{steps}.png", grid(images.cpu(), 10, scale=6))
    lines.append(f"| real images | | {digits.beside.floor.value:.3f} | 1 x | 1 | | | |")
    write_image(folder / "real.png", grid(real_rows(digits.held_out), 10, scale=6))
    write_image(folder / "paths.png", draw({_title(name): model for name, model in models.items()}, range(PATHS)))
    lines += ["", "The memorising ratio is the distance to the nearest training image over that of held-out images."]
    for name in models:
        lines += [f"\n{_title(name)}, steps: {steps}\n\n![{name}]({name}-{steps}.png)" for steps in STEPS]
    return "\n".join([*lines, "\n![the paths of noise to image](paths.png)", "\n![real images](real.png)"]) + "\n"


def _row(result: Measured) -> str:
    return (
        f"{result.figures['fd'].value:.3f} | {result.over_floor:.2f} x | {result.figures['memorising'].value:.2f} |"
        f" {result.figures['accuracy'].value:.1%}"
    )


def _title(name: str) -> str:
    return "rectified flow" if name == "before" else "2-RF++"
