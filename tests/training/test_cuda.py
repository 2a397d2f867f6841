"""What only a CUDA device can show: that steps do not wait for it, and that it computes what the CPU does."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import DIT, UNET, make_config, make_trainer
from torch import Tensor, nn

from genflow.config import (
    AveragedWeightsConfig,
    Config,
    ConsistencyConfig,
    ConsistencyKarrasConfig,
    CurrentWeightsConfig,
    DiTConfig,
    DoublingConfig,
    GridLevelsConfig,
    OptimConfig,
    SampleConfig,
    UNetConfig,
    VEConfig,
)
from genflow.config_consistency import TargetConfig
from genflow.objectives.base import Batch
from genflow.sampling.generate import generate
from genflow.sampling.noise import SeededNoise
from genflow.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def in_full_float32() -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # pyright: ignore[reportAttributeAccessIssue]


def waits(trainer: Trainer, steps: range) -> list[str]:
    """Take steps, and return where the host waited for the device."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for step in steps:
                trainer._step(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in found if "synchronizing CUDA operation" in str(w.message)]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("backbone", [UNET, DIT], ids=["UNet", "DiT"])
def test_no_step_waits_for_the_device(backbone: UNetConfig | DiTConfig, precision: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(tmp_path, backbone, mixed_precision=precision, steps=20, parts=2))
    for step in range(3):  # the first steps make what later ones find
        trainer._step(step)
    assert waits(trainer, range(3, 6)) == []
    assert trainer.meter.read()["bad_losses"] == 0


def consistency(out: Path, target: TargetConfig | None = None) -> Config:
    levels = GridLevelsConfig(curriculum=DoublingConfig(first=10, last=40))
    return replace(
        make_config(out, steps=30, parts=2),
        schedule=VEConfig(),
        parameterization=ConsistencyKarrasConfig(),
        objective=ConsistencyConfig(levels=levels, target=target or CurrentWeightsConfig()),
        optim=OptimConfig(rule="radam", ema_halflife=100),
        sample=SampleConfig(sampler="multistep", steps=1),
    )


@pytest.mark.parametrize("target", [CurrentWeightsConfig(), AveragedWeightsConfig()], ids=["current", "averaged"])
def test_no_step_of_a_consistency_model_waits(target, tmp_path: Path) -> None:
    """Not even where the number of levels grows, but for the copy of each new grid, which is made once."""
    trainer = make_trainer(consistency(tmp_path, target))
    for step in (0, 10, 20, 1):
        trainer._step(step)
    assert waits(trainer, range(2, 30)) == []
    assert trainer.meter.read()["bad_losses"] == 0


def test_a_loss_scale_that_is_too_large_costs_steps_and_is_counted(tmp_path: Path) -> None:
    trainer = make_trainer(make_config(tmp_path, mixed_precision="fp16", steps=20))
    assert trainer.accelerator.scaler is not None
    trainer._step(0)  # which makes the scale
    trainer.accelerator.scaler.update(2.0**40)
    before = [p.detach().clone() for p in trainer.objective.parameters()]
    trainer._step(1)
    assert trainer.meter.read()["bad_total"] == 1
    assert all(torch.equal(p, q) for p, q in zip(trainer.objective.parameters(), before, strict=True))
    for step in range(2, 42):  # each halves it
        trainer._step(step % 20)
    assert trainer.meter.read()["bad_in_a_row"] == 0


def test_consistency_models_are_trained_in_full_float32(tmp_path: Path) -> None:
    """Differences of neighbours are smaller than what TF32 leaves of the images that they are of."""
    conv, there = torch.backends.cudnn.conv, {}
    for name, config in (("flow", make_config(tmp_path)), ("consistency", consistency(tmp_path))):
        make_trainer(config)
        there[name] = torch.get_float32_matmul_precision(), conv.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    assert there == {"flow": ("high", "tf32"), "consistency": ("highest", "ieee")}


def test_losses_on_the_device_are_those_of_the_cpu(tmp_path: Path) -> None:
    """Without dropout, whose masks differ by device, and in full float32."""
    config = make_config(tmp_path, UNetConfig(width=16, multipliers=(1, 2), blocks=1, dropout=0.0))
    trainer = make_trainer(config)
    in_full_float32()
    batch = trainer._batch(0)
    on_device = trainer.objective(batch, 0)
    assert batch.y is not None
    moved = Batch(x=batch.x.cpu(), y=batch.y.cpu(), noise=batch.noise.cpu(), index=batch.index.cpu(), u=batch.u.cpu())
    on_host = trainer.objective.cpu()(moved, 0)
    assert torch.allclose(on_device.cpu(), on_host, rtol=1e-4)


def test_noise_is_the_same_bit_by_bit_and_images_to_a_step(tmp_path: Path) -> None:
    denoiser = make_trainer(make_config(tmp_path)).ema.denoiser
    in_full_float32()
    shape = denoiser.image_shape
    on_device, on_host = (SeededNoise([1, 2, 3], shape, torch.device(d))(0) for d in ("cuda", "cpu"))
    assert torch.equal(on_device.cpu(), on_host)
    images: dict[str, Tensor] = {}
    for device in ("cuda", "cpu"):
        nn.Module.to(denoiser, device)
        images[device] = generate(denoiser, range(5), labels=1, steps=4).cpu().int()
    assert (images["cuda"] - images["cpu"]).abs().max() <= 1
