"""What a step of consistency training costs beside two forward passes and one backward pass of its network.

    python tests/benchmarks/consistency_step.py

One process, one thread, CPU time. The loss of iCT with its gradients, a whole step of the trainer (batch, noise, loss,
gradients, RAdam, averaged weights, log sums), and the network alone (forward without gradients, forward, backward) on
a batch of the same size take turns; figures are medians. Writes results/consistency_step.md.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from loop import seconds

from genflow.build import build_trainer
from genflow.config_files import find_recipe, load_config, override

RESULTS = Path(__file__).parent / "results"
CASES = [("UNet 8x8, tiny-ict", "tiny-ict", 32), ("UNet 8x8, tiny-ict", "tiny-ict", 128), ("DiT 8x8", "tiny-dit", 128)]
TURNS = 25


def measure(network: str, batch_size: int) -> list[float]:
    """Return the median CPU seconds of the network alone, of the loss and of a whole step."""
    AcceleratorState._reset_state(True)
    with tempfile.TemporaryDirectory() as folder:
        chosen = ["--out", folder, "--train.batch-size", str(batch_size)]
        config = override(load_config(find_recipe("tiny-ict")), chosen, prog="consistency_step.py", about="")
        trainer = build_trainer(replace(config, backbone=load_config(find_recipe(network)).backbone))
        objective, denoiser = trainer.objective, trainer.objective.denoiser
        batch = trainer._batch(0)
        c_noise = torch.rand(batch_size)

        def alone() -> None:
            denoiser.zero_grad()
            with torch.no_grad():
                denoiser.backbone(batch.x, c_noise, batch.y)
            (denoiser.backbone(batch.x, c_noise, batch.y) - batch.noise).square().mean().backward()

        def loss() -> None:
            denoiser.zero_grad()
            objective(batch, 0).mean().backward()

        taken: list[list[float]] = [[], [], []]
        for turn in range(TURNS + 3):
            for times, action in zip(taken, (alone, loss, lambda: trainer._step(turn)), strict=True):  # noqa: B023
                times.append(seconds(action))
    return [statistics.median(times[3:]) for times in taken]


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# A step of consistency training beside its network",
        "",
        "CPU milliseconds on one thread, medians of alternating turns; ratios are to two forward passes and one"
        " backward pass of the network alone. Made by `python tests/benchmarks/consistency_step.py`.",
        "",
        "| network | batch | network alone | loss and gradients | ratio | whole step | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, network, batch_size in CASES:
        alone, loss, step = measure(network, batch_size)
        lines.append(
            f"| {name} | {batch_size} | {1000 * alone:.1f} | {1000 * loss:.1f} | **{loss / alone:.2f}** |"
            f" {1000 * step:.1f} | **{step / alone:.2f}** |"
        )
        print(lines[-1], flush=True)
    (RESULTS / "consistency_step.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
