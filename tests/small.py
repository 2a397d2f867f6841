"""Runs small enough for tests: synthetic images, networks of a few thousand weights, a trainer around them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from genflow import build
from genflow.config import (
    Config,
    DataConfig,
    DiTConfig,
    LinearConfig,
    OptimConfig,
    PredictVelocityConfig,
    SampleConfig,
    TrainConfig,
    UNetConfig,
)
from genflow.data.images import ImageData
from genflow.data.loader import ImageLoader
from genflow.denoiser import Denoiser
from genflow.objectives.base import Batch, Objective
from genflow.parameterizations import PredictClean
from genflow.schedules import Linear
from genflow.training.trainer import Loader, Trainer, parts_of

UNET = UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.2)
DIT = DiTConfig(width=32, depth=2, heads=2, patch_size=2, dropout=0.2)


def image_data(count: int = 50, classes: int = 3, shape: tuple[int, int, int] = (1, 8, 8)) -> ImageData:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, count) if classes else None
    return ImageData(images, labels, tuple(map(str, range(classes))), "synthetic")


def make_config(out: Path, backbone: UNetConfig | DiTConfig = UNET, *, optim: OptimConfig | None = None, **train):
    """A short rectified-flow run; ``train`` are fields of TrainConfig, or ``parts`` that a step is computed in."""
    rhythm = {"steps": 8, "batch_size": 8, "log_every": 1, "preview_every": 0, "checkpoint_every": 3}
    if "parts" in train:
        train["microbatch"] = train.get("batch_size", 8) // train.pop("parts")
    return Config(
        name="small",
        out=str(out),
        data=DataConfig(flip=True),
        backbone=backbone,
        schedule=LinearConfig(),
        parameterization=PredictVelocityConfig(),
        optim=optim or OptimConfig(warmup=3, decay="cosine", clip=1.0, ema_halflife=100),
        train=TrainConfig(**(rhythm | train)),
        sample=SampleConfig(sampler="euler", steps=2),
    )


def make_loader(config: Config, data: ImageData | None = None) -> ImageLoader:
    parts = parts_of(config.train, 1)
    return ImageLoader(
        data or image_data(), batch_size=config.train.batch_size // parts, seed=config.seed, flip=config.data.flip
    )


def make_trainer(
    config: Config, *, loader: Loader | None = None, objective: Objective | None = None, **given
) -> Trainer:
    """What build_trainer makes, on synthetic images and with parts replaced."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    data = image_data()
    if objective is None:
        objective = build.build_objective(config, build.build_denoiser(config, data.image_shape, data.num_classes))
    return Trainer(objective, loader or make_loader(config, data), config, **given)


class Stopped(Exception):
    """What interrupts a run in tests."""


def stopping(loader: Loader, at: int) -> Loader:
    """The same batches, until batch ``at`` is asked for."""

    def load(number: int):
        if number == at:
            raise Stopped
        return loader(number)

    return load


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of a run: weights, average, moments and step counts."""
    found = {f"objective.{k}": v for k, v in trainer.objective.state_dict().items()}
    found |= {f"ema.{k}": v for k, v in trainer.ema.denoiser.state_dict().items()}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
    return {k: v.detach().clone() for k, v in found.items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Equal names, equal bits."""
    assert left.keys() == right.keys()
    different = [k for k in left if not torch.equal(left[k], right[k])]
    assert not different


class Scale(nn.Module):
    """The smallest backbone: one weight per pixel of the input."""

    def __init__(self, shape: tuple[int, int, int] = (1, 8, 8)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64).view(shape))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        return self.weight * x


class Stub(Objective):
    """An objective around one weight per pixel; ``loss(weight, batch, step)`` gives one loss per image."""

    def __init__(self, loss) -> None:
        super().__init__()
        self.denoiser = Denoiser(Scale(), Linear(), PredictClean(), image_shape=(1, 8, 8))
        self.loss = loss
        self.after: dict[int, Tensor] = {}  # the weight at the end of each step

    @property
    def weight(self) -> nn.Parameter:
        return self.denoiser.backbone.weight

    def forward(self, batch: Batch, step: int) -> Tensor:
        return self.loss(self.weight, batch, step)

    def after_step(self, step: int) -> None:
        self.after[step] = self.weight.detach().clone()


def with_train(config: Config, **fields) -> Config:
    return replace(config, train=replace(config.train, **fields))
