"""Runs of consistency models: the same in every process, and the same after a restart."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from launch import together
from safetensors.torch import load_file, save_file
from small import DIT, Stopped, assert_same, image_data, make_config, make_loader, make_trainer, stopping, tensors
from teachers import make_teacher

from genflow.build import build_denoiser, build_loader, build_objective
from genflow.cli.train import check_resume
from genflow.config import (
    AveragedWeightsConfig,
    ByTeacherConfig,
    Config,
    ConsistencyConfig,
    ConsistencyKarrasConfig,
    ConstantConfig,
    DoublingConfig,
    EasyLevelsConfig,
    GridLevelsConfig,
    KarrasConfig,
    L1Config,
    NormConfig,
    OptimConfig,
    SampleConfig,
    SquaredL2Config,
    SquareRootConfig,
    UniformIntervalConfig,
    UnweightedConfig,
    VEConfig,
)
from genflow.config_files import to_toml
from genflow.denoiser import Denoiser
from genflow.evaluation.one_step import OneStep
from genflow.objectives import Batch, Consistency, Curriculum, Doubling, GridLevels
from genflow.parameterizations import Karras
from genflow.training.trainer import Trainer

CT = ConsistencyConfig(
    levels=GridLevelsConfig(curriculum=SquareRootConfig(last=20), law=UniformIntervalConfig()),
    metric=SquaredL2Config(),
    weighting=UnweightedConfig(),
    target=AveragedWeightsConfig(rate=0.9),
    label_dropout=0.3,
)
ICT = ConsistencyConfig(levels=GridLevelsConfig(curriculum=DoublingConfig(first=2, last=8)), label_dropout=0.3)
METHODS = {
    "ict": {"objective": ICT},
    "ct": {"objective": CT},
    "ict-dit": {"objective": ICT, "backbone": DIT},
    "constant": {"objective": replace(ICT, levels=GridLevelsConfig(curriculum=ConstantConfig(count=9)))},
    "ect": {
        "objective": ConsistencyConfig(levels=EasyLevelsConfig(stages=2), metric=NormConfig()),
        "parameterization": KarrasConfig(),
        "init": "unused",
    },
    "cd": {"objective": replace(ICT, levels=GridLevelsConfig(curriculum=ConstantConfig(count=9)), metric=L1Config())},
}


def consistency_config(out: Path, method: str = "ict", **train) -> Config:
    config = make_config(out, optim=OptimConfig(rule="radam", lr=1e-3, ema_halflife=100), **train)
    parts = {"schedule": VEConfig(), "parameterization": ConsistencyKarrasConfig()} | METHODS[method]
    if method == "cd":
        make_teacher(out / "teacher", shape=DATA[0], classes=DATA[1])
        parts["objective"] = replace(parts["objective"], descent=ByTeacherConfig(teacher=str(out / "teacher")))
    return replace(config, sample=SampleConfig(sampler="multistep", steps=1, middle=(0.821,)), **parts)


def trainer_of(config: Config, **given) -> Trainer:
    """A trainer of a fresh network, whatever the configuration would start from."""
    fresh = build_denoiser(replace(config, init="", objective=ICT, parameterization=ConsistencyKarrasConfig()), *DATA)
    if isinstance(config.parameterization, KarrasConfig):
        fresh = Denoiser(
            fresh.backbone, fresh.schedule, Karras(), image_shape=fresh.image_shape, num_classes=fresh.num_classes
        )
    return make_trainer(config, objective=build_objective(config, fresh), **given)


DATA = (image_data().image_shape, image_data().num_classes)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True, kw_only=True)
class OnlyOnTheFirst(Curriculum):
    """A number of levels that only the main process refreshes."""

    inner: Curriculum

    def points(self, step: int) -> int:
        return self.inner.points(step if rank() == 0 else 0)


def assert_levels_agree(told: list[dict]) -> None:
    """All processes report the same numbers of levels and grids, on other images with other noise and intervals."""
    first, second = told
    assert first["points"] == second["points"]
    assert first["grid"] == second["grid"]
    assert len(set(first["points"])) > 1
    for name in ("noise", "index", "u"):
        drawn, others = (set(map(tuple, one[name][1:])) for one in (first, second))  # the first pass counts for nothing
        assert not drawn & others


def report(levels: GridLevels, folder: Path, trainer: Trainer) -> None:
    """Train, and write down what each step of this process was made of."""
    told: dict[str, list] = {"points": [], "grid": [], "noise": [], "index": [], "u": [], "norm": []}
    objective = trainer.objective
    assert isinstance(objective, Consistency)
    objective.levels = levels
    inner = objective.levels.__class__.pairs

    class Told(type(levels)):  # what the objective asks for, written down
        def pairs(self, u, step):
            told["points"].append(self.curriculum.points(step))
            told["grid"].append(self.table(step, u.device)[0].tolist())
            told["u"].append(u.tolist())
            return inner(self, u, step)

    objective.levels = Told(curriculum=levels.curriculum, law=levels.law)
    draw, add = trainer._batch, trainer.meter.add_step

    def batch(number: int) -> Batch:
        made = draw(number)
        told["noise"].append(made.noise.flatten()[:4].tolist())
        told["index"].append(made.index.tolist())
        return made

    def add_step(norm, bad) -> None:
        told["norm"].append(float(norm))
        add(norm, bad)

    trainer._batch, trainer.meter.add_step = batch, add_step
    trainer.fit()
    folder.mkdir(exist_ok=True)
    (folder / f"{rank()}.json").write_text(json.dumps(told))


@pytest.mark.parametrize("curriculum", ["shared", "of the first process"])
def test_processes_train_on_the_same_levels_and_other_images(curriculum: str, tmp_path) -> None:
    """And see the same norm of their common gradient; a curriculum of the main process alone is told apart."""
    doubling = Doubling(total=6, first=2, last=8)
    inner = doubling if curriculum == "shared" else OnlyOnTheFirst(inner=doubling)

    def work() -> None:
        trainer = trainer_of(consistency_config(tmp_path, steps=6, batch_size=8))
        trainer.loader = build_loader(trainer.config, image_data(), trainer.accelerator)
        levels = trainer.objective.levels
        report(GridLevels(curriculum=inner, law=levels.law), tmp_path / "told", trainer)

    assert together(work, 2) == [0, 0]
    told = [json.loads((tmp_path / "told" / f"{k}.json").read_text()) for k in range(2)]
    assert told[0]["norm"] == told[1]["norm"]
    if curriculum == "shared":
        assert_levels_agree(told)
        assert told[0]["points"][1:] == [3, 3, 5, 5, 9, 9]  # after the pass that settles processes
    else:
        with pytest.raises(AssertionError):
            assert_levels_agree(told)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_after_fifty_steps_all_processes_hold_the_same_weights(method: str, tmp_path) -> None:
    """With dropout, flips and label dropout, in two parts a step; the average that teaches is the same, too."""
    config = consistency_config(tmp_path, method, steps=50, batch_size=8, microbatch=2, checkpoint_every=50)

    def work() -> None:
        trainer = trainer_of(config)
        trainer.loader = build_loader(config, image_data(), trainer.accelerator)
        trainer.fit()
        save_file({k: v.contiguous() for k, v in tensors(trainer).items()}, tmp_path / f"{rank()}.safetensors")

    assert together(work, 2) == [0, 0]
    first, second = (load_file(tmp_path / f"{k}.safetensors") for k in range(2))
    assert_same(first, second)
    assert {float(v) for k, v in first.items() if k.endswith(".step")} == {50.0}
    averages = [k for k in first if k.startswith("objective.target.average.")]
    assert bool(averages) == (method == "ct")


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_whole_run(method: str, tmp_path) -> None:
    """Eight steps are three, a kill at the fifth and the rest, bit by bit: levels, average, RAdam, the log."""
    whole = trainer_of(consistency_config(tmp_path / "whole", method))
    whole.fit()
    cut = consistency_config(tmp_path / "cut", method, checkpoint_every=3)
    with pytest.raises(Stopped):
        trainer_of(cut, loader=stopping(make_loader(cut), 4)).fit()
    again = trainer_of(cut)
    again.fit()
    assert_same(tensors(again), tensors(whole))
    logs = [[json.loads(line) for line in (t.folder / "log.jsonl").read_text().splitlines()] for t in (whole, again)]
    for records in logs:
        for record in records:
            record.pop("images_per_second", None)
    assert logs[0] == logs[1]


def test_a_run_is_not_resumed_at_another_pace(tmp_path) -> None:
    """Its length sets how fast its levels grow; a regression may be prolonged."""
    config = consistency_config(tmp_path)
    for made, refused in ((config, True), (make_config(tmp_path / "flow"), False)):
        longer = replace(made, train=replace(made.train, steps=16))
        check_resume(longer)  # nothing has been written
        (made.folder / "checkpoints" / "step-00000003").mkdir(parents=True)
        (made.folder / "config.toml").write_text(to_toml(made))
        check_resume(made)
        if refused:
            with pytest.raises(ValueError, match=r"train\.steps, which sets the pace of its noise levels"):
                check_resume(longer)
        else:
            check_resume(longer)


def test_the_middle_time_is_the_saved_models_grid_of_two_steps(tmp_path) -> None:
    trainer = trainer_of(consistency_config(tmp_path, steps=3))
    saved = Denoiser.from_pretrained(trainer.fit())
    assert (saved.sampler, saved.steps, saved.times) == ("multistep", 1, {"2": [80.0, 0.821, 0.0]})


def test_the_spread_of_one_step_samples_is_logged_at_previews(tmp_path) -> None:
    probe = OneStep(image_data(), range(8))
    trainer = trainer_of(consistency_config(tmp_path, preview_every=4), probe=probe)
    trainer.fit()
    records = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    told = [record for record in records if "one_step_std" in record]
    assert [record["step"] for record in told] == [4, 8]
    assert told[-1]["one_step_std"] == OneStep(image_data(), range(8))(trainer.ema.denoiser)["one_step_std"]
    paces = {record["step"]: record["levels"] for record in records if "loss" in record}
    assert paces == {step: trainer.objective.levels.curriculum.points(step - 1) for step in paces}
    assert len(set(paces.values())) > 1


def test_without_previews_it_is_logged_where_the_distance_is(tmp_path) -> None:
    config = consistency_config(tmp_path, preview_every=0, evaluate_every=4)
    trainer = trainer_of(config, probe=OneStep(image_data(), range(8)))
    trainer.preview, trainer.evaluate = None, lambda denoiser: 1.0
    trainer.fit()
    records = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    for key in ("one_step_std", "frechet_train"):
        assert [record["step"] for record in records if key in record] == [4, 8]
    assert not (trainer.folder / "previews").exists()
