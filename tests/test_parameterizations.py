import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from genflow.parameterizations import (
    Coefficients,
    Conditioning,
    ConsistencyKarras,
    Converted,
    Karras,
    Parameterization,
    PredictClean,
    PredictNoise,
    PredictV,
    PredictVelocity,
)
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, Trig

PAIRS: list[tuple[Schedule, Parameterization]] = [
    *itertools.product([VP(), DiscreteVP(), Cosine()], [PredictNoise(), PredictClean(), PredictV(), Karras()]),
    *itertools.product([Linear()], [PredictClean(), PredictVelocity(), Karras(), Karras(sigma_data=0.3)]),
    *itertools.product([Trig()], [PredictClean(), PredictVelocity(sigma_data=0.5), Karras()]),
    *itertools.product([VE()], [PredictClean(), Karras(), ConsistencyKarras()]),
    *itertools.product([Linear(), VE()], [Converted(schedule=DiscreteVP(), row=PredictNoise())]),
]


def pair_name(value: object) -> str:
    return type(value).__name__


def data(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 1, 4, 4, dtype=torch.float64), torch.randn(count, 1, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize(("schedule", "row"), PAIRS, ids=pair_name)
def test_the_target_gives_the_clean_image(schedule: Schedule, row: Parameterization) -> None:
    x, noise = data()
    t = schedule.t_max * torch.linspace(0.01, 0.97, len(x), dtype=torch.float64)
    x_t = schedule.interpolate(x, noise, t)
    target = row.target(schedule, x, noise, t)
    torch.testing.assert_close(row.clean(schedule, target, x_t, t), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("schedule", "row"), PAIRS, ids=pair_name)
def test_scalar_and_batch_times_agree(schedule: Schedule, row: Parameterization) -> None:
    t = torch.tensor(0.4 * schedule.t_max, dtype=torch.float64)
    one, many = row.coefficients(schedule, t), row.coefficients(schedule, t.expand(3))
    for field in ("c_in", "c_skip", "c_out", "c_noise"):
        assert torch.equal(getattr(one, field).expand(3), getattr(many, field))


def test_targets_are_what_the_papers_regress_on() -> None:
    x, noise = data()
    t = torch.linspace(0.05, 0.95, len(x), dtype=torch.float64)
    alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (VP().alpha, VP().sigma))
    torch.testing.assert_close(PredictNoise().target(VP(), x, noise, t), noise)
    torch.testing.assert_close(PredictV().target(VP(), x, noise, t), alpha * noise - sigma * x)
    torch.testing.assert_close(PredictClean().target(VP(), x, noise, t), x)
    torch.testing.assert_close(PredictVelocity().target(Linear(), x, noise, t), noise - x)
    cos, sin = t.cos().view(-1, 1, 1, 1), t.sin().view(-1, 1, 1, 1)
    velocity = cos * 0.5 * noise - sin * x  # TrigFlow writes its noise as sigma_data times a unit normal
    torch.testing.assert_close(
        PredictVelocity(sigma_data=0.5).target(Trig(), x, noise, t), velocity / 0.5, rtol=1e-9, atol=1e-9
    )


def test_karras_on_ve_is_edms_table() -> None:
    sigma = torch.logspace(-2.5, 1.9, 50, dtype=torch.float64)
    row = Karras().coefficients(VE(), sigma)
    torch.testing.assert_close(row.c_skip, 0.25 / (sigma**2 + 0.25))
    torch.testing.assert_close(row.c_out, sigma * 0.5 / torch.sqrt(sigma**2 + 0.25))
    torch.testing.assert_close(row.c_in, 1 / torch.sqrt(sigma**2 + 0.25))
    torch.testing.assert_close(row.c_noise, sigma.log() / 4)


def test_raw_error_with_karras_is_edms_weighted_loss() -> None:
    """EDM weighs the squared error of the clean image by (sigma^2 + sd^2) / (sigma sd)^2, which is 1 / c_out^2."""
    x, noise = data()
    sigma = torch.logspace(-2, 1.5, len(x), dtype=torch.float64)
    x_t, row = VE().interpolate(x, noise, sigma), Karras()
    raw = torch.randn_like(x)
    of_raw = (raw - row.target(VE(), x, noise, sigma)).square().flatten(1).mean(1)
    of_clean = (row.clean(VE(), raw, x_t, sigma) - x).square().flatten(1).mean(1)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(of_raw, weight * of_clean)


def test_karras_target_has_unit_variance_at_every_level() -> None:
    x, noise = 0.5 * torch.randn(200_000, dtype=torch.float64), torch.randn(200_000, dtype=torch.float64)
    for schedule in (VE(), Linear(), VP()):
        for share in (0.05, 0.5, 0.9):
            t = torch.tensor(share * schedule.t_max, dtype=torch.float64)
            target = Karras().target(schedule, x.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1), t)
            assert target.std() == pytest.approx(1, abs=0.01)


def test_karras_on_linear_equals_edm_in_scaled_coordinates() -> None:
    """Rectified-flow state x_t is EDM's state x_t / (1 - t) at noise level t / (1 - t)."""
    t = torch.linspace(0.01, 0.98, 40, dtype=torch.float64)
    x_t, raw = data(40)
    level = t / (1 - t)
    ours = Karras().clean(Linear(), raw, x_t, t)
    edm = Karras().clean(VE(), raw, x_t / (1 - t).view(-1, 1, 1, 1), level)
    torch.testing.assert_close(ours, edm)
    rows = Karras().coefficients(Linear(), t), Karras().coefficients(VE(), level)
    torch.testing.assert_close(rows[0].c_noise, rows[1].c_noise)
    torch.testing.assert_close(rows[0].c_in, rows[1].c_in / (1 - t))


def test_karras_velocity_is_the_stable_form() -> None:
    """v = [t - sd^2 (1 - t)] / q x_t - sd / sqrt(q) raw, also at t = 1 where the literal form divides by zero."""
    x_t, raw = data(3)
    t = torch.tensor([1e-3, 0.5, 1.0], dtype=torch.float64)
    v = (x_t - Karras().clean(Linear(), raw, x_t, t)) / t.view(-1, 1, 1, 1)
    q = t**2 + 0.25 * (1 - t) ** 2
    a, b = ((t - 0.25 * (1 - t)) / q).view(-1, 1, 1, 1), (0.5 / q.sqrt()).view(-1, 1, 1, 1)
    torch.testing.assert_close(v, a * x_t - b * raw, rtol=1e-8, atol=1e-8)


def test_karras_clips_what_the_embedding_sees() -> None:
    t = torch.tensor([0.0, 1e-6, 0.5, 1.0], dtype=torch.float64)
    seen = Karras().coefficients(Linear(), t).c_noise
    low, high = torch.tensor([0.002, 80.0], dtype=torch.float64).log() / 4
    torch.testing.assert_close(seen, torch.stack([low, low, torch.zeros_like(low), high]))


def test_karras_conditioning_is_a_choice() -> None:
    """By level as far as EDM's go, by level to the ends of 2-RF's times, and by time; nothing else depends on it."""
    t = torch.tensor([1e-5, 0.5, 80 / 81, 1 - 1e-5, 1.0], dtype=torch.float64)
    published = Karras(level_min=1e-5, level_max=99999.0)
    by_time = Karras(conditioning=Conditioning.TIME)
    seen = [row.coefficients(Linear(), t).c_noise for row in (Karras(), published, by_time)]
    assert seen[0].tolist() == pytest.approx([-1.553652, 0, 1.095507, 1.095507, 1.095507], abs=1e-6)
    assert seen[1].tolist() == pytest.approx([-2.878229, 0, 1.095507, 2.878229, 2.878229], abs=1e-5)
    assert torch.equal(seen[2], t)
    for row in (published, by_time):
        for field in ("c_in", "c_skip", "c_out"):
            ours, usual = (getattr(r.coefficients(Linear(), t), field) for r in (row, Karras()))
            assert torch.equal(ours, usual)


def test_karras_target_keeps_its_digits_near_the_image() -> None:
    x, noise = data()
    for level in (1e-4, 1e-6):
        t = torch.full((len(x),), level, dtype=torch.float64)
        exact = (level * x - 0.25 * noise) / (0.5 * (level**2 + 0.25) ** 0.5)
        torch.testing.assert_close(Karras().target(VE(), x, noise, t), exact, rtol=1e-5, atol=1e-5)


def test_consistency_boundary_is_exact() -> None:
    x_t, raw = torch.randn(2, 4, 1, 5, 5)
    for sigma_min in (0.002, 0.01):
        row = ConsistencyKarras(sigma_min=sigma_min)
        t = torch.tensor(sigma_min, dtype=torch.float64)
        assert torch.equal(row.clean(VE(), raw, x_t, t), x_t)


def test_consistency_rows_beyond_both_ends_stay_finite_and_told_of_the_ends() -> None:
    """At t = 0 the image is the state itself, and the embedding sees no level below sigma_min or above level_max."""
    row = ConsistencyKarras(sigma_min=0.01, level_max=40.0)
    t = torch.tensor([0.0, 0.001, 0.01, 40.0, 80.0], dtype=torch.float64)
    x_t, raw = torch.randn(2, 5, 1, 5, 5)
    assert torch.equal(row.clean(VE(), raw, x_t, t)[:3], x_t[:3])
    low, high = torch.tensor([0.01, 40.0], dtype=torch.float64).log() / 4
    torch.testing.assert_close(row.coefficients(VE(), t).c_noise, torch.stack([low, low, low, high, high]))


def assert_is_the_published_row(row: Parameterization) -> None:
    """c_skip, c_out, c_in, ln(sigma) / 4 to eight digits."""
    table = {
        0.002: (1.00000000, 0.00000000, 1.99998400, -1.553652),
        0.01: (0.99974407, 0.00799840, 1.99960012, -1.151293),
        0.1: (0.96300519, 0.09609691, 1.96116135, -0.575646),
        0.5: (0.50200400, 0.35213918, 1.41421356, -0.173287),
        0.821: (0.27151454, 0.42599871, 1.04028989, -0.049308),
        1.0: (0.20064141, 0.44631917, 0.89442719, 0.0),
        10.0: (0.00249476, 0.49927629, 0.09987523, 0.575646),
        80.0: (0.00003906, 0.49997773, 0.01249976, 1.095507),
    }
    for sigma, expected in table.items():
        given = row.coefficients(VE(), torch.tensor(sigma, dtype=torch.float64))
        values = [float(v) for v in (given.c_skip, given.c_out, given.c_in, given.c_noise)]
        assert values == pytest.approx(expected, abs=6e-7)


def test_consistency_table() -> None:
    assert_is_the_published_row(ConsistencyKarras())


DEFECTS: dict[str, Callable[[Coefficients, torch.Tensor], dict[str, torch.Tensor]]] = {
    "no root in c_in": lambda row, sigma: {"c_in": row.c_in**2},
    "scalings without sigma_min": lambda row, sigma: {
        "c_skip": 0.25 / (sigma**2 + 0.25),
        "c_out": 0.5 * sigma * row.c_in,
    },
    "c_out without sigma_data": lambda row, sigma: {"c_out": row.c_out / 0.5},
    "no c_in": lambda row, sigma: {"c_in": torch.ones_like(sigma)},
    "sigma itself as the time": lambda row, sigma: {"c_noise": sigma},
    "the output over sigma once more": lambda row, sigma: {"c_out": row.c_out / sigma},
    "ln sigma as the time": lambda row, sigma: {"c_noise": sigma.log()},
    "a thousand times ln(sigma) / 4": lambda row, sigma: {"c_noise": 250 * sigma.log()},
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_published_defects_of_the_row_are_told_apart(defect: str) -> None:
    """Mistakes that public programs of consistency models make."""

    class Defective(ConsistencyKarras):
        def coefficients(self, schedule: Schedule, t: torch.Tensor) -> Coefficients:
            row = super().coefficients(schedule, t)
            return replace(row, **DEFECTS[defect](row, schedule.sigma(t)))

    with pytest.raises(AssertionError):
        assert_is_the_published_row(Defective())


def test_ddpm_networks_see_the_step() -> None:
    t = torch.tensor([1 / 1000, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        PredictNoise().coefficients(DiscreteVP(), t).c_noise, torch.tensor([0.0, 499.0, 999.0], dtype=torch.float64)
    )
