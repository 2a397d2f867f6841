"""Adapters in whole runs: from a trained folder to one for new classes, which is saved like any other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from small import DIT, Stopped, assert_same, image_data, make_config, stopping, tensors

from genflow import build, kind
from genflow.adapters import adapt
from genflow.build import build_denoiser, build_trainer
from genflow.config import (
    BitFitConfig,
    ClassLoRAConfig,
    Config,
    DataConfig,
    DoRAConfig,
    FineTuningConfig,
    IA3Config,
    KINDConfig,
    LoHaConfig,
    LoRAConfig,
    OFTConfig,
    OptimConfig,
    PiSSAConfig,
    TruncationConfig,
)
from genflow.config_files import load_config, to_toml
from genflow.denoiser import Denoiser
from genflow.nn import DiT
from genflow.training.trainer import Trainer

NOVEL = DataConfig(keep=(1, 2))
SURGERIES = [
    FineTuningConfig(),
    BitFitConfig(biases=r"blocks\..*"),
    LoRAConfig(rank=2, alpha=3),
    PiSSAConfig(rank=2),
    DoRAConfig(rank=2, alpha=2),
    LoHaConfig(rank=2, alpha=2),
    OFTConfig(block_size=8),
    IA3Config(),
    ClassLoRAConfig(rank=2, alpha=3),
    TruncationConfig(tailor_rank=2),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    """A trained model of three classes lies in runs/dense/model."""
    monkeypatch.chdir(tmp_path)

    def picked(config: DataConfig):
        data = image_data()
        return data.of_classes(config.keep) if config.keep else data

    monkeypatch.setattr(build, "build_data", picked)
    config = replace(make_config(Path("runs"), DIT, steps=2, checkpoint_every=9), name="dense")
    run(replace(config, data=DataConfig(), optim=OptimConfig(lr=1e-2)))


def run(config: Config, *, stop: int | None = None) -> Trainer:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    trainer = build_trainer(config)
    if stop is not None:
        trainer.loader = stopping(trainer.loader, stop)
    trainer.fit()
    return trainer


def config_of(surgery, name: str = "run") -> Config:
    config = make_config(Path("runs"), DIT, steps=6, checkpoint_every=2, optim=OptimConfig(lr=1e-2, ema_halflife=10))
    return replace(config, name=name, data=NOVEL, init="runs/dense/model", surgery=surgery)


@pytest.mark.parametrize("surgery", SURGERIES, ids=lambda s: s.type)
def test_a_run_trains_a_method_and_saves_what_anybody_loads(surgery) -> None:
    trainer = run(config_of(surgery))
    average = trainer.ema.denoiser.eval()
    saved = Denoiser.from_pretrained("runs/run/model").eval()
    assert saved.classes == (0, 1)
    gated = surgery.type in ("ClassLoRA", "Truncation")
    assert isinstance(saved.backbone, kind.ClassLoRA | kind.Decomposed if gated else DiT)
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor(0.5), torch.tensor([0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(saved.denoise(x, t, y), average.denoise(x, t, y), rtol=1e-4, atol=1e-4)
        source = adapt(Denoiser.from_pretrained("runs/dense/model").backbone, FineTuningConfig(), 2)
        assert not torch.allclose(saved.backbone.eval()(x, t.expand(3), y), source.eval()(x, t.expand(3), y), atol=1e-4)


@pytest.mark.parametrize("surgery", SURGERIES, ids=lambda s: s.type)
def test_a_run_goes_on_where_it_stopped_without_its_start(surgery) -> None:
    whole = tensors(run(config_of(surgery, "whole")))
    with pytest.raises(Stopped):
        run(config_of(surgery), stop=4)
    Path("runs/dense").rename("runs/gone")
    assert_same(tensors(run(config_of(surgery))), whole)


def test_the_same_seed_draws_the_same_adapters() -> None:
    config = config_of(ClassLoRAConfig())
    first, second = (build_denoiser(config, (1, 8, 8), 2).state_dict() for _ in range(2))
    assert_same(first, second)
    other = build_denoiser(replace(config, seed=1), (1, 8, 8), 2).state_dict()
    assert [k for k in first if not torch.equal(first[k], other[k])] == [k for k in first if "lora_a" in k]


def test_they_start_from_a_dense_model_that_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="surgery LoRA fits a trained model to new classes: name it by --init"):
        build_denoiser(replace(config_of(LoRAConfig()), init=""), (1, 8, 8), 2)
    for number, (surgery, message) in enumerate(
        (
            (TruncationConfig(tailor_rank=2), "decomposed already, and surgery LoRA starts from a dense model"),
            (ClassLoRAConfig(rank=2), "has a LoRA for each class, and surgery LoRA starts from a dense model"),
        )
    ):
        run(config_of(surgery, f"start-{number}"))
        config = replace(config_of(LoRAConfig()), init=f"runs/start-{number}/model")
        with pytest.raises(ValueError, match=message):
            build_denoiser(config, (1, 8, 8), 2)
        with pytest.raises(ValueError, match=message.replace("LoRA starts", "KIND starts")):
            build_denoiser(replace(config, surgery=KINDConfig()), (1, 8, 8), 2)


@pytest.mark.parametrize("surgery", SURGERIES, ids=lambda s: s.type)
def test_they_are_written_and_read(surgery, tmp_path) -> None:
    config = config_of(surgery)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "config.toml") == config


def test_a_pattern_that_is_none_is_refused_where_it_is_given(tmp_path) -> None:
    text = to_toml(config_of(LoRAConfig())).replace("q|k|v|qkv|o|fc1|fc2)", "q|k")
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ValueError, match=r"surgery.*linears.*is no regular expression"):
        load_config(tmp_path / "config.toml")
