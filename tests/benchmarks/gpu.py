"""Training and sampling speed on a CUDA GPU, in slices.

    python tests/benchmarks/gpu.py

One slice stops before ``--budget-seconds`` have passed; the same command goes on with the rows that are missing, until
it says that all are there. Rows are kept in ``--out``, one line of JSON each (delete a line to measure it anew), and
the tables are written beside it.

- Training: whole steps of the Trainer (batch to the device, noise, losses, gradients, masked fused Adam, averaged
  weights, log sums) on random images in memory, in bf16 autocast, with and without torch.compile.
- Share of peak: FLOPs of the forward and backward pass alone (2 per multiply-add, attention as matrix products, nothing
  else of the step) over what the device is sold with, dense bf16, and over a large bf16 matrix product measured here.
- Sampling: ``genflow.generate`` with Heun in bf16 autocast, the seeded noise made on the host included.
- Processes: the same step, the same batch per process, over several GPUs (NCCL) beside one.

Batches are the largest of 64 to 1024 that fit. Times are medians over repeats between CUDA events, after warm-up.
``--device cpu --tiny`` runs every line, in seconds with TORCH_COMPILE_DISABLE=1, and measures nothing of interest.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genflow.build import build_denoiser, build_objective
from genflow.config import (
    Config,
    DiTConfig,
    KarrasConfig,
    LinearConfig,
    LogNormalConfig,
    OptimConfig,
    PredictVelocityConfig,
    RegressionConfig,
    TrainConfig,
    UNetConfig,
    VEConfig,
)
from genflow.files import write_text
from genflow.nn.dit import dit_preset
from genflow.objectives.base import Batch
from genflow.sampling.generate import generate, network_calls
from genflow.training.trainer import Trainer, make_accelerator

OUT = Path(__file__).parent / "results" / "gpu.jsonl"
# dense bf16 TFLOP/s of the makers' data sheets, by the exact name that torch gives; others are left blank
PEAKS = {
    "NVIDIA H200": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L40S": 362,
    "NVIDIA GeForce RTX 4090": 165,
}
NOT_RUN = "not run on a GPU yet"
PATIENCE = 60  # seconds after which nothing is repeated a fourth time


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network and the method that it is trained with."""

    name: str
    shape: tuple[int, int, int]
    backbone: UNetConfig | DiTConfig
    classes: int = 0

    def config(self, out: str, **train: Any) -> Config:
        method: dict[str, Any] = {"schedule": LinearConfig(), "parameterization": PredictVelocityConfig()}
        if isinstance(self.backbone, UNetConfig):
            method = {"schedule": VEConfig(), "parameterization": KarrasConfig()}
            method["objective"] = RegressionConfig(times=LogNormalConfig())
        compiled = train.pop("compile", False)
        train = {"steps": 1_000_000, "mixed_precision": "bf16"} | train
        optim = OptimConfig(lr=1e-4, clip=1.0)
        return Config(
            out=out, compile=compiled, backbone=self.backbone, optim=optim, train=TrainConfig(**train), **method
        )


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    networks: tuple[Network, ...]
    batches: tuple[int, ...]
    warmup: int
    repeats: int
    inner: int
    matmul: int


def full() -> Effort:
    cifar = Network(name="DDPM++ UNet 32x32x3", shape=(3, 32, 32), backbone=UNetConfig())
    size = dit_preset("B")
    transformers = [
        Network(
            name=f"DiT-B/{patch} 32x32x4",
            shape=(4, 32, 32),
            backbone=DiTConfig(patch_size=patch, width=size["width"], depth=size["depth"], heads=size["heads"]),
            classes=1000,
        )
        for patch in (2, 4)
    ]
    batches = (1024, 512, 256, 128, 64)
    return Effort(networks=(cifar, *transformers), batches=batches, warmup=5, repeats=7, inner=5, matmul=8192)


def tiny() -> Effort:
    unet = UNetConfig(width=16, multipliers=(1,), blocks=1, attention=(8,))
    dit = DiTConfig(patch_size=4, width=16, depth=1, heads=2)
    networks = (
        Network(name="UNet 8x8x3", shape=(3, 8, 8), backbone=unet),
        Network(name="DiT 8x8x4", shape=(4, 8, 8), backbone=dit, classes=3),
    )
    return Effort(networks=networks, batches=(4, 2), warmup=1, repeats=2, inner=1, matmul=64)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of the tables, and the seconds to allow for it."""

    kind: Literal["matmul", "train", "sample", "processes"]
    seconds: float
    network: Network | None = None
    compiled: bool = False
    steps: int = 0
    processes: int = 1

    @property
    def name(self) -> str:
        parts = [self.kind, self.network.name if self.network else "", "compiled" if self.compiled else ""]
        parts += [f"{self.steps} steps" if self.steps else "", f"x{self.processes}" if self.processes > 1 else ""]
        return ", ".join(filter(None, parts))


def rows(effort: Effort, processes: int) -> list[Row]:
    """All rows, those first that others look up."""
    found = [Row(kind="matmul", seconds=20)]
    for network in effort.networks:
        found += [Row(kind="train", network=network, seconds=100)]
        found += [Row(kind="train", network=network, compiled=True, seconds=240)]
        found += [Row(kind="sample", network=network, steps=steps, seconds=120) for steps in (1, 2, 18)]
    if processes > 1:
        found += [Row(kind="processes", network=n, processes=processes, seconds=150) for n in effort.networks]
    return found


# Measuring


def clock(device: torch.device) -> Callable[[], float]:
    """Begin to measure, and return a function that ends it and gives the seconds, by the device's own clock."""
    if device.type != "cuda":
        started = time.perf_counter()
        return lambda: time.perf_counter() - started
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()

    def seconds() -> float:
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000

    return seconds


def timed(action: Callable[[int], object], device: torch.device, effort: Effort) -> float:
    """Return the median seconds of ``action(number)`` after warm-up, over three repeats at least."""
    numbers = itertools.count()
    once = 0.0
    for _ in range(effort.warmup):
        stop = clock(device)
        action(next(numbers))
        once = stop()
    inner = max(1, min(effort.inner, int(1 / once)))
    seconds: list[float] = []
    while len(seconds) < effort.repeats and (len(seconds) < 3 or sum(seconds) * inner < PATIENCE):
        stop = clock(device)
        for _ in range(inner):
            action(next(numbers))
        seconds.append(stop() / inner)
    return statistics.median(seconds)


def largest_batch(batches: Sequence[int], attempt: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``attempt`` gives for the first of ``batches``, in falling order, that fits into memory."""
    for batch in batches:
        try:
            return {"batch": batch, **attempt(batch)}
        except torch.OutOfMemoryError:
            pass  # what the attempt held is let go only once its traceback is
        _free()
    raise RuntimeError(f"not even a batch of {batches[-1]} fits into memory")


def _free() -> None:
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def make_trainer(network: Network, batch: int, folder: str, *, compiled: bool = False, processes: int = 1) -> Trainer:
    """A trainer on ``batch`` random images a process, which lie in memory."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    config = network.config(folder, compile=compiled, batch_size=batch * processes)
    accelerator = make_accelerator(config)
    objective = build_objective(config, build_denoiser(config, network.shape, network.classes))
    images = torch.randint(256, (batch, *network.shape), dtype=torch.uint8)
    labels = torch.randint(network.classes, (batch,)) if network.classes else None
    index = torch.arange(batch)
    return Trainer(objective, lambda number: (images, labels, index), config, accelerator=accelerator)


def train(network: Network, batches: Sequence[int], compiled: bool, effort: Effort) -> dict[str, Any]:
    def attempt(batch: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(network, batch, folder, compiled=compiled)
            device = trainer.accelerator.device
            seconds = timed(trainer._step, device, effort)
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        return {"images_per_second": batch / seconds, "peak_memory": memory, "parameters": _size(trainer.objective)}

    return largest_batch(batches, attempt) | {"flops_per_image": flops_per_image(network)}


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def flops_per_image(network: Network, count: int = 2) -> int:
    """FLOPs of the forward and backward pass for one image, counted on the CPU."""
    config = network.config("")
    objective = build_objective(config, build_denoiser(config, network.shape, network.classes))
    labels = torch.zeros(count, dtype=torch.int64) if network.classes else None
    batch = Batch.draw(torch.randn(count, *network.shape), labels, torch.arange(count))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused kernels hide theirs on a CPU
        objective(batch, 0).mean().backward()
    return counter.get_total_flops() // count


def sample(network: Network, steps: int, device: torch.device, effort: Effort) -> dict[str, Any]:
    denoiser = build_denoiser(network.config(""), network.shape, network.classes)
    nn.Module.to(denoiser, device)

    def attempt(batch: int) -> dict[str, Any]:
        labels = [k % network.classes for k in range(batch)] if network.classes else None

        def once(number: int) -> None:
            seeds = range(number * batch, (number + 1) * batch)
            generate(denoiser, seeds, labels=labels, sampler="heun", steps=steps, batch_size=batch)

        with torch.autocast(device.type, torch.bfloat16):
            seconds = timed(once, device, effort)
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        return {"images_per_second": batch / seconds, "peak_memory": memory}

    return largest_batch(effort.batches, attempt)


def matmul(device: torch.device, effort: Effort) -> dict[str, Any]:
    n = effort.matmul
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return {"size": n, "tflops": 2 * n**3 / timed(lambda number: a @ b, device, effort) / 1e12}


def processes(row: Row, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Launch this file once a process, and return the rate of all together."""
    assert row.network is not None
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(row.processes)]
    command += [__file__, "--worker", row.network.name, "--batch", str(batch), "--device", options.device]
    done = subprocess.run(
        [*command, *(["--tiny"] if options.tiny else [])], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "Error" in line]
        raise RuntimeError(said[0] if said else f"the processes ended with code {done.returncode}")
    return {"batch": batch, **json.loads(done.stdout.strip().splitlines()[-1])}


def work(network: Network, batch: int, effort: Effort) -> None:
    """What each of several processes does; the first one tells the rate."""
    count = int(os.environ["WORLD_SIZE"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(network, batch, folder, processes=count)
        seconds = timed(trainer._step, trainer.accelerator.device, effort)
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        print(json.dumps({"images_per_second": count * batch / seconds}), flush=True)
    torch.distributed.destroy_process_group()


def measure(row: Row, records: dict[str, Any], effort: Effort, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one row, or why there are none."""
    device = torch.device(options.device)
    _free()
    eager = records.get(Row(kind="train", network=row.network, seconds=0).name, {})
    fitting = [batch for batch in effort.batches if batch <= eager.get("batch", effort.batches[0])]
    try:
        match row:
            case Row(kind="matmul"):
                return matmul(device, effort)
            case Row(kind="train", network=Network() as network):
                return train(network, fitting, row.compiled, effort)
            case Row(kind="sample", network=Network() as network):
                return sample(network, row.steps, device, effort)
            case _:
                return processes(row, fitting[0], options)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"failed": str(error).strip().splitlines()[0][:200]}


# The tables


def table(records: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown of the rows that there are."""
    where = next(iter(records.values()), {"device": NOT_RUN, "torch": "-"})
    measured = records.get("matmul", {}).get("tflops")
    training, sampling, several = [], [], []
    for name, r in records.items():
        _, network, *rest = [*name.split(", "), ""]
        if "failed" in r:
            training.append(f"| {name} | | | | | | | failed: {r['failed']} | |")
        elif name.startswith("train"):
            tflops = r["images_per_second"] * r["flops_per_image"] / 1e12
            shares = [f"{tflops / peak:.1%}" if peak else "" for peak in (PEAKS.get(where["device"]), measured)]
            training.append(
                f"| {network} | {r['parameters']:,} | {'yes' if 'compiled' in rest else 'no'} | {r['batch']} |"
                f" {r['images_per_second']:,.0f} | {_gib(r)} | {tflops:.1f} | {shares[0]} | {shares[1]} |"
            )
        elif name.startswith("sample"):
            steps = int(rest[0].split()[0])
            calls = network_calls("heun", steps)
            sampling.append(
                f"| {network} | {steps} ({calls}) | {r['batch']} | {r['images_per_second']:,.0f} | {_gib(r)} |"
            )
        elif name.startswith("processes"):
            count = int(rest[0].removeprefix("x"))
            one = records.get(f"train, {network}", {}).get("images_per_second")
            share = f"{r['images_per_second'] / one / count:.1%}" if one else ""
            several.append(f"| {network} | {count} | {r['batch']} | {r['images_per_second']:,.0f} | {share} |")
    product = f", a bf16 matrix product reaches {measured:.0f} TFLOP/s" if measured else ""
    lines = [
        "# Speed on a GPU",
        "",
        f"Device: {where['device']}{product}; torch {where['torch']}. bf16 autocast, one GPU unless said otherwise;"
        " `tests/benchmarks/gpu.py` says what is measured. Made by `python tests/benchmarks/gpu.py`, repeated until it"
        " says that all rows are there.",
        "",
        "| training | parameters | compiled | batch | images/s | peak memory, GiB | TFLOP/s | of device peak |"
        " of matrix product |",
        "|---|---|---|---|---|---|---|---|---|",
        *(training or [f"| {NOT_RUN} | | | | | | | | |"]),
    ]
    if sampling:
        lines += [
            "",
            "| sampling, Heun | steps (calls) | batch | images/s | peak memory, GiB |",
            "|---|---|---|---|---|",
        ]
        lines += sampling
    if several:
        lines += ["", "| processes | GPUs | batch on each | images/s | of linear |", "|---|---|---|---|---|", *several]
    return "\n".join(lines) + "\n"


def _gib(record: dict[str, Any]) -> str:
    return f"{record['peak_memory'] / 2**30:.1f}" if record["peak_memory"] else ""


def read(out: Path) -> dict[str, dict[str, Any]]:
    """Return the finished rows by name."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    return {record.pop("name"): record for record in map(json.loads, lines)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="rows that are finished; the tables lie beside it")
    parser.add_argument("--budget-seconds", type=float, default=500, help="begin no row that may end after this")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand weights")
    parser.add_argument("--processes", type=int, default=min(2, torch.cuda.device_count()), help="1 leaves them out")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: there is no CUDA GPU here; --device cpu --tiny tries the script out", file=sys.stderr)
        return 2
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    effort = tiny() if options.tiny else full()
    if options.worker:
        work(next(n for n in effort.networks if n.name == options.worker), options.batch, effort)
        return 0
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    where = {"device": name, "torch": torch.__version__}
    records = read(options.out)
    strange = [r for r in records.values() if where.items() - r.items()]
    if strange:
        there = f"{strange[0]['device']} with torch {strange[0]['torch']}"
        print(f"gpu.py: {options.out} holds rows of {there}, this is {name}: give another --out", file=sys.stderr)
        return 2
    missing = [row for row in rows(effort, options.processes) if row.name not in records]
    for number, row in enumerate(missing):
        elapsed = time.perf_counter() - started
        if number > 0 and elapsed + row.seconds > options.budget_seconds:
            print(f"stopped after {elapsed:.0f} s with {len(missing) - number} rows to go: the same command again")
            return 0
        began = time.perf_counter()
        record = where | measure(row, records, effort, options) | {"seconds": time.perf_counter() - began}
        records[row.name] = record
        write_text(options.out, "".join(json.dumps({"name": k, **r}) + "\n" for k, r in records.items()))
        write_text(options.out.with_suffix(".md"), table(records))
        print(row.name, {k: v for k, v in record.items() if k not in where}, flush=True)
    print(f"all {len(records)} rows are there: {options.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
