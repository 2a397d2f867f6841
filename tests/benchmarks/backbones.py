"""Training speed of genflow's backbones against their nearest relatives in diffusers.

    python tests/benchmarks/backbones.py

One process, one thread, CPU time of this process only. A step of ours and one of theirs alternate,
so that whatever else the machine does touches both; figures are medians, and the ratios compare
times of one run. A whole step is forward, mean squared error, backward, fused AdamW and an update
of the averaged weights: `torch._foreach_lerp_` here, diffusers' EMAModel (its faster `foreach`
form) there. Dropout, width, depth and attention resolutions are the same on both sides. What
differs: diffusers' UNet has attention in every decoder block of a level, its DiT owns a time MLP
and a label table in each block.

Writes the table it prints to tests/benchmarks/results/backbones.md. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from genflow.nn import DiT, UNet

RESULTS = Path(__file__).parent / "results" / "backbones.md"
CLASSES = 10
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One pair of equal networks and the batch they are trained on."""

    name: str
    batch: int
    shape: tuple[int, int, int]
    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]


def unet_case(
    *,
    batch: int,
    shape: tuple[int, int, int],
    width: int,
    multipliers: tuple[int, ...],
    blocks: int,
    attention: int,
) -> Case:
    """A UNet of ours and diffusers' UNet2DModel with the same levels."""
    channels, size, _ = shape
    attend = [size >> level == attention for level in range(len(multipliers))]

    def ours() -> nn.Module:
        return UNet(
            image_size=shape[1:],
            in_channels=channels,
            num_classes=CLASSES,
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=(attention,),
            dropout=0.13,
        )

    def theirs() -> nn.Module:
        down, up = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
        return UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(width * m for m in multipliers),
            layers_per_block=blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else down for a in attend),
            up_block_types=tuple("AttnUpBlock2D" if a else up for a in attend[::-1]),
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=None,
            dropout=0.13,
            num_class_embeds=CLASSES + 1,
        )

    levels = ", ".join(str(width * m) for m in multipliers)
    name = f"UNet {size}x{size}x{channels}, ({levels}) x {blocks}, attention at {attention}"
    return Case(name=name, batch=batch, shape=shape, ours=ours, theirs=theirs)


def dit_case(*, batch: int, shape: tuple[int, int, int], width: int, depth: int, heads: int, patch: int) -> Case:
    """A DiT of ours and diffusers' DiTTransformer2DModel of the same width and depth."""
    channels, size, _ = shape

    def ours() -> nn.Module:
        return DiT(
            image_size=shape[1:],
            in_channels=channels,
            num_classes=CLASSES,
            patch_size=patch,
            width=width,
            depth=depth,
            heads=heads,
        )

    def theirs() -> nn.Module:
        return DiTTransformer2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            patch_size=patch,
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            num_layers=depth,
            num_embeds_ada_norm=CLASSES,
        )

    name = f"DiT {size}x{size}x{channels}, {width} x {depth}, patch {patch}"
    return Case(name=name, batch=batch, shape=shape, ours=ours, theirs=theirs)


CASES = (
    unet_case(batch=128, shape=(1, 8, 8), width=32, multipliers=(1, 2), blocks=1, attention=4),
    unet_case(batch=16, shape=(3, 32, 32), width=32, multipliers=(1, 2, 2), blocks=1, attention=8),
    unet_case(batch=2, shape=(3, 32, 32), width=64, multipliers=(1, 2, 2), blocks=2, attention=16),
    dit_case(batch=128, shape=(1, 8, 8), width=64, depth=4, heads=4, patch=2),
    dit_case(batch=16, shape=(3, 32, 32), width=192, depth=6, heads=3, patch=4),
)


class Contestant:
    """A network with its optimizer and averaged weights; `step` times one training step."""

    def __init__(self, network: nn.Module, predict: Predict, average: Callable[[], None]) -> None:
        self.network = network.train()
        self.predict = predict
        self.average = average
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.network.parameters())

    def step(self, x: Tensor, c: Tensor, y: Tensor, target: Tensor, bf16: bool) -> tuple[float, float]:
        """CPU seconds of forward and backward, and of the whole step."""
        start = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            raw = self.predict(x, c, y)
        F.mse_loss(raw.float(), target).backward()
        middle = time.process_time()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average()
        return middle - start, time.process_time() - start


def our_side(network: nn.Module) -> Contestant:
    """Our network with averaged weights kept by one fused call."""
    weights = list(network.parameters())
    averaged = [p.detach().clone() for p in weights]

    def average() -> None:
        with torch.no_grad():
            torch._foreach_lerp_(averaged, weights, 1e-3)

    return Contestant(network, network, average)


def their_side(network: nn.Module) -> Contestant:
    """A diffusers network with diffusers' EMAModel."""
    ema = EMAModel(network.parameters(), decay=0.999, foreach=True)

    def predict(x: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return network(x, timestep=c, class_labels=y).sample

    return Contestant(network, predict, lambda: ema.step(network.parameters()))


def run_case(case: Case, *, bf16: bool, seconds: float) -> str:
    """Measure one pair and return its row of the table."""
    torch.manual_seed(0)
    ours, theirs = our_side(case.ours()), their_side(case.theirs())
    x, target = torch.randn(2, case.batch, *case.shape)
    c, y = torch.randn(case.batch), torch.randint(0, CLASSES, (case.batch,))
    for side in (ours, theirs, ours, theirs):
        side.step(x, c, y, target, bf16)
    times: list[tuple[tuple[float, float], tuple[float, float]]] = []
    end = time.process_time() + seconds
    while len(times) < 7 or time.process_time() < end:
        times.append((ours.step(x, c, y, target, bf16), theirs.step(x, c, y, target, bf16)))
    passes = [statistics.median(t[side][0] for t in times) for side in (0, 1)]
    wholes = [statistics.median(t[side][1] for t in times) for side in (0, 1)]
    return (
        f"| {case.name} | {'bf16' if bf16 else 'fp32'} | {case.batch} "
        f"| {ours.parameters:,} | {theirs.parameters:,} "
        f"| {case.batch / wholes[0]:,.0f} | {case.batch / wholes[1]:,.0f} "
        f"| {passes[1] / passes[0]:.2f} | **{wholes[1] / wholes[0]:.2f}** |"
    )


def main() -> None:
    """Run all cases, print the table and write it to the results folder."""
    parser = argparse.ArgumentParser(description="Training speed against diffusers.")
    parser.add_argument("--seconds", type=float, default=15.0, help="CPU seconds for each row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Backbones: training speed against diffusers",
        "",
        "Images per CPU-second of a whole training step, and ratios (above 1: ours is faster) of",
        "forward + backward and of the whole step. What is measured: `tests/benchmarks/backbones.py`.",
        "",
        f"{platform.processor() or platform.machine()}, one thread; torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}.",
        "",
        "| network | precision | batch | parameters | diffusers' | images/s | diffusers' "
        "| ratio, passes | ratio, step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for case in CASES:
        for bf16 in (False, True):
            lines.append(run_case(case, bf16=bf16, seconds=arguments.seconds))
            print(lines[-1], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
