"""What the class gate costs: a training step with mixed classes, and sampling from a model merged for one class.

    python tests/benchmarks/kind_step.py

One process, one thread, CPU time, medians of alternating turns. Training: loss, gradients and Adam on a batch of ten
classes in equal parts, by a DiT decomposed into learngenes and ten tailors; beside it the same factorised network with
as many active components and no gate, and the dense network. Sampling: a forward pass of the network merged for one
class and of the dense network it came from, which are made of the same modules. Writes results/kind_step.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from loop import seconds
from torch import Tensor, nn

from genflow.kind import Decomposed, KINDConfig, decompose, merge
from genflow.nn import DiT

RESULTS = Path(__file__).parent / "results"
CLASSES = 10
LEARNGENES = 0.27
PAIRS = 15


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and a batch: `sides` of the images, which are cut into patches of 2."""

    width: int
    depth: int
    side: int
    batch_size: int

    def __str__(self) -> str:
        return f"width {self.width}, {self.depth} blocks, {(self.side // 2) ** 2} tokens, batch {self.batch_size}"


CASES = (
    Case(width=192, depth=4, side=8, batch_size=32),
    Case(width=192, depth=4, side=8, batch_size=128),
    Case(width=192, depth=4, side=16, batch_size=128),
    Case(width=384, depth=4, side=8, batch_size=128),
    Case(width=384, depth=4, side=16, batch_size=50),
)


def networks(case: Case) -> tuple[Decomposed, Decomposed, DiT]:
    """Return a gated network, one without a gate and as many active components, and the dense one of both."""
    dense = DiT(
        image_size=(case.side, case.side), in_channels=1, num_classes=CLASSES,
        width=case.width, depth=case.depth, heads=case.width // 32,
    )  # fmt: skip
    fixed = int(LEARNGENES * case.width)
    rank = (case.width - fixed) // CLASSES
    gated = KINDConfig(class_to_tailor=tuple(range(CLASSES)), learngenes=LEARNGENES, tailor_rank=rank)
    plain = KINDConfig(class_to_tailor=(-1,) * CLASSES, learngenes=(fixed + rank) / case.width)
    return decompose(dense, gated), decompose(dense, plain), dense


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, times and labels, of every class as many."""
    labels = torch.arange(case.batch_size) % CLASSES
    return torch.randn(case.batch_size, 1, case.side, case.side), torch.rand(case.batch_size), labels


def training(network: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    """Return a training step."""
    adam = torch.optim.Adam(network.parameters(), fused=True)
    goal = torch.randn_like(given[0])

    def step() -> None:
        adam.zero_grad()
        (network(*given) - goal).square().mean().backward()
        adam.step()

    return step


def sampling(network: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    """Return a forward pass."""

    def step() -> None:
        with torch.no_grad():
            network(*given)

    return step


def medians(actions: list[Callable[[], None]]) -> list[float]:
    """Return the median CPU milliseconds of actions that take turns."""
    taken: list[list[float]] = [[] for _ in actions]
    for _ in range(PAIRS + 3):
        for times, action in zip(taken, actions, strict=True):
            times.append(1000 * seconds(action))
    return [statistics.median(times[3:]) for times in taken]


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# What the class gate costs",
        "",
        f"CPU milliseconds on one thread, medians of {PAIRS} alternating turns. A training step with {CLASSES} classes"
        " mixed in a batch, beside the same factorised network with as many active components and no gate, and the"
        " dense one; a forward pass of the network merged for one class beside the dense one. Made by"
        " `python tests/benchmarks/kind_step.py`.",
        "",
        "| DiT | step: gated | no gate | ratio | dense | pass: merged | dense | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        torch.manual_seed(0)
        gated, plain, dense = networks(case)
        given = inputs(case)
        merged = merge(gated, 3)
        alone = (given[0], given[1], torch.full_like(given[2], 3))
        step, fixed, whole = medians([training(network, given) for network in (gated, plain, dense)])
        one, other = medians([sampling(network.eval(), alone) for network in (merged, dense)])
        lines.append(
            f"| {case} | {step:.0f} | {fixed:.0f} | **{step / fixed:.2f}** | {whole:.0f}"
            f" | {one:.1f} | {other:.1f} | **{one / other:.2f}** |"
        )
        print(lines[-1], flush=True)
    (RESULTS / "kind_step.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
