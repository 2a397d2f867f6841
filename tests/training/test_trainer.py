import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import start
from PIL import Image
from safetensors.torch import load_file, save_file
from small import (
    DIT,
    UNET,
    Stopped,
    Stub,
    assert_same,
    image_data,
    make_config,
    make_loader,
    make_trainer,
    stopping,
    tensors,
    with_train,
)
from torch import Tensor

from genflow.build import build_backbone, build_denoiser, build_objective, build_trainer, preview
from genflow.build_start import load_weights
from genflow.cli.main import main
from genflow.config import DiTConfig, OptimConfig, UNetConfig
from genflow.denoiser import Denoiser
from genflow.training.optim import learning_rate
from genflow.training.trainer import Trainer, make_accelerator

PLAIN = OptimConfig(lr=1e-2, ema_halflife=0)


def records(config) -> list[dict]:
    return [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    return Denoiser.from_pretrained(folder).state_dict()


# Resuming


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("backbone", [UNET, DIT], ids=["unet", "dit"])
def test_a_run_that_is_stopped_anywhere_and_resumed_is_bitwise_the_uninterrupted_run(backbone, parts, tmp_path) -> None:
    """With dropout, flips, label dropout, warm-up, cosine decay and clipping; stopped twice, once between two parts."""
    whole = make_trainer(make_config(tmp_path / "whole", backbone, steps=10, parts=parts))
    whole.fit()
    config = make_config(tmp_path / "cut", backbone, steps=10, parts=parts)
    rng = np.random.default_rng([parts, len(backbone.type)])
    for stop in sorted(rng.choice(np.arange(1, 10 * parts), 2, replace=False)):
        with pytest.raises(Stopped):
            make_trainer(config, loader=stopping(make_loader(config), stop)).fit()
        torch.manual_seed(int(stop))  # what the process drew elsewhere must not matter
    resumed = make_trainer(config)
    resumed.fit()
    assert_same(tensors(resumed), tensors(whole))
    assert any(len(v) for k, v in tensors(resumed).items() if k.endswith("exp_avg"))
    lines = records(config)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["loss"] for line in lines] == [line["loss"] for line in records(whole.config)]


def test_a_run_in_mixed_precision_that_left_out_a_step_resumes_bitwise_too(tmp_path) -> None:
    made = []
    for name in ("whole", "cut"):
        config = make_config(tmp_path / name, steps=6, mixed_precision="bf16")
        if name == "cut":
            with pytest.raises(Stopped):
                spoiled(make_trainer(config, loader=stopping(make_loader(config), 4)), {1}).fit()
        trainer = spoiled(make_trainer(config), {1})
        trainer.fit()
        made.append(tensors(trainer))
        assert [line["bad_total"] for line in records(config)] == [0, 1, 1, 1, 1, 1]
    assert_same(*made)
    assert {float(v) for k, v in made[0].items() if k.endswith(".step")} == {5.0}


def test_a_finished_run_is_left_as_it_is(tmp_path) -> None:
    config = make_config(tmp_path)
    make_trainer(config).fit()
    before = {p: p.read_bytes() for p in config.folder.rglob("*") if p.is_file()}
    assert make_trainer(config, loader=stopping(make_loader(config), 8)).fit() == config.folder / "model"
    assert {p: p.read_bytes() for p in config.folder.rglob("*") if p.is_file()} == before


def test_half_a_checkpoint_and_half_a_line_are_ignored_and_cleaned_away(tmp_path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(Stopped):
        make_trainer(config, loader=stopping(make_loader(config), 5)).fit()
    for place in ("checkpoints/.partial-abc", ".partial-model/denoiser"):
        (config.folder / place).mkdir(parents=True)
        (config.folder / place / "state.safetensors").write_bytes(b"half")
    (config.folder / "previews").mkdir()
    (config.folder / "previews" / ".partial-abc.png").write_bytes(b"half")
    with (config.folder / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    resumed = make_trainer(config)
    resumed.fit()
    assert not list(config.folder.rglob(".partial-*"))
    assert [line["step"] for line in records(config)] == list(range(1, 9))
    whole = make_trainer(make_config(tmp_path / "whole"))
    whole.fit()
    assert_same(tensors(resumed), tensors(whole))


def test_a_checkpoint_of_another_network_is_refused(tmp_path) -> None:
    make_trainer(make_config(tmp_path)).fit()
    with pytest.raises(ValueError, match="is a checkpoint of another model; give the run another --name"):
        make_trainer(make_config(tmp_path, DIT)).fit()


def test_a_full_disk_leaves_what_was_saved_and_is_said_in_one_line(tmp_path) -> None:
    """Files may not grow beyond a size from step 4 on, which fails as a full disk does."""
    config = make_config(tmp_path, checkpoint_every=2)

    def load(number: int):
        if number == 3:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        return make_loader(config)(number)

    def work() -> None:
        with pytest.raises(OSError, match=r"cannot save step 4 of .* what was saved before is whole: make room"):
            make_trainer(config, loader=load).fit()

    process = start(work)
    process.join()
    assert process.exitcode == 0
    assert [p.name for p in (config.folder / "checkpoints").iterdir()] == ["step-00000002"]
    weights(config.folder / "model")
    resumed, whole = make_trainer(config), make_trainer(make_config(tmp_path / "whole", checkpoint_every=2))
    resumed.fit()
    whole.fit()
    assert_same(tensors(resumed), tensors(whole))


@pytest.mark.parametrize(
    ("file", "garbage", "said"),
    [
        ("progress.json", b'{"step": "7"}', "is damaged"),
        ("progress.json", 7, "is damaged .*its progress.json is of step 7"),
        ("progress.json", b"\xff", "is damaged"),
        ("progress.json", b'{"step": 8}', "is damaged .*its progress.json is not what was written"),
        ("state.safetensors", None, "is damaged .*it lacks all tensors of optimizer"),
        ("state.safetensors", b"", "is damaged"),
    ],
)
def test_garbled_checkpoints_are_refused_by_name(file, garbage, said, tmp_path) -> None:
    config = make_config(tmp_path)
    make_trainer(config).fit()
    path = config.folder / "checkpoints" / "step-00000008" / file
    if garbage == 7:
        path.write_text(path.read_text().replace('"step": 8', '"step": 7'))
    elif garbage is None:
        save_file({k: v for k, v in load_file(path).items() if not k.startswith("optimizer")}, path)
    else:
        path.write_bytes(garbage)
    with pytest.raises(ValueError, match=rf"step-00000008 {said}.*remove it to go on from the one before"):
        make_trainer(with_train(config, steps=10)).fit()
    shutil.rmtree(path.parent)
    make_trainer(with_train(config, steps=10)).fit()


def test_a_line_of_the_log_survives_a_stop_between_two_lines(tmp_path) -> None:
    """Its means are over all steps since the last line, those before the stop too."""
    made = []
    for name in ("whole", "cut"):
        config = make_config(tmp_path / name, steps=9, log_every=4, checkpoint_every=3)
        if name == "cut":
            with pytest.raises(Stopped):
                make_trainer(config, loader=stopping(make_loader(config), 7)).fit()
        make_trainer(config).fit()
        made.append([{k: v for k, v in line.items() if k != "images_per_second"} for line in records(config)])
    assert made[0] == made[1]
    assert [line["step"] for line in made[0]] == [4, 8, 9]


def test_a_garbled_log_and_foreign_folders_do_not_matter(tmp_path) -> None:
    config = make_config(tmp_path)
    make_trainer(config).fit()
    (config.folder / "checkpoints" / "step-00000010.bak").mkdir()
    log = config.folder / "log.jsonl"
    log.write_bytes(b'{"a": 1}\n[]\n\xff\n' + log.read_bytes())
    make_trainer(with_train(config, steps=10)).fit()
    assert [line["step"] for line in records(config)] == list(range(1, 11))


def test_a_refused_run_is_left_as_it_is(tmp_path) -> None:
    config = make_config(tmp_path)
    make_trainer(config).fit()
    before = {p: p.read_bytes() for p in config.folder.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"is at step 8, beyond train\.steps 5"):
        make_trainer(with_train(config, steps=5)).fit()
    assert {p: p.read_bytes() for p in config.folder.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_run_that_is_killed_gives_the_bytes_of_an_uninterrupted_one(tmp_path) -> None:
    command = [sys.executable, "-m", "genflow.cli.main", "train", "tiny-edm", "--backbone.width", "16"]
    command += ["--train.steps", "60", "--train.batch-size", "32", "--train.checkpoint-every", "10"]
    command += ["--train.preview-every", "20", "--train.log-every", "5", "--train.threads", "1"]
    assert main([*command[3:], "--out", str(tmp_path / "whole")]) == 0
    process = subprocess.Popen([*command, "--out", "cut"], cwd=tmp_path, stderr=subprocess.PIPE)
    folder = tmp_path / "cut" / "tiny-edm"
    while process.poll() is None and not (folder / "checkpoints" / "step-00000020").is_dir():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "checkpoints" / "step-00000060").exists()
    subprocess.run([*command, "--out", "cut"], cwd=tmp_path, check=True, capture_output=True)
    name = "denoiser/diffusion_pytorch_model.safetensors"
    whole = tmp_path / "whole" / "tiny-edm"
    assert (folder / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == sorted(
        p.relative_to(whole) for p in whole.rglob("*")
    )


# The order of events


def test_the_average_moves_after_the_optimiser_step(tmp_path) -> None:
    optim = OptimConfig(lr=1e-2, ema_halflife=16, ema_rampup=0)
    trainer = make_trainer(make_config(tmp_path, optim=optim), objective=Stub(lambda w, b, s: (w * b.x).sum((1, 2, 3))))
    average = trainer.objective.weight.detach().clone()
    for step in range(4):
        trainer._step(step)
        now = trainer.objective.weight.detach()
        assert list(trainer.objective.after) == list(range(step + 1))  # by the numbers of the steps
        assert torch.equal(trainer.objective.after[step], now)  # after_step sees the weights of this step too
        average = now + 0.5 ** (8 / 16) * (average - now)
        torch.testing.assert_close(trainer.ema.denoiser.backbone.weight, average)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_gradient_is_that_of_the_mean_over_all_parts_of_a_step(parts, tmp_path) -> None:
    """The loss of image x is w · x, so the gradient is the mean of the images of the step, however it is cut."""
    config = make_config(tmp_path, optim=PLAIN, parts=parts)
    trainer = make_trainer(config, objective=Stub(lambda w, b, s: (w * b.x).sum((1, 2, 3))))
    for step in (0, 1):
        trainer._step(step)
        images = make_loader(with_train(config, microbatch=0))(step)[0]
        torch.testing.assert_close(trainer.objective.weight.grad, (images / 127.5 - 1).mean(0))


def test_the_same_images_in_two_parts_train_the_same_network(tmp_path) -> None:
    """One time and one noise for all make the losses of an image independent of the part it is in."""

    class Fixed(Stub):
        def __init__(self, inner) -> None:
            super().__init__(None)
            self.denoiser = inner.denoiser
            self.inner = inner

        def forward(self, batch, step):
            noise = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).expand_as(batch.x)
            return self.inner(replace(batch, noise=noise, u=torch.full_like(batch.u, 0.4)), step)

        def after_step(self, step) -> None: ...

    made = []
    for parts in (1, 2):
        config = make_config(tmp_path / str(parts), replace(UNET, dropout=0.0), optim=PLAIN, parts=parts)
        config = replace(config, objective=replace(config.objective, label_dropout=0.0))
        trainer = make_trainer(config, objective=Fixed(build_objective(config, build_denoiser(config, (1, 8, 8), 3))))
        trainer._step(0)
        made.append({k: p.grad.clone() for k, p in trainer.objective.named_parameters()})
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-6)
    assert sum(g.abs().sum() for g in made[0].values()) > 0


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    config = OptimConfig(lr=0.8, warmup=4, decay="cosine")
    assert [learning_rate(step, 12, config) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert learning_rate(4, 12, config) == pytest.approx(0.8)
    assert learning_rate(8, 12, config) == pytest.approx(0.4)  # half way down
    assert learning_rate(6, 12, config) == pytest.approx(0.4 * (1 + 2**-0.5))
    assert 0 < learning_rate(11, 12, config) < 0.04
    assert {learning_rate(step, 12, replace(config, decay="constant")) for step in range(4, 12)} == {0.8}
    assert learning_rate(0, 12, OptimConfig(lr=0.8)) == 0.8


def test_each_step_is_taken_at_its_learning_rate(tmp_path) -> None:
    """With a constant gradient Adam's step is the learning rate itself, to within epsilon."""
    optim = OptimConfig(lr=1e-2, warmup=3, decay="cosine", eps=1e-12)
    config = make_config(tmp_path, optim=optim, steps=7)
    trainer = make_trainer(config, objective=Stub(lambda w, b, s: w.sum().expand(len(b.x))))
    trainer.fit()
    path = torch.stack([torch.linspace(-1, 1, 64).view(1, 8, 8), *trainer.objective.after.values()])
    rates = torch.tensor([learning_rate(step, 7, optim) for step in range(7)])
    torch.testing.assert_close(-path.diff(dim=0), rates.view(7, 1, 1, 1).expand(7, 1, 8, 8), rtol=1e-3, atol=1e-6)
    assert [line["lr"] for line in records(config)] == pytest.approx(rates.tolist())


def test_clipping_limits_the_norm_and_keeps_the_direction(tmp_path) -> None:
    def gradient(clip: float) -> tuple[Tensor, float]:
        config = make_config(tmp_path / str(clip), optim=replace(PLAIN, clip=clip), steps=1)
        trainer = make_trainer(config, objective=Stub(lambda w, b, s: (w * b.x).sum((1, 2, 3))))
        trainer.fit()
        return trainer.objective.weight.grad, records(config)[0]["grad_norm"]

    free, norm = gradient(0.0)
    assert norm == pytest.approx(free.norm().item(), rel=1e-5)
    clipped, reported = gradient(norm / 10)
    assert reported == pytest.approx(norm, rel=1e-5)  # the log tells the norm before clipping
    torch.testing.assert_close(clipped, free / 10, rtol=1e-4, atol=1e-7)
    loose, _ = gradient(norm * 10)
    assert torch.equal(loose, free)


def test_every_step_and_every_seed_draws_noise_of_its_own(tmp_path) -> None:
    seen: list[Tensor] = []
    for seed in (0, 1):
        config = replace(make_config(tmp_path / str(seed), parts=2), seed=seed)
        trainer = make_trainer(config, objective=Stub(lambda w, b, s: (seen.append(b.noise), w.sum() * b.u.float())[1]))
        for step in range(3):
            trainer._step(step)
    assert len({tuple(noise.flatten()[:4].tolist()) for noise in seen}) == 2 * 3 * 2  # seeds, steps, parts


def test_the_average_ramps_up_with_the_images_of_the_run(tmp_path) -> None:
    optim = OptimConfig(lr=1e-2, ema_halflife=1e6, ema_rampup=0.25)
    trainer = make_trainer(make_config(tmp_path, optim=optim), objective=Stub(lambda w, b, s: (w * b.x).sum((1, 2, 3))))
    average = trainer.objective.weight.detach().clone()
    for step in range(4):
        trainer._step(step)
        now = trainer.objective.weight.detach()
        average = now + 0.5 ** (8 / (0.25 * 8 * (step + 1))) * (average - now)
        torch.testing.assert_close(trainer.ema.denoiser.backbone.weight, average)


# Steps without a finite gradient


def spoiled(trainer: Trainer, steps: set[int]) -> Trainer:
    """The same trainer, but in these steps the loss of one image is not a number."""

    def spoil(objective, arguments, losses):
        wrong = torch.ones_like(losses)
        wrong[1] = float("nan") if arguments[1] in steps else 1.0
        return losses * wrong

    trainer.objective.register_forward_hook(spoil)
    return trainer


@pytest.mark.parametrize("backbone", [UNET, DIT], ids=["unet", "dit"])
def test_a_step_without_a_finite_gradient_leaves_weights_and_moments_bitwise_untouched(backbone, tmp_path) -> None:
    config = make_config(tmp_path, backbone, optim=OptimConfig(lr=1e-2, weight_decay=0.1, clip=1.0, ema_halflife=0))
    trainer = spoiled(make_trainer(config), {2})
    for step in (0, 1):
        trainer._step(step)
    before = tensors(trainer)
    trainer._step(2)
    assert_same(tensors(trainer), before)
    trainer._step(3)
    after = tensors(trainer)
    assert all(v.isfinite().all() for v in after.values())
    assert {float(v) for k, v in after.items() if k.endswith(".step")} == {3.0}
    assert any(not torch.equal(after[k], before[k]) for k in before if k.startswith("objective."))


def test_bad_steps_are_counted_and_the_run_goes_on(tmp_path) -> None:
    def loss(weight: Tensor, batch, step: int) -> Tensor:
        return (weight * batch.x).sum((1, 2, 3)) * (float("inf") if step in (2, 3, 6) else 1.0)

    config = make_config(tmp_path, optim=PLAIN, log_every=4)
    trainer = make_trainer(config, objective=Stub(loss))
    trainer.fit()
    first, second = records(config)
    assert (first["bad_total"], first["bad_in_a_row"], first["bad_longest"], first["bad_losses"]) == (2, 2, 2, 16)
    assert (second["bad_total"], second["bad_in_a_row"], second["bad_longest"]) == (3, 0, 1)
    assert all(np.isfinite([line["loss"], line["grad_norm"]]).all() for line in (first, second))
    assert float(trainer.optimizer.state[trainer.objective.weight]["step"]) == 5
    assert trainer.objective.weight.isfinite().all()


def test_a_row_of_bad_steps_stops_the_run_with_the_cause_and_saves_it(tmp_path) -> None:
    config = make_config(tmp_path, optim=PLAIN, steps=100, stop_after_bad=4, log_every=5, checkpoint_every=50)
    trainer = spoiled(make_trainer(config), set(range(7, 100)))
    with pytest.raises(RuntimeError, match=r"not finite for 8 steps in a row, up to step 15.*5 images had a loss") as e:
        trainer.fit()
    assert "\n" not in str(e.value)
    assert "--optim.lr (now 0.01)" in str(e.value)
    assert (config.folder / "checkpoints" / "step-00000015" / "state.safetensors").is_file()
    saved = weights(config.folder / "model")
    assert all(v.isfinite().all() for v in saved.values())
    # and when what was wrong is mended, the run goes on from there
    resumed = make_trainer(with_train(config, steps=20))
    resumed.fit()
    assert [line["bad_longest"] for line in records(config)] == [0, 3, 8, 0]
    assert [line["bad_in_a_row"] for line in records(config)] == [0, 3, 8, 0]


# The log


def test_losses_are_sorted_by_decile_of_time(tmp_path) -> None:
    seen: list[Tensor] = []

    def loss(weight: Tensor, batch, step: int) -> Tensor:
        seen.append(batch.u)
        return batch.u.float() + 0 * weight.sum()

    config = make_config(tmp_path, optim=PLAIN, steps=6, log_every=3, batch_size=40, parts=2)
    make_trainer(config, objective=Stub(loss)).fit()
    for part, line in zip((seen[:6], seen[6:]), records(config), strict=True):
        u = torch.cat(part)
        expected = [u[(u >= k / 10) & (u < (k + 1) / 10)].mean().item() for k in range(10)]
        assert line["loss_by_decile"] == pytest.approx(expected, rel=1e-5)
        assert line["loss"] == pytest.approx(u.mean().item(), rel=1e-5)
        assert line["images"] == line["step"] * 40


@pytest.mark.parametrize("backbone", [UNET, DIT], ids=["unet", "dit"])
def test_the_host_waits_for_nothing_during_a_step(backbone, tmp_path, monkeypatch) -> None:
    trainer = make_trainer(make_config(tmp_path, backbone, parts=2))
    trainer._step(0)  # the first step sets up Adam's state
    calls: list[str] = []
    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        real = getattr(Tensor, name)

        def spy(self: Tensor, *args, _real=real, _name=name, **kwargs):
            calls.append(_name)
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, spy)
    trainer._step(1)
    assert calls == []
    bool(torch.ones(()))  # and the spies do work
    assert calls == ["__bool__"]


def test_a_tracker_is_fed(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(tmp_path, steps=3, tracker="tensorboard")
    make_trainer(config).fit()
    (events,) = [
        p for p in config.folder.rglob("events.out.tfevents.*") if len(p.relative_to(config.folder).parts) == 1
    ]
    reader = EventAccumulator(str(events)).Reload()
    assert [e.step for e in reader.Scalars("loss")] == [1, 2, 3]
    assert [e.value for e in reader.Scalars("loss")] == pytest.approx([line["loss"] for line in records(config)])


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")  # what srun says, of which accelerate knows nothing
    with pytest.raises(RuntimeError, match=r"2 processes were launched .* \(1 joined\): launch them with torchrun"):
        make_accelerator(make_config(tmp_path))


def test_half_precision_without_loss_scaling_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="fp16 needs loss scaling, which cpu does not have: use bf16 or no"):
        make_accelerator(make_config(tmp_path, mixed_precision="fp16"))


# What is kept


def test_the_newest_checkpoints_are_kept(tmp_path) -> None:
    config = make_config(tmp_path, steps=8, checkpoint_every=2, keep=2)
    make_trainer(config).fit()
    kept = sorted(p.name for p in (config.folder / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000008"]


def test_the_best_model_is_kept_through_a_restart(tmp_path) -> None:
    config = make_config(tmp_path, steps=9, evaluate_every=1, checkpoint_every=3)
    scores = {1: 9.0, 2: 4.0, 3: float("nan"), 4: 5.0, 5: 6.0, 6: 4.0, 7: 3.0, 8: 3.5, 9: 8.0}
    seen: dict[int, dict[str, Tensor]] = {}

    def run(stop: int | None) -> None:
        loader = make_loader(config)
        step = 0

        def counting(number: int):
            nonlocal step
            step = number + 1
            return loader(number)

        def evaluate(denoiser: Denoiser) -> float:
            seen[step] = {k: v.clone() for k, v in denoiser.state_dict().items()}
            return scores[step]

        make_trainer(config, loader=counting if stop is None else stopping(counting, stop), evaluate=evaluate).fit()

    with pytest.raises(Stopped):
        run(5)
    assert_same(weights(config.folder / "best"), seen[2])
    with pytest.raises(Stopped):
        run(6)  # resumed from step 3, where the best was that of step 2: what came after is no better
    assert_same(weights(config.folder / "best"), seen[2])
    run(None)
    assert_same(weights(config.folder / "best"), seen[7])
    assert [line["step"] for line in records(config) if "frechet_train" in line] == list(range(1, 10))


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path) -> None:
    config = make_config(tmp_path, steps=2, evaluate_every=1)
    scores = iter([float("nan"), 2.0])
    trainer = make_trainer(config, evaluate=lambda denoiser: next(scores))
    trainer.fit()
    assert_same(weights(config.folder / "best"), trainer.ema.denoiser.state_dict())


def test_nothing_in_a_run_folder_is_a_pickle(tmp_path) -> None:
    config = make_config(tmp_path, evaluate_every=4, preview_every=4)
    make_trainer(config, preview=preview, evaluate=lambda denoiser: 1.0).fit()
    files = [p for p in config.folder.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".toml", ".jsonl", ".png", ".json", ".safetensors"}
    for path in files:
        start = path.read_bytes()[:4]
        assert start[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # pickles
        assert start != b"PK\x03\x04"  # torch.save's archives


def test_the_model_folder_holds_the_average(tmp_path) -> None:
    config = make_config(tmp_path)
    trainer = make_trainer(config)
    assert trainer.fit() == config.folder / "model"
    saved = weights(config.folder / "model")
    assert_same(saved, trainer.ema.denoiser.state_dict())
    assert any(not torch.equal(v, saved[k]) for k, v in trainer.objective.denoiser.state_dict().items())


def test_previews_show_one_column_per_class(tmp_path) -> None:
    config = make_config(tmp_path, steps=5, preview_every=2)
    make_trainer(config, preview=preview).fit()
    pictures = sorted((config.folder / "previews").iterdir())
    assert [p.name for p in pictures] == ["step-00000002.png", "step-00000004.png", "step-00000005.png"]
    with Image.open(pictures[0]) as picture:  # 3 classes, 8 rows; images of 8 pixels are drawn 6 times as large
        assert (picture.width // 48, picture.height // 48) == (3, 8)


# Starting from a saved model


def test_fine_tuning_on_as_many_classes_copies_every_weight(tmp_path) -> None:
    config = make_config(tmp_path)
    source = noisy(build_denoiser(config, (1, 8, 8), 3))
    source.save_pretrained(tmp_path / "source")
    tuned = build_denoiser(replace(config, init=str(tmp_path / "source"), seed=7), (1, 8, 8), 3)
    assert_same(tuned.state_dict(), source.state_dict())


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("backbone", [UNET, DIT], ids=["unet", "dit"])
def test_fine_tuning_on_other_classes_keeps_all_but_the_class_table(backbone, classes, tmp_path) -> None:
    config = make_config(tmp_path, backbone)
    source = noisy(build_denoiser(config, (1, 8, 8), 3)).state_dict()
    fresh = noisy(build_denoiser(config, (1, 8, 8), classes), 1)
    tuned = build_denoiser(config, (1, 8, 8), classes)
    tuned.load_state_dict(fresh.state_dict())
    load_weights(tuned, _holding(config, source))
    (table,) = [k for k in source if source[k].shape != tuned.state_dict()[k].shape]
    assert_same(
        {k: v for k, v in tuned.state_dict().items() if k != table}, {k: v for k, v in source.items() if k != table}
    )
    rows = tuned.state_dict()[table]
    assert torch.equal(rows[-1], source[table][-1])  # "no class" means the same
    assert torch.equal(rows[:-1], fresh.state_dict()[table][:-1])


def test_starting_from_another_network_is_refused_by_the_name_of_a_weight(tmp_path) -> None:
    config = make_config(tmp_path)
    build_denoiser(config, (1, 8, 8), 3).save_pretrained(tmp_path / "source")
    wider = replace(config, backbone=replace(UNET, width=24), init=str(tmp_path / "source"))
    with pytest.raises(ValueError, match=r"of its weights do not fit, such as backbone\.\S+"):
        build_denoiser(wider, (1, 8, 8), 3)
    other = replace(config, backbone=DIT, init=str(tmp_path / "source"))
    with pytest.raises(ValueError, match="has another network"):
        build_denoiser(other, (1, 8, 8), 3)


@pytest.mark.parametrize(
    ("argument", "there", "here"),
    [
        ("resample_filter", (1, 3, 3, 1), (1, 1)),
        ("heads", 2, 1),
        ("head_channels", 16, 8),
    ],
)
def test_starting_from_a_network_of_the_same_shapes_that_computes_something_else_is_refused(
    argument, there, here, tmp_path
) -> None:
    config = make_config(tmp_path)
    build_denoiser(replace(config, backbone=replace(UNET, **{argument: there})), (1, 8, 8), 3).save_pretrained(
        tmp_path / "source"
    )
    other = replace(config, backbone=replace(UNET, **{argument: here}), init=str(tmp_path / "source"))
    with pytest.raises(ValueError, match=rf"has another network: {argument} is .* there and .* here"):
        build_denoiser(other, (1, 8, 8), 3)
    same = replace(other, backbone=replace(UNET, **{argument: there, "dropout": 0.5}))
    build_denoiser(same, (1, 8, 8), 5)


@pytest.mark.parametrize("init", ["owner/name", "nowhere"])
def test_a_start_on_the_hub_is_said_to_be_there(init, tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"init {init} is not a folder: give a saved model's, or hf:OWNER/NAME"):
        build_denoiser(replace(make_config(tmp_path), init=init), (1, 8, 8), 3)


def test_every_field_of_a_network_reaches_it(tmp_path) -> None:
    """Each value differs from the default, so one that is forgotten shows."""
    unet = UNetConfig(
        width=24,
        multipliers=(1, 3),
        blocks=2,
        attention=(8,),
        heads=3,
        dropout=0.3,
        fourier_scale=0.02,
        resample_filter=(1, 3, 3, 1),
        residual_encoder=True,
        adaptive_norm=True,
        head_channels=12,
        decoder_attention="every",
        embedding_multiplier=2,
    )
    dit = DiTConfig(patch_size=4, width=24, depth=3, heads=2, mlp_ratio=2.5, dropout=0.3, fused_qkv=True)
    for config, default in ((unet, UNetConfig()), (dit, DiTConfig())):
        arguments = build_backbone(config, (1, 8, 8), 3).arguments
        for field in fields(config):
            value = getattr(config, field.name)
            if field.name != "type":
                assert value != getattr(default, field.name), field.name
                assert arguments[field.name] == (list(value) if isinstance(value, tuple) else value)


def test_what_was_done_to_images_is_told_to_the_network(tmp_path) -> None:
    """From the configuration to the backbone: images that labels of 0 call unchanged are, the mirrored are mirrored."""
    config = make_config(tmp_path, batch_size=64)
    config = replace(config, data=replace(config.data, path="digits", flip=False, augment=0.3))
    trainer = build_trainer(config)
    heard: list[Tensor] = []
    trainer.objective.denoiser.backbone.register_forward_pre_hook(
        lambda module, positional, named: heard.append(named["augment"]), with_kwargs=True
    )
    real = trainer._batch
    batches = []
    trainer._batch = lambda number: (batches.append(real(number)), batches[-1])[1]
    trainer._step(0)
    (batch,), (told,) = batches, heard
    assert batch.augment is told
    plain = trainer.loader(0)[0] / 127.5 - 1
    nothing = (told == 0).all(dim=1)
    mirrored = (told[:, 0] == 1) & (told[:, 1:] == 0).all(dim=1)
    assert nothing.sum() >= 3
    assert mirrored.sum() >= 3
    assert (~nothing & ~mirrored).sum() >= 20
    assert torch.equal(batch.x[nothing], plain[nothing])
    assert torch.equal(batch.x[mirrored], plain[mirrored].flip(3))
    assert (batch.x != plain).flatten(1).any(dim=1)[~nothing & ~mirrored].all()


@pytest.mark.parametrize("told", [False, True], ids=["without", "with"])
def test_a_model_without_augmentation_labels_starts_one_with_them_and_the_other_way_round(told, tmp_path) -> None:
    """For images that are not augmented both compute the same."""
    config = make_config(tmp_path, replace(UNET, dropout=0.0))
    augmented = replace(config, data=replace(config.data, augment=0.5))
    first, second = (config, augmented) if told else (augmented, config)
    source = noisy(build_denoiser(first, (1, 8, 8), 3))
    source.save_pretrained(tmp_path / "source")
    tuned = build_denoiser(replace(second, init=str(tmp_path / "source")), (1, 8, 8), 3)
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor(0.5), torch.tensor([0, 1, 3])
    assert torch.equal(tuned(x, t, y), source(x, t, y))
    if told:  # what it will learn about them starts at nothing
        assert torch.equal(tuned(x, t, y, augment=torch.ones(3, 9)), source(x, t, y))


def test_augmentation_is_refused_to_a_network_that_is_not_told_of_it(tmp_path) -> None:
    config = make_config(tmp_path, DIT)
    with pytest.raises(ValueError, match=r"data.augment tells the network .* which DiT has no input for"):
        build_denoiser(replace(config, data=replace(config.data, augment=0.1)), (1, 8, 8), 3)


def noisy(denoiser: Denoiser, seed: int = 0) -> Denoiser:
    """Random values in place of the zeros that networks start with."""
    torch.manual_seed(seed)
    for p in denoiser.parameters():
        p.data.normal_()
    return denoiser


def _holding(config, state: dict[str, Tensor]) -> Denoiser:
    denoiser = build_denoiser(config, (1, 8, 8), 3)
    denoiser.load_state_dict(state)
    return denoiser


# Precision and memory


def test_bf16_computes_the_network_and_keeps_weights_and_losses_in_float32(tmp_path) -> None:
    config = make_config(tmp_path, mixed_precision="bf16", steps=4)
    trainer = make_trainer(config)
    kinds: dict[str, set[torch.dtype]] = {"loss": set(), "conv": set()}
    trainer.objective.denoiser.backbone.encoder[0].register_forward_hook(lambda m, i, o: kinds["conv"].add(o.dtype))
    real = trainer.meter.add_losses
    trainer.meter.add_losses = lambda losses, u: (kinds["loss"].add(losses.dtype), real(losses, u))[1]
    trainer.fit()
    assert kinds == {"loss": {torch.float32}, "conv": {torch.bfloat16}}
    assert {v.dtype for v in tensors(trainer).values()} == {torch.float32}
    assert all(np.isfinite(line["loss"]) for line in records(config))
    exact = make_trainer(make_config(tmp_path / "exact", steps=4))
    exact.fit()
    assert [line["loss"] for line in records(config)] == pytest.approx(
        [line["loss"] for line in records(exact.config)], rel=0.05
    )


@pytest.mark.parametrize("backbone", [UNET, DIT], ids=["unet", "dit"])
def test_recomputing_activations_changes_no_weight(backbone, tmp_path) -> None:
    """Dropout included: the recomputed pass draws what the first one drew."""
    runs = []
    for name, recompute in (("plain", False), ("recomputed", True)):
        trainer = make_trainer(make_config(tmp_path / name, backbone, steps=3, gradient_checkpointing=recompute))
        trainer.fit()
        runs.append(tensors(trainer))
    assert_same(*runs)


def test_images_without_labels_train_a_model_without_classes(tmp_path) -> None:
    config = make_config(tmp_path, steps=2)
    trainer = make_trainer(
        config,
        objective=build_objective(config, build_denoiser(config, (1, 8, 8), 0)),
        loader=make_loader(config, image_data(classes=0)),
    )
    trainer.fit()
    assert Denoiser.from_pretrained(config.folder / "model").num_classes == 0
