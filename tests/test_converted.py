"""A diffusion model's weights on another schedule are the model itself: time and scale are converted, nothing else."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from small import DIT, UNET, make_config
from torch import Tensor

from genflow.build import build_denoiser, build_trainer, export
from genflow.card_method import method
from genflow.config import (
    Config,
    ConvertedConfig,
    DataConfig,
    DiscreteVPConfig,
    LinearConfig,
    PredictNoiseConfig,
    PredictVConfig,
    RegressionConfig,
    VPConfig,
)
from genflow.denoiser import Denoiser
from genflow.parameterizations import Converted, Karras, Parameterization, PredictClean, PredictNoise, PredictV
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, linear_betas

TEACHERS: list[tuple[Schedule, Parameterization]] = list(
    itertools.product(
        [VP(), VP(beta_d=10.0, beta_min=0.3), DiscreteVP(), DiscreteVP(betas=linear_betas(37, 1e-3, 0.3)), Cosine()],
        [PredictNoise(), PredictV(), PredictClean()],
    )
)


def name_of(value: object) -> str:
    return type(value).__name__


def end_of(schedule: Schedule) -> float:
    """The time on ``Linear`` with the schedule's last noise level."""
    t = torch.tensor(schedule.t_max, dtype=torch.float64)
    return float(schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t)))


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def test_the_time_of_vp_is_the_papers() -> None:
    """sigma_s / alpha_s = t / (1 - t), solved for s by hand; and 1 from the end of VP on."""
    known = {0.1: 0.030449, 0.25: 0.098000, 0.5: 0.258960, 0.75: 0.476058, 0.9: 0.660491, 0.99: 0.956056}
    t = torch.tensor([*known, 0.9935, 1.0], dtype=torch.float64)
    s = Converted(schedule=VP(), row=PredictNoise()).time_of(Linear(), t)
    torch.testing.assert_close(s, torch.tensor([*known.values(), 1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-5)
    level = t[:-2] / (1 - t[:-2])
    closed = ((0.1**2 + 2 * 19.9 * (1 + level**2).log()).sqrt() - 0.1) / 19.9
    torch.testing.assert_close(s[:-2], closed, rtol=1e-12, atol=0)
    assert end_of(VP()) == pytest.approx(0.99347, abs=1e-5)


def test_the_input_keeps_the_size_of_a_variance_preserving_state() -> None:
    """alpha_s / (1 - t) = alpha_s + sigma_s = 1 / sqrt(t^2 + (1 - t)^2)."""
    t = torch.linspace(0, 0.99, 100, dtype=torch.float64)
    for schedule in (VP(), DiscreteVP()):
        row = Converted(schedule=schedule, row=PredictNoise())
        s = row.time_of(Linear(), t)
        size = (t**2 + (1 - t) ** 2).rsqrt()
        torch.testing.assert_close(schedule.alpha(s) / (1 - t), size, rtol=1e-11, atol=0)
        torch.testing.assert_close(row.coefficients(Linear(), t).c_in, size, rtol=1e-11, atol=0)


def test_predicted_noise_is_read_as_the_paper_does() -> None:
    t = torch.linspace(0.001, 0.993, 100, dtype=torch.float64)
    x_t, raw = torch.randn(2, 100, 1, 2, 2, dtype=torch.float64)
    clean = Converted(schedule=VP(), row=PredictNoise()).clean(Linear(), raw, x_t, t)
    torch.testing.assert_close(clean, (x_t - column(t) * raw) / column(1 - t), rtol=1e-9, atol=1e-9)


def test_the_network_sees_the_steps_of_its_table_and_what_lies_between() -> None:
    """At the noise level of entry k it is told k, at that of a half-way in t, k + 1/2."""
    schedule = DiscreteVP()
    k = torch.tensor([0.0, 1.0, 17.5, 499.0, 998.25, 999.0], dtype=torch.float64)
    s = (k + 1) / 1000
    t = schedule.sigma(s) / (schedule.alpha(s) + schedule.sigma(s))
    row = Converted(schedule=schedule, row=PredictNoise()).coefficients(Linear(), t)
    torch.testing.assert_close(row.c_noise, k, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("schedule", "row"), TEACHERS, ids=name_of)
@pytest.mark.parametrize("student", [Linear(), VE()], ids=name_of)
def test_it_is_the_teacher_at_the_converted_state(student, schedule, row) -> None:
    s = schedule.t_max * torch.linspace(0.01, 1, 50, dtype=torch.float64)
    x_s, raw = torch.randn(2, 50, 1, 2, 2, dtype=torch.float64)
    t = student.time_at(schedule.sigma(s) / schedule.alpha(s))
    size = (student.alpha(t) + student.sigma(t)) / (schedule.alpha(s) + schedule.sigma(s))
    ours = Converted(schedule=schedule, row=row)
    expected = row.clean(schedule, raw, x_s, s)
    torch.testing.assert_close(ours.clean(student, raw, column(size) * x_s, t), expected, rtol=1e-9, atol=1e-9)
    mine, its = ours.coefficients(student, t), row.coefficients(schedule, s)
    torch.testing.assert_close(mine.c_in * size, its.c_in, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mine.c_noise, its.c_noise, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(("schedule", "row"), TEACHERS, ids=name_of)
def test_it_is_finite_everywhere_and_held_beyond_the_teachers_end(schedule, row) -> None:
    ours, end = Converted(schedule=schedule, row=row), end_of(schedule)
    t = torch.tensor([0.0, 1e-12, 1e-5, end, (1 + end) / 2, 1 - 1e-12, 1.0], dtype=torch.float64)
    found = ours.coefficients(Linear(), t)
    for field in ("c_in", "c_skip", "c_out", "c_noise"):
        values = getattr(found, field)
        assert values.isfinite().all()
        torch.testing.assert_close(values[4:], values[3].expand(3), rtol=1e-9, atol=1e-9)
    x, noise = torch.randn(2, 5, 1, 2, 2, dtype=torch.float64)
    t = t[2:]
    x_t, target = Linear().interpolate(x, noise, t), ours.target(Linear(), x, noise, t)
    assert target.isfinite().all()
    torch.testing.assert_close(ours.clean(Linear(), target, x_t, t), x, rtol=1e-6, atol=1e-6)


def test_edms_row_converted_is_edms_row_on_linear() -> None:
    t = torch.linspace(0.01, 0.98, 50, dtype=torch.float64)
    converted = Converted(schedule=VE(), row=Karras()).coefficients(Linear(), t)
    direct = Karras().coefficients(Linear(), t)
    for field in ("c_in", "c_skip", "c_out", "c_noise"):
        torch.testing.assert_close(getattr(converted, field), getattr(direct, field), rtol=1e-12, atol=1e-12)


CONFIGS = {
    "vp": (VPConfig(), PredictNoiseConfig()),
    "ddpm": (DiscreteVPConfig(), PredictNoiseConfig()),
    "v": (VPConfig(beta_d=25.0), PredictVConfig()),
}


def teacher_of(folder: Path, kind: str, backbone=UNET) -> Denoiser:
    """Save a teacher with random weights, and return it."""
    schedule, row = CONFIGS[kind]
    config = replace(make_config(folder.parent, backbone), schedule=schedule, parameterization=row)
    teacher = build_denoiser(config, (1, 8, 8), 10).eval()
    torch.manual_seed(3)
    for p in teacher.parameters():
        p.data += 0.05 * torch.randn_like(p)
    export(teacher, folder)
    return teacher


def student_of(folder: Path, kind: str, backbone=UNET, **train) -> Config:
    schedule, row = CONFIGS[kind]
    config = make_config(folder.parent, replace(backbone, dropout=0.0), **train)
    return replace(
        config,
        init=str(folder),
        schedule=LinearConfig(),
        parameterization=ConvertedConfig(schedule=schedule, row=row),
        objective=RegressionConfig(label_dropout=0.0),
        data=DataConfig(path="digits"),
    )


@pytest.mark.parametrize("backbone", [UNET, DIT], ids=name_of)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_student_equals_its_teacher_at_the_start_and_when_it_is_loaded(kind, backbone, tmp_path) -> None:
    teacher = teacher_of(tmp_path / "teacher", kind, backbone)
    student = build_denoiser(student_of(tmp_path / "teacher", kind, backbone), (1, 8, 8), 10).eval()
    row = student.parameterization
    assert isinstance(row, Converted)
    t, y = torch.tensor([0.002, 0.1, 0.2315, 0.5, 0.9, 0.99], dtype=torch.float64), torch.arange(6)
    s = row.time_of(student.schedule, t)
    size = teacher.schedule.alpha(s) + teacher.schedule.sigma(s)
    x_t = Linear().interpolate(*torch.randn(2, 6, 1, 8, 8), t)
    with torch.no_grad():
        mine = student.denoise(x_t, t, y)
        its = teacher.denoise(column(size).float() * x_t, s, y)
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5 * float(its.abs().max()))
        assert (mine - x_t).abs().mean() > 0.05
        student.save_pretrained(tmp_path / "saved")
        loaded = Denoiser.from_pretrained(tmp_path / "saved").eval()
        assert (loaded.schedule, loaded.parameterization) == (student.schedule, row)
        assert torch.equal(loaded.denoise(x_t, t, y), mine)


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_begins_with_the_teachers_loss(kind, tmp_path) -> None:
    teacher = teacher_of(tmp_path / "teacher", kind)
    config = replace(student_of(tmp_path / "teacher", kind, steps=2), seed=1)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    trainer = build_trainer(config)
    batches = []
    trainer.objective.register_forward_pre_hook(lambda _, given: batches.append(given[0]))
    trainer.fit()
    batch = batches[0]
    assert float(batch.u.max()) < end_of(teacher.schedule)  # uniform times are their ranks
    s = Converted(schedule=teacher.schedule, row=teacher.parameterization).time_of(Linear(), batch.u)
    with torch.no_grad():
        raw = teacher(teacher.schedule.interpolate(batch.x, batch.noise, s), s, batch.y)
    error = raw - teacher.parameterization.target(teacher.schedule, batch.x, batch.noise, s)
    lines = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
    first = next(line["loss"] for line in lines if line["step"] == 1)
    assert first == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert first > 0.1


def test_noise_predicted_on_linear_itself_is_refused_with_the_way_out(tmp_path) -> None:
    config = replace(student_of(tmp_path, "vp"), parameterization=PredictNoiseConfig(), init="")
    with pytest.raises(
        ValueError, match="use PredictVelocity or Karras, or Converted with the weights of a model that"
    ):
        build_denoiser(config, (1, 8, 8), 10)


def test_a_card_names_what_is_converted(tmp_path) -> None:
    text = method(build_denoiser(replace(student_of(tmp_path, "ddpm"), init=""), (1, 8, 8), 10), None)
    assert "a diffusion model's network, its time and scale converted (arXiv 2405.20320)" in text
    assert "`Converted(schedule=DiscreteVP(betas=1000 from 0.0001 to 0.02), row=PredictNoise())`" in text
