"""From a teacher to its student: pairs are made, trained on with their own noise, and runs on them go on bit by bit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from small import Stopped, assert_same, make_config, stopping, tensors
from teachers import make_teacher

from genflow.build import build_denoiser, build_trainer
from genflow.cli.main import main
from genflow.cli.train import check_resume
from genflow.config import Config, DataConfig, KarrasConfig
from genflow.data.pair_files import Manifest, begin, finish, write_manifest, write_shard
from genflow.data.pairs import load_pairs
from genflow.denoiser import Denoiser
from genflow.objectives.base import Batch
from genflow.pixels import to_unit
from genflow.training.trainer import Trainer


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    make_teacher(folder)
    return folder


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "out"
    assert main(["pairs", str(teacher), "--num", "200", "--steps", "2", "--out", str(out)]) == 0
    return out


def student(out: Path, folder: Path, *, init: Path | None = None, data: dict | None = None, **train) -> Config:
    config = make_config(out, **train)
    return replace(
        config,
        data=DataConfig(path=str(folder), **(data or {})),
        parameterization=KarrasConfig(),
        init=str(init or ""),
    )


def trainer_of(config: Config) -> Trainer:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    check_resume(config)
    return build_trainer(config)


def seen(trainer: Trainer) -> list[Batch]:
    """Every batch that the objective of a trainer is given, once it has been trained."""
    batches: list[Batch] = []
    trainer.objective.register_forward_pre_hook(lambda _, given: batches.append(given[0]))
    return batches


@pytest.mark.parametrize("parts", [1, 2])
def test_each_image_meets_the_noise_it_was_made_of(parts: int, folder, tmp_path) -> None:
    trainer = trainer_of(student(tmp_path, folder, parts=parts))
    batches = seen(trainer)
    trainer.fit()
    pairs = load_pairs(folder)
    assert pairs.labels is not None
    assert len(batches) == 8 * parts
    for batch in batches:
        index = batch.index.numpy()
        assert torch.equal(batch.noise, torch.from_numpy(pairs.noise(index)))
        assert torch.equal(batch.x, to_unit(torch.from_numpy(pairs.images[index])))
        assert batch.y is not None
        assert batch.y.tolist() == pairs.labels[index].tolist()
    assert len({float(u) for batch in batches for u in batch.u}) == 64


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_run_on_pairs_goes_on_bit_by_bit(stop: int, teacher, folder, tmp_path) -> None:
    config = student(tmp_path / "whole", folder, init=teacher)
    whole = trainer_of(config)
    whole.fit()
    cut = replace(config, out=str(tmp_path / "cut"), train=replace(config.train, checkpoint_every=1))
    trainer = trainer_of(cut)
    trainer.loader = stopping(trainer.loader, stop)
    with pytest.raises(Stopped):
        trainer.fit()
    again = trainer_of(cut)
    batches = seen(again)
    again.fit()
    assert len(batches) == 8 - stop
    assert_same(tensors(again), tensors(whole))


def test_a_run_begun_on_the_first_pairs_goes_on_when_there_are_more(teacher, tmp_path) -> None:
    """And one that took all there were, if it says how many."""
    command = ["pairs", str(teacher), "--steps", "1", "--out", str(tmp_path / "pairs"), "--num"]
    assert main([*command, "50"]) == 0
    some = student(tmp_path / "some", tmp_path / "pairs", data={"pairs": 40})
    everything = student(tmp_path / "everything", tmp_path / "pairs")
    for config in (some, everything):
        trainer = trainer_of(config)
        trainer.loader = stopping(trainer.loader, 5)
        with pytest.raises(Stopped):
            trainer.fit()
    whole = trainer_of(replace(some, out=str(tmp_path / "whole")))
    whole.fit()
    assert main([*command, "60"]) == 0
    again = trainer_of(some)
    again.fit()
    assert_same(tensors(again), tensors(whole))
    with pytest.raises(ValueError, match=r"the images are not those .* the number it began with, as --data.pairs"):
        trainer_of(everything).fit()
    trainer_of(replace(everything, data=replace(everything.data, pairs=50))).fit()


def test_who_trains_while_pairs_are_made_is_told_what_was_taken(teacher, folder, tmp_path, capsys) -> None:
    there = json.loads((folder / "manifest.json").read_text())
    unfinished = {**there, "count": 5000, "shards": {}}
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "manifest.json").write_text(json.dumps(unfinished))
    (tmp_path / "pairs" / "pairs-00000000.safetensors").write_bytes(
        (folder / "pairs-00000000.safetensors").read_bytes()
    )
    trainer_of(student(tmp_path, tmp_path / "pairs")).fit()
    said = capsys.readouterr().out
    assert "200 of 5000 pairs are there; to go on with them when there are more, give --data.pairs 200" in said
    trainer_of(student(tmp_path / "told", tmp_path / "pairs", data={"pairs": 200}))
    assert "pairs are there" not in capsys.readouterr().out


def test_a_run_does_not_go_on_with_pairs_of_another_teacher(folder, tmp_path) -> None:
    trainer = trainer_of(student(tmp_path, folder))
    trainer.loader = stopping(trainer.loader, 5)
    with pytest.raises(Stopped):
        trainer.fit()
    make_teacher(tmp_path / "other", seed=2)
    command = ["pairs", str(tmp_path / "other"), "--num", "200", "--steps", "2"]
    assert main([*command, "--out", str(tmp_path / "pairs")]) == 0
    with pytest.raises(ValueError, match="the images are not those that"):
        trainer_of(student(tmp_path, tmp_path / "pairs")).fit()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"flip": True}, "data.flip"),
        ({"augment": 0.1}, "data.augment"),
        ({"size": 16, "channels": 3}, "data.size and data.channels"),
        ({"labels": "x.csv"}, "data.labels"),
    ],
)
def test_pairs_are_trained_on_as_they_are(data, named, folder, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"noise is that of the image as it is: leave out {named}$"):
        trainer_of(student(tmp_path, folder, data=data))
    assert not (tmp_path / "small").exists()


def test_a_number_of_pairs_goes_with_pairs(folder, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"data.pairs goes with a folder that genflow pairs writes, and digits is none"
    ):
        trainer_of(student(tmp_path, Path("digits"), data={"pairs": 5}))
    with pytest.raises(ValueError, match=r"holds 200 pairs in a row from seed 0 on \(of 200\), and 201 are asked for"):
        trainer_of(student(tmp_path, folder, data={"pairs": 201}))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16)])
def test_a_model_of_other_images_is_no_start(shape, folder, tmp_path) -> None:
    make_teacher(tmp_path / "model", shape=shape)
    with pytest.raises(
        ValueError, match=r"makes images .*, and the pairs of .* are \(1, 8, 8\): start from their teacher"
    ):
        trainer_of(student(tmp_path, folder, init=tmp_path / "model"))


def test_a_student_may_do_without_the_classes_of_its_pairs(folder, tmp_path) -> None:
    trainer = trainer_of(student(tmp_path, folder, data={"classes": False}))
    batches = seen(trainer)
    trainer.fit()
    assert all(batch.y is None for batch in batches)
    assert trainer.objective.denoiser.num_classes == 0


def test_the_student_of_a_teacher_is_its_equal_at_the_start(teacher, folder, tmp_path) -> None:
    """D(x_t / (1 - t), sigma = t / (1 - t)): the linear path is EDM's, scaled (arXiv 2405.20320, proposition 1)."""
    edm = Denoiser.from_pretrained(teacher).eval()
    config = student(tmp_path, folder, init=teacher)
    denoiser = build_denoiser(config, (1, 8, 8), 3).eval()
    t = torch.tensor([0.002, 0.1, 0.2315, 0.5, 0.9, 0.98])
    rest = (1 - t).view(-1, 1, 1, 1)
    x, y = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    x_t = rest * x + t.view(-1, 1, 1, 1) * torch.randn_like(x)
    with torch.no_grad():
        mine, its = denoiser.denoise(x_t, t, y), edm.denoise(x_t / rest, t / (1 - t), y)
    torch.testing.assert_close(mine, its, rtol=1e-5, atol=2e-5)
    assert (mine - x_t / rest).abs().mean() > 0.05  # neither is trivial
    fresh = build_denoiser(replace(config, init=""), (1, 8, 8), 3).eval()
    with torch.no_grad():
        assert (fresh.denoise(x_t, t, y) - mine).abs().mean() > 0.01


def test_noise_that_has_no_seed_is_trained_on_too(tmp_path) -> None:
    """As of real images that were carried back along a teacher's flow."""
    described = Manifest.of_images(made={"images": "digits"}, image_shape=(1, 8, 8), num_classes=0, count=20)
    write_manifest(tmp_path / "pairs", begin(tmp_path / "pairs", described))
    noise = torch.randn(20, 1, 8, 8).half().numpy()
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), np.uint8)
    write_shard(tmp_path / "pairs", range(20), images, [0] * 20, noise)
    finish(tmp_path / "pairs", described)
    trainer = trainer_of(student(tmp_path, tmp_path / "pairs"))
    batches = seen(trainer)
    trainer.fit()
    for batch in batches:
        assert torch.equal(batch.noise, torch.from_numpy(noise[batch.index.numpy()]).float())


def test_students_are_judged_by_the_features_that_the_run_names(folder, tmp_path) -> None:
    config = student(tmp_path, folder)
    config = replace(config, train=replace(config.train, evaluate_every=4, evaluate_features="digits"))
    trainer_of(config).fit()
    logged = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "frechet_train" in line] == [4, 8]
    with pytest.raises(ValueError, match="no features called 'digit'"):
        trainer_of(replace(config, name="other", train=replace(config.train, evaluate_features="digit")))
