"""What the training loop costs beside the network.

    python tests/benchmarks/loop.py

One process, one thread, CPU time. A whole step of the trainer (batch, noise, losses, gradients, clipping, masked
optimiser step, averaged weights, log sums) and the bare forward and backward pass of the same network on a batch of
the same size alternate; the overhead is the difference of the medians over the whole step. Writes results/loop.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from genflow.build import build_trainer
from genflow.config_files import find_recipe, load_config, override
from genflow.objectives.base import Batch

RESULTS = Path(__file__).parent / "results"
CASES = [
    ("UNet 8x8, tiny-edm", "tiny-edm", 32, "no"),
    ("UNet 8x8, tiny-edm", "tiny-edm", 128, "no"),
    ("UNet 8x8, tiny-edm", "tiny-edm", 128, "bf16"),
    ("DiT 8x8, tiny-dit", "tiny-dit", 128, "no"),
]
PAIRS = 25


def measure(recipe: str, batch_size: int, precision: str) -> tuple[float, float]:
    """Return the median CPU seconds of a whole step and of the bare passes."""
    AcceleratorState._reset_state(True)
    with tempfile.TemporaryDirectory() as folder:
        chosen = ["--out", folder, "--train.batch-size", str(batch_size), "--train.mixed-precision", precision]
        config = override(load_config(find_recipe(recipe)), chosen, prog="loop.py", about="")
        trainer = build_trainer(config)
        denoiser = trainer.objective.denoiser
        images, labels, index, _ = trainer.loader(0)
        batch = Batch.draw(images / 127.5 - 1, labels, index)
        c_noise = torch.rand(batch_size)

        def bare() -> None:
            denoiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                raw = denoiser.backbone(batch.x, c_noise, batch.y)
            (raw.float() - batch.noise).square().mean().backward()

        whole, passes = [], []
        for step in range(PAIRS + 3):
            whole.append(seconds(lambda step=step: trainer._step(step)))
            passes.append(seconds(bare))
    return statistics.median(whole[3:]), statistics.median(passes[3:])


def seconds(action: Callable[[], None]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# The training loop beside the network",
        "",
        "CPU milliseconds of a step on one thread, medians of alternating pairs."
        " Made by `python tests/benchmarks/loop.py`.",
        "",
        "| network | batch | precision | forward and backward | whole step | overhead of the loop |",
        "|---|---|---|---|---|---|",
    ]
    for name, recipe, batch_size, precision in CASES:
        whole, bare = measure(recipe, batch_size, precision)
        lines.append(
            f"| {name} | {batch_size} | {'fp32' if precision == 'no' else precision} | {1000 * bare:.1f} |"
            f" {1000 * whole:.1f} | {(whole - bare) / whole:.1%} |"
        )
        print(lines[-1], flush=True)
    (RESULTS / "loop.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
