"""What the GPU benchmark measures: its networks, its clock, and single figures."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
from genflow.data.loader import Loaded
from genflow.nn.dit import dit_preset
from genflow.objectives.base import Batch
from genflow.sampling.generate import generate
from genflow.training.trainer import Trainer, make_accelerator

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


def largest_batch(
    batches: Sequence[int], attempt: Callable[[int], dict[str, Any]], seconds: float = math.inf
) -> dict[str, Any]:
    """Return what ``attempt`` gives for the first of ``batches``, in falling order, that fits into memory.

    None is begun once half of ``seconds`` have passed.
    """
    started = time.perf_counter()
    for batch in batches:
        if time.perf_counter() - started > seconds / 2:
            raise RuntimeError(f"no batch above {batch} fits into memory, and there was no time to try smaller ones")
        try:
            return {"batch": batch, **attempt(batch)}
        except RuntimeError as error:  # the compiler wraps those that it meets itself
            if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error).lower():
                raise
        free()  # what the attempt held is let go only once its traceback is
    raise RuntimeError(f"not even a batch of {batches[-1]} fits into memory")


def free() -> None:
    """Let go of all memory and of everything compiled."""
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
    loaded = Loaded(images, labels, torch.arange(batch))
    return Trainer(objective, lambda number: loaded, config, accelerator=accelerator)


def train(network: Network, compiled: bool, effort: Effort, seconds: float = math.inf) -> dict[str, Any]:
    """Measure whole steps of the Trainer."""

    def attempt(batch: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(network, batch, folder, compiled=compiled)
            device = trainer.accelerator.device
            taken = timed(trainer._step, device, effort)
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        return {"images_per_second": batch / taken, "peak_memory": memory, "parameters": _size(trainer.objective)}

    return largest_batch(effort.batches, attempt, seconds) | {"flops_per_image": flops_per_image(network)}


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


def sample(
    network: Network, steps: int, compiled: bool, device: torch.device, effort: Effort, seconds: float = math.inf
) -> dict[str, Any]:
    """Measure ``genflow.generate``, from seeds to uint8."""
    denoiser = build_denoiser(network.config(""), network.shape, network.classes)
    nn.Module.to(denoiser, device)
    if compiled:
        denoiser.backbone.compile()

    def attempt(batch: int) -> dict[str, Any]:
        labels = [k % network.classes for k in range(batch)] if network.classes else None

        def once(number: int) -> None:
            seeds = range(number * batch, (number + 1) * batch)
            generate(denoiser, seeds, labels=labels, sampler="heun", steps=steps, batch_size=batch)

        with torch.autocast(device.type, torch.bfloat16):
            taken = timed(once, device, effort)
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        return {"images_per_second": batch / taken, "peak_memory": memory}

    return largest_batch(effort.batches, attempt, seconds)


def matmul(device: torch.device, effort: Effort) -> dict[str, Any]:
    n = effort.matmul
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return {"size": n, "tflops": 2 * n**3 / timed(lambda number: a @ b, device, effort) / 1e12}


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
