"""Training shared by processes: real ones, over gloo."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from launch import start, together
from safetensors.torch import load_file, save_file
from small import DIT, Stub, assert_same, image_data, make_config, make_loader, make_trainer, tensors, with_train
from torch import Tensor
from torch.distributed.tensor import DTensor

from genflow import build
from genflow.build import build_denoiser, build_loader, build_objective
from genflow.config import (
    CosineConfig,
    DiscreteVPConfig,
    KarrasConfig,
    LogitNormalConfig,
    LogNormalConfig,
    LPIPSHuberConfig,
    OptimConfig,
    PackagedConfig,
    PredictNoiseConfig,
    PredictVConfig,
    RegressionConfig,
    UShapedConfig,
    VEConfig,
    VelocityResidualConfig,
)
from genflow.data.augmentation import Augmentation
from genflow.denoiser import Denoiser
from genflow.training.checkpoints import Checkpoints
from genflow.training.trainer import Trainer, make_accelerator, parts_of

PLAIN = OptimConfig(lr=1e-2, ema_halflife=0)


def shared_trainer(config, **given) -> Trainer:
    """A trainer whose loader takes this process's share."""
    trainer = make_trainer(config, **given)
    trainer.loader = build_loader(config, image_data(), trainer.accelerator)
    return trainer


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def keep(path: Path, found: dict[str, Tensor]) -> None:
    save_file({k: v.contiguous() for k, v in found.items()}, path / f"{rank()}.safetensors")


METHODS = {
    "edm": {
        "schedule": VEConfig(),
        "parameterization": KarrasConfig(),
        "objective": RegressionConfig(times=LogNormalConfig()),
    },
    "ddpm": {"schedule": DiscreteVPConfig(), "parameterization": PredictNoiseConfig()},
    "v": {"schedule": CosineConfig(), "parameterization": PredictVConfig()},
    "rectified-flow": {"objective": RegressionConfig(times=LogitNormalConfig())},
    "dit": {"backbone": DIT},
    "2-rf++": {
        "parameterization": KarrasConfig(conditioning="time"),
        "objective": RegressionConfig(
            times=UShapedConfig(),
            residual=VelocityResidualConfig(),
            metric=LPIPSHuberConfig(perceptual=PackagedConfig(), divide_by_t=True),
        ),
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_after_fifty_steps_of_every_objective_all_processes_hold_the_same_weights(method, tmp_path) -> None:
    """With dropout, flips, label dropout and clipping, in two parts a step; one image is not like another."""

    def work() -> None:
        config = make_config(tmp_path, steps=50, batch_size=8, log_every=10, microbatch=2, checkpoint_every=50)
        trainer = shared_trainer(replace(config, **METHODS[method]))
        trainer.fit()
        keep(tmp_path, tensors(trainer))

    assert together(work, 2) == [0, 0]
    first, second = (load_file(tmp_path / f"{k}.safetensors") for k in range(2))
    assert_same(first, second)
    assert {float(v) for k, v in first.items() if k.endswith(".step")} == {50.0}


def test_augmented_images_and_their_labels_train_in_several_processes_too(tmp_path) -> None:
    def work() -> None:
        config = make_config(tmp_path, steps=4, batch_size=8)
        config = replace(config, data=replace(config.data, augment=0.5))
        objective = build_objective(config, build_denoiser(config, (1, 8, 8), 3))
        trainer = shared_trainer(config, objective=objective, augment=Augmentation(0.5))
        trainer.fit()
        keep(tmp_path, tensors(trainer))

    assert together(work, 2) == [0, 0]
    first, second = (load_file(tmp_path / f"{k}.safetensors") for k in range(2))
    assert_same(first, second)
    (told,) = [v for k, v in first.items() if k.startswith("objective.") and v.shape == (16, 9)]
    assert told.abs().sum() > 0


@pytest.mark.parametrize(("processes", "microbatch"), [(2, 0), (2, 2), (3, 0), (4, 1)])
def test_the_global_batch_is_that_of_the_configuration_whoever_computes_it(processes, microbatch, tmp_path) -> None:
    """The loss of image x is w · x, so weights depend on which images make a step and on nothing else."""
    config = make_config(tmp_path / "one", optim=PLAIN, steps=5, batch_size=12)
    one = make_trainer(config, objective=Stub(lambda w, b, s: (w * b.x).sum((1, 2, 3))))
    one.fit()

    def work() -> None:
        several = with_train(replace(config, out=str(tmp_path / "several")), microbatch=microbatch)
        trainer = shared_trainer(several, objective=Stub(lambda w, b, s: (w * b.x).sum((1, 2, 3))))
        trainer.fit()
        keep(tmp_path, {"weight": trainer.objective.weight.detach()})

    assert together(work, processes) == [0] * processes
    for k in range(processes):
        weight = load_file(tmp_path / f"{k}.safetensors")["weight"]
        torch.testing.assert_close(weight, one.objective.weight.detach(), rtol=1e-4, atol=1e-5)


def test_accumulation_follows_from_batch_processes_and_memory() -> None:
    train = make_config(Path(), batch_size=96).train
    found = {
        (processes, most): parts_of(replace(train, microbatch=most), processes)
        for processes in (1, 2, 3)
        for most in (0, 1, 5, 10, 32, 1000)
    }
    assert found[1, 0] == found[2, 0] == found[1, 1000] == 1
    assert (found[1, 32], found[2, 32], found[3, 32]) == (3, 2, 1)
    assert (found[1, 10], found[1, 5], found[3, 1]) == (12, 24, 32)
    with pytest.raises(ValueError, match=r"train.batch_size 96 cannot be shared equally by 5 processes.*such as 95"):
        parts_of(train, 5)
    with pytest.raises(ValueError, match="such as 128"):
        parts_of(train, 128)


def test_the_log_tells_of_the_images_of_all_processes(tmp_path) -> None:
    def loss(weight: Tensor, batch, step: int) -> Tensor:
        return torch.full((len(batch.x),), 1.0 + 2 * rank()) + 0 * weight.sum()

    def work() -> None:
        config = make_config(tmp_path, optim=PLAIN, steps=4, log_every=2, batch_size=8)
        shared_trainer(config, objective=Stub(loss)).fit()

    assert together(work, 2) == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "small" / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [2.0, 2.0]
    assert [line["step"] for line in lines] == [2, 4]


def test_each_process_has_images_noise_and_times_of_its_own(tmp_path, monkeypatch) -> None:
    """Together those of the step: with equal ones, two processes would learn from half a batch."""
    monkeypatch.setattr(build, "build_data", lambda config: image_data(64))

    def work() -> None:
        trainer = build.build_trainer(make_config(tmp_path, batch_size=16, microbatch=4))
        found: dict[str, list[Tensor]] = {"index": [], "u": [], "noise": []}
        real = trainer._batch

        def batch(number: int):
            made = real(number)
            for name, values in found.items():
                values.append(getattr(made, name))
            return made

        trainer._batch = batch
        for step in range(4):  # an epoch
            trainer._step(step)
        keep(tmp_path, {name: torch.cat(values) for name, values in found.items()})

    assert together(work, 2) == [0, 0]
    first, second = (load_file(tmp_path / f"{k}.safetensors") for k in range(2))
    assert sorted([*first["index"].tolist(), *second["index"].tolist()]) == list(range(64))
    for name in ("u", "noise"):
        values = torch.cat([first[name].flatten(), second[name].flatten()])
        assert len(values.unique()) > 0.999 * len(values)


def test_processes_with_other_images_are_refused(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(build, "build_data", lambda config: image_data(64, classes=3 + rank()))
    assert together(lambda: build.build_trainer(make_config(tmp_path)) and None, 2) == [1, 1]
    assert capfd.readouterr().err.count("the processes differ in the training images: their fingerprint is") == 2


# Stopping


def told_to_stop(config, at: int, which: int, *, times: int = 1, pause: float = 0.0) -> Trainer:
    """A trainer of which one process gets SIGTERM so many times while it loads batch ``at``; each takes a pause."""
    trainer = shared_trainer(config)
    loader = trainer.loader

    def load(number: int):
        time.sleep(pause)
        if number == at and rank() == which:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.02)
        return loader(number)

    trainer.loader = load
    return trainer


@pytest.mark.parametrize(("processes", "which"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_a_run_told_to_stop_is_saved_by_all_at_one_step_and_continues_bit_by_bit(processes, which, tmp_path) -> None:
    config = make_config(tmp_path / "cut", steps=12, batch_size=6, checkpoint_every=100)
    assert together(lambda: told_to_stop(config, 4, which).fit() and None, processes) == [143] * processes
    (stopped,) = (config.folder / "checkpoints").iterdir()
    assert 5 <= int(stopped.name.removeprefix("step-")) <= 8  # at once when alone, else within the lag

    def finish(out: Path) -> None:
        trainer = shared_trainer(replace(config, out=str(out)))
        trainer.fit()
        keep(out, tensors(trainer))

    assert together(lambda: finish(tmp_path / "cut"), processes) == [0] * processes
    assert together(lambda: finish(tmp_path / "whole"), processes) == [0] * processes
    for k in range(processes):
        cut, whole = (load_file(tmp_path / name / f"{k}.safetensors") for name in ("cut", "whole"))
        assert_same(cut, whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_signals_that_come_twice_stop_a_run_once(processes, tmp_path) -> None:
    """As torchrun passes on what a scheduler has sent to all of its processes already."""
    config = make_config(tmp_path, steps=50, batch_size=6, checkpoint_every=100)
    assert together(lambda: told_to_stop(config, 4, 0, times=3).fit() and None, processes) == [143] * processes
    assert len(list((config.folder / "checkpoints").glob("step-*"))) == 1


def test_what_is_due_at_the_step_of_a_stop_is_not_lost(tmp_path) -> None:
    config = make_config(tmp_path, steps=9, batch_size=6, preview_every=1, evaluate_every=1, checkpoint_every=100)
    scores = [5.0, 4.0, 3.0, 2.0, 1.0, 2.5, 3.5, 4.5, 5.5]  # the best is that of the step at which it is told to stop

    def run(trainer: Trainer, done: int) -> None:
        left = iter(scores[done:])
        trainer.evaluate = lambda denoiser: next(left)
        trainer.preview = lambda denoiser: torch.zeros(1, 8, 8, dtype=torch.uint8)
        trainer.fit()

    assert together(lambda: run(told_to_stop(config, 4, 0), 0) and None, 1) == [143]
    assert not (config.folder / "previews" / "step-00000005.png").exists()
    with (config.folder / "log.jsonl").open("a") as log:  # what a kill on resuming may leave of it
        log.write('{"step": 5, "frechet_train": 9.0}\n')
    trainer = make_trainer(config)
    run(trainer, 4)
    assert len(list((config.folder / "previews").iterdir())) == 9
    lines = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
    assert [line["frechet_train"] for line in lines if "frechet_train" in line] == scores
    best = Denoiser.from_pretrained(config.folder / "best").state_dict()
    assert any(not torch.equal(v, best[k]) for k, v in trainer.ema.denoiser.state_dict().items())


def test_long_steps_stop_at_once_before_a_launcher_loses_patience(tmp_path) -> None:
    config = make_config(tmp_path, steps=50, batch_size=6, checkpoint_every=100)
    assert together(lambda: told_to_stop(config, 5, 1, pause=0.6).fit() and None, 2) == [143, 143]
    assert (config.folder / "checkpoints" / "step-00000006").is_dir()  # the step in which it was told


def test_sigterm_in_the_last_step_changes_nothing(tmp_path) -> None:
    config = make_config(tmp_path, steps=5, batch_size=6)
    assert together(lambda: told_to_stop(config, 4, 0).fit() and None, 1) == [0]
    assert (config.folder / "checkpoints" / "step-00000005").is_dir()


def test_outside_of_training_sigterm_is_what_it_was(tmp_path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    make_trainer(make_config(tmp_path, steps=1)).fit()
    assert signal.getsignal(signal.SIGTERM) is before


# Disagreement


def test_processes_with_other_options_are_refused_all_of_them(tmp_path, capfd) -> None:
    def work() -> None:
        config = make_config(tmp_path, steps=2, batch_size=4)
        shared_trainer(replace(config, seed=rank())).fit()

    assert together(work, 2) == [1, 1]
    said = capfd.readouterr().err
    assert said.count("the processes differ in the configuration: seed is 0 in process 0 and 1 in process 1") == 2
    assert not (tmp_path / "small" / "config.toml").exists()


def test_processes_that_see_other_checkpoints_are_refused(tmp_path, capfd) -> None:
    """As machines do that share no folder."""
    config = make_config(tmp_path, steps=4, batch_size=4, checkpoint_every=2)
    make_trainer(config).fit()

    def work() -> None:
        trainer = shared_trainer(with_train(config, steps=6))
        if rank():
            trainer.checkpoints = Checkpoints(tmp_path / "elsewhere", keep=1)
        trainer.fit()

    assert together(work, 2) == [1, 1]
    assert "the processes differ in the step to go on from: it is 4 in process 0 and 0 in" in capfd.readouterr().err


def test_a_run_that_is_being_trained_is_not_trained_twice(tmp_path) -> None:
    config = make_config(tmp_path, steps=2)
    seen: list[str] = []

    def load(number: int):
        if number == 0:
            with pytest.raises(RuntimeError, match=r"another process is training .*small: wait for it, or give"):
                make_trainer(config).fit()
            seen.append("refused")
        return make_loader(config)(number)

    make_trainer(config, loader=load).fit()
    assert seen == ["refused"]
    make_trainer(config).fit()  # free again


def test_the_lock_of_a_killed_run_does_not_stay(tmp_path) -> None:
    config = make_config(tmp_path, steps=3)

    def work() -> None:
        make_trainer(config, loader=lambda number: os.kill(os.getpid(), signal.SIGKILL)).fit()

    process = start(work)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    make_trainer(config).fit()


def test_a_model_that_was_removed_is_written_again(tmp_path) -> None:
    config = make_config(tmp_path, steps=2)
    model = make_trainer(config).fit()
    before = Denoiser.from_pretrained(model).state_dict()
    shutil.rmtree(model)
    make_trainer(config).fit()
    assert_same(Denoiser.from_pretrained(model).state_dict(), before)


# Weights sharded over processes (FSDP2)


def test_fsdp_through_accelerate_trains_saves_and_resumes_as_plain_processes_do(tmp_path, monkeypatch) -> None:
    """On the CPU, where accelerate leaves sharding out unless its state is told that this is the kind of launch."""
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "DiTBlock")

    def sharded(config) -> Trainer:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        accelerator = make_accelerator(config)
        state: Any = accelerator.state
        state._shared_state |= {
            "distributed_type": DistributedType.FSDP,
            "fsdp_plugin": FullyShardedDataParallelPlugin(fsdp_version=2),
        }
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, state._shared_state["fsdp_plugin"]
        assert accelerator.is_fsdp2
        objective = build_objective(config, build_denoiser(config, (1, 8, 8), 3))
        loader = build_loader(config, image_data(), accelerator)
        trainer = Trainer(objective, loader, config, accelerator=accelerator)
        assert any(isinstance(p, DTensor) for p in trainer.objective.parameters())
        return trainer

    def run(name: str, steps: int, make: Callable[..., Trainer]) -> None:
        trainer = make(make_config(tmp_path / name, DIT, steps=steps, microbatch=2, checkpoint_every=100))
        trainer.fit()
        if rank() == 0:
            save_file(dict(trainer.ema.denoiser.state_dict()), tmp_path / f"{name}.safetensors")

    assert together(lambda: run("plain", 8, shared_trainer), 2) == [0, 0]
    assert together(lambda: run("whole", 8, sharded), 2) == [0, 0]
    assert together(lambda: run("cut", 5, sharded), 2) == [0, 0]
    assert together(lambda: run("cut", 8, sharded), 2) == [0, 0]
    plain, whole, cut = (load_file(tmp_path / f"{name}.safetensors") for name in ("plain", "whole", "cut"))
    for name, value in plain.items():
        torch.testing.assert_close(whole[name], value, rtol=1e-4, atol=1e-5)
    state = "small/checkpoints/step-00000008/state.safetensors"
    assert load_file(tmp_path / "whole" / state).keys() == load_file(tmp_path / "plain" / state).keys()
    assert cut.keys() == whole.keys()
