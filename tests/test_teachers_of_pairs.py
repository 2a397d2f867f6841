"""Pairs are for their teacher and its students, known by weights and not by folders; for others if they say so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from small import make_config
from teachers import make_teacher

from genflow.build import build_trainer, export
from genflow.cli.main import main
from genflow.config import Config, DataConfig, KarrasConfig
from genflow.config_files import to_toml
from genflow.data.pair_files import Manifest
from genflow.data.pairs import load_pairs
from genflow.denoiser import Denoiser, weights_hash

DIGITS = "digits"  # which real pairs are made of: 10 classes, 8x8


def pairs_of(teacher: Path, out: Path, *given: str) -> Path:
    assert main(["pairs", str(teacher), "--num", "40", "--steps", "1", "--out", str(out), *given]) == 0
    return out


def run(out: Path, pairs: Path, init: Path | None, name: str = "small", **data) -> Config:
    config = make_config(out, steps=2)
    given = DataConfig(path=str(pairs), **data)
    return replace(config, name=name, data=given, parameterization=KarrasConfig(), init=str(init or ""))


def train(config: Config) -> Path:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return build_trainer(config).fit()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of two teachers, what each has made, and a student of the first, all of which are then moved."""
    root = tmp_path_factory.mktemp("made")
    for k in (1, 2):
        make_teacher(root / f"teacher-{k}", classes=10, seed=k)
        pairs_of(root / f"teacher-{k}", root / f"pairs-{k}")
    pairs_of(root / "teacher-1", root / "real", "--invert", DIGITS)
    train(run(root, root / "pairs-1", root / "teacher-1", name="student"))
    moved = root.with_name("moved")
    shutil.move(root, moved)
    return moved


def hash_of(folder: Path) -> str:
    return weights_hash(Denoiser.from_pretrained(folder))


def test_students_remember_the_weights_of_their_teacher(made) -> None:
    student = Denoiser.from_pretrained(made / "student" / "model")
    assert student.teacher == hash_of(made / "teacher-1") == load_pairs(made / "pairs-1").manifest.teacher
    assert Denoiser.from_pretrained(made / "teacher-1").teacher == ""


@pytest.mark.parametrize(
    ("init", "pairs", "teacher"),
    [
        ("teacher-1", "pairs-1", "teacher-1"),
        ("teacher-1", "real", "teacher-1"),
        ("student/model", "real", "teacher-1"),  # as 2-RF++'s configuration G
        ("student/model", "pairs-1", "teacher-1"),
        (None, "pairs-2", "teacher-2"),
    ],
)
def test_a_teachers_pairs_are_for_itself_for_its_students_and_for_whoever_begins_afresh(
    init, pairs, teacher, made, tmp_path
) -> None:
    config = run(tmp_path, made / pairs, init and made / init)
    model = train(config)
    assert Denoiser.from_pretrained(model).teacher == hash_of(made / teacher)
    train(run(tmp_path, made / "pairs-2" if init is None else made / "real", model, name="again"))


def test_a_student_may_make_pairs_of_its_own(made, tmp_path) -> None:
    """And is then the teacher of the next one, who has nothing to do with the first."""
    start = made / "student" / "model"
    own = pairs_of(start, tmp_path / "own", "--sampler", "euler")
    model = train(run(tmp_path, own, start))
    assert Denoiser.from_pretrained(model).teacher == hash_of(start)
    with pytest.raises(ValueError, match="holds pairs of another teacher"):
        train(run(tmp_path, made / "pairs-1", model, name="again"))


@pytest.mark.parametrize("init", ["teacher-1", "student/model"])
def test_pairs_of_another_teacher_are_refused_unless_they_are_meant(init, made, tmp_path, capfd) -> None:
    config = run(tmp_path, made / "pairs-2", made / init)
    (tmp_path / "run.toml").write_text(to_toml(config), encoding="utf-8")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    (said,) = capfd.readouterr().err.splitlines()
    maker, own = hash_of(made / "teacher-2")[:12], hash_of(made / init)[:12]
    assert f"pairs-2 holds pairs of another teacher: they were made by a model of weights {maker}" in said
    assert f"init {made / init} has weights {own}" in said
    taught = f"which was trained on pairs of {hash_of(made / 'teacher-1')[:12]}"
    assert (taught in said) == (init == "student/model")
    assert said.endswith("or train on these all the same by --data.any-teacher")
    assert not config.folder.exists()
    assert main(["train", str(tmp_path / "run.toml"), "--data.any-teacher"]) == 0
    assert Denoiser.from_pretrained(config.folder / "model").teacher == hash_of(made / "teacher-2")


def test_a_copy_that_was_tuned_is_another_model(made, tmp_path) -> None:
    """In a single weight, too; the same weights elsewhere are the same."""
    copy = Denoiser.from_pretrained(made / "teacher-1")
    export(copy, tmp_path / "copy")
    train(run(tmp_path, made / "pairs-1", tmp_path / "copy", name="same"))
    with torch.no_grad():
        next(copy.parameters()).view(-1)[0] += 1
    export(copy, tmp_path / "tuned")
    config = run(tmp_path, made / "pairs-1", tmp_path / "tuned", name="tuned-on")
    with pytest.raises(ValueError, match="holds pairs of another teacher"):
        train(config)
    train(replace(config, data=replace(config.data, any_teacher=True)))


def test_a_run_goes_on_without_what_it_started_from(made, tmp_path) -> None:
    shutil.copytree(made / "teacher-1", tmp_path / "start")
    config = run(tmp_path, made / "pairs-1", tmp_path / "start")
    model = train(config)
    shutil.rmtree(tmp_path / "start")
    train(replace(config, train=replace(config.train, steps=4)))
    assert Denoiser.from_pretrained(model).teacher == hash_of(made / "teacher-1")


def test_what_tells_of_no_teacher_is_not_taken_for_the_same(made, tmp_path) -> None:
    """A student saved by a version that kept none, and a manifest that names none."""
    shutil.copytree(made / "student" / "model", tmp_path / "old")
    path = tmp_path / "old" / "denoiser" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("teacher")
    path.write_text(json.dumps(config))
    assert Denoiser.from_pretrained(tmp_path / "old").teacher == ""
    with pytest.raises(ValueError, match="holds pairs of another teacher"):
        train(run(tmp_path, made / "real", tmp_path / "old"))
    shutil.copytree(made / "pairs-1", tmp_path / "pairs")
    path = tmp_path / "pairs" / "manifest.json"
    said = json.loads(path.read_text())
    for told in ({}, {"teacher": 5}, {"teacher": {"weights": None}}):
        path.write_text(json.dumps(said | {"made": told}))
        with pytest.raises(ValueError, match="made by a model of weights unknown, and init"):
            train(run(tmp_path, tmp_path / "pairs", tmp_path / "old"))


def test_a_manifest_tells_its_teacher() -> None:
    def of(made: dict) -> str:
        return Manifest.of_seeds(made=made, image_shape=(1, 2, 2), num_classes=0, first_seed=0, count=1).teacher

    assert of({"teacher": {"weights": "abc", "schedule": {}}}) == "abc"
    assert of({"images": "digits"}) == ""


def test_the_option_goes_with_pairs(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"data.any_teacher goes with a folder that genflow pairs writes, and digits"):
        train(run(tmp_path, Path(DIGITS), None, any_teacher=True))
