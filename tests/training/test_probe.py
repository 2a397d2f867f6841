"""What the log of a run says of its averaged model at each preview: how straight it is."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from small import Stopped, assert_same, make_config, make_trainer, stopping, tensors
from teachers import make_teacher

from genflow import build
from genflow.cli.main import main
from genflow.config import Config, DataConfig, KarrasConfig, VEConfig
from genflow.data.pairs import load_pairs
from genflow.denoiser import Denoiser
from genflow.evaluation.crossing import crossing_of_pairs
from genflow.evaluation.straightness import straightness
from genflow.training.logging import JsonLog
from genflow.training.trainer import Trainer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("teacher")
    make_teacher(root / "model")
    assert main(["pairs", str(root / "model"), "--num", "80", "--steps", "2", "--out", str(root / "pairs")]) == 0
    return root / "pairs"


def student(out: Path, pairs: Path, **train) -> Config:
    config = make_config(out, preview_every=3, **train)
    return replace(config, data=DataConfig(path=str(pairs)), parameterization=KarrasConfig())


def trainer_of(config: Config) -> Trainer:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return build.build_trainer(config)


def lines(config: Config) -> list[dict]:
    records = map(json.loads, (config.folder / "log.jsonl").read_text().splitlines())
    return [record for record in records if "straightness" in record]


def test_a_run_on_pairs_logs_the_averaged_model_at_each_preview_and_again_when_it_goes_on(pairs, tmp_path) -> None:
    whole = trainer_of(student(tmp_path / "whole", pairs))
    whole.fit()
    logged = lines(whole.config)
    assert [line["step"] for line in logged] == [3, 6, 8]
    model = Denoiser.from_pretrained(whole.config.folder / "model")
    flow = straightness(model, range(build.EVALUATION_SEEDS, build.EVALUATION_SEEDS + 64), steps=32)
    assert logged[-1]["straightness"] == flow.straightness.value
    assert logged[-1]["one_step_gap"] == flow.one_step_gap.value
    assert logged[-1]["crossing"] == crossing_of_pairs(model, load_pairs(pairs), 64).value
    cut = student(tmp_path / "cut", pairs, checkpoint_every=2)
    for stop in (4, 7):
        trainer = trainer_of(cut)
        trainer.loader = stopping(trainer.loader, stop)
        with pytest.raises(Stopped):
            trainer.fit()
    again = trainer_of(cut)
    again.fit()
    assert lines(cut) == logged
    assert_same(tensors(again), tensors(whole))


def test_a_probe_changes_nothing_of_the_run(tmp_path) -> None:
    made = []
    for name, probe in (("with", build._Straightness(build.build_data(DataConfig(path="shapes")))), ("without", None)):
        trainer = make_trainer(make_config(tmp_path / name, preview_every=2, steps=4), probe=probe)
        trainer.fit()
        made.append(tensors(trainer))
    assert_same(*made)
    assert [sorted(line) for line in lines(make_config(tmp_path / "with"))] == [
        ["one_step_gap", "step", "straightness"]
    ] * 2


def test_only_rectified_flows_are_probed(tmp_path) -> None:
    config = replace(make_config(tmp_path), data=DataConfig(path="digits"))
    assert trainer_of(config).probe is not None
    config = replace(config, schedule=VEConfig(), parameterization=KarrasConfig())
    assert trainer_of(config).probe is None


def test_a_tracker_is_told(tmp_path, monkeypatch) -> None:
    trainer = make_trainer(make_config(tmp_path, preview_every=4), probe=lambda denoiser: {"straightness": 0.25})
    told: list[tuple[dict, int]] = []
    monkeypatch.setattr(trainer.accelerator, "log", lambda values, step: told.append((values, step)))
    trainer.fit()
    assert [(values, step) for values, step in told if "loss" not in values] == [
        ({"straightness": 0.25}, 4),
        ({"straightness": 0.25}, 8),
    ]


def test_looks_that_are_owed_are_not_told_twice(tmp_path) -> None:
    log = JsonLog(tmp_path / "log.jsonl")
    records = [{"step": 3, "straightness": 1.0}, {"step": 5, "loss": 2.0}, {"step": 5, "straightness": 1.0}]
    for record in [*records, {"step": 5, "frechet_train": 3.0}, {"step": 6, "loss": 1.0}]:
        log.write(record)
    log.rewind(5, owed=True)
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == records[:2]


def test_figures_that_are_not_finite_are_null(tmp_path) -> None:
    log = JsonLog(tmp_path / "log.jsonl")
    log.write({"step": 1, "spread": math.nan, "by_decile": [1.5, math.inf, None]})
    assert log.path.read_text() == '{"step": 1, "spread": null, "by_decile": [1.5, null, null]}\n'
