"""Errors of velocities from errors of raw outputs, against the definitions written out."""

import itertools

import pytest
import torch
from oracles import CountingNetwork

from genflow.denoiser import Denoiser
from genflow.objectives import Batch, RawResidual, Regression, SquaredL2, UShaped, VelocityResidual
from genflow.parameterizations import Karras, Parameterization, PredictClean, PredictV, PredictVelocity
from genflow.schedules import VE, VP, Linear, Schedule, Trig

TIMES = torch.cat([torch.tensor([1e-5, 1e-4, 1e-3]), torch.linspace(0.01, 0.99, 57), 1 - torch.tensor([1e-4, 1e-5])])
TIMES = TIMES.double()


def wide(t: torch.Tensor) -> torch.Tensor:
    return t.view(-1, 1, 1, 1)


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    x, noise, raw = torch.randn(3, len(TIMES), 1, 4, 4, dtype=torch.float64)
    return 0.5 * x, noise, raw


def literal_velocity(x_t: torch.Tensor, raw: torch.Tensor, t: torch.Tensor, sd: float = 0.5) -> torch.Tensor:
    """2-RF++ as published: EDM's denoiser on the state divided by 1 - t at noise level t / (1 - t)."""
    level, scaled = t / (1 - t), x_t / wide(1 - t)
    c_skip, c_out = sd**2 / (level**2 + sd**2), level * sd / (level**2 + sd**2).sqrt()
    return (x_t - (wide(c_skip) * scaled + wide(c_out) * raw)) / wide(t)


def test_karras_on_linear_sees_the_published_residual() -> None:
    """``(noise - x) - v`` to 1e-9 for t in [1e-5, 1 - 1e-5]."""
    x, noise, raw = data()
    x_t = Linear().interpolate(x, noise, TIMES)
    scale = VelocityResidual().scale(Linear(), Karras(), TIMES)
    ours = wide(scale) * (raw - Karras().target(Linear(), x, noise, TIMES))
    theirs = (noise - x) - literal_velocity(x_t, raw, TIMES)
    assert (ours - theirs).abs().max() < 1e-9
    torch.testing.assert_close(scale, 0.5 / (TIMES**2 + 0.25 * (1 - TIMES) ** 2).sqrt(), rtol=1e-12, atol=0)


def test_the_stable_velocity_is_the_literal_one() -> None:
    x, noise, raw = data()
    x_t = Linear().interpolate(x, noise, TIMES)
    q = TIMES**2 + 0.25 * (1 - TIMES) ** 2
    stable = wide((TIMES - 0.25 * (1 - TIMES)) / q) * x_t - wide(0.5 / q.sqrt()) * raw
    assert (stable - literal_velocity(x_t, raw, TIMES)).abs().max() < 1e-9
    clean = Karras().clean(Linear(), raw, x_t, TIMES)
    torch.testing.assert_close(clean, x_t - wide(TIMES) * stable, rtol=1e-9, atol=1e-9)


def test_a_network_that_gives_nothing_moves_by_the_best_linear_velocity() -> None:
    x_t = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    t = torch.tensor([1e-9, 0.5, 1.0], dtype=torch.float64)
    v = (x_t - Karras().clean(Linear(), torch.zeros_like(x_t), x_t, t)) / wide(t)
    torch.testing.assert_close(v.flatten(), torch.tensor([-1.0, 1.2, 1.0], dtype=torch.float64), rtol=1e-6, atol=1e-6)


PAIRS: list[tuple[Schedule, Parameterization]] = [
    *itertools.product([Linear(), Trig(), VE(), VP()], [Karras(), PredictClean()]),
    (Linear(), PredictVelocity()),
    (Trig(), PredictVelocity(sigma_data=0.5)),
    (VP(), PredictV()),
]


@pytest.mark.parametrize(("schedule", "row"), PAIRS, ids=lambda part: type(part).__name__)
def test_every_row_has_the_same_error_of_velocity(schedule: Schedule, row: Parameterization) -> None:
    """The true one is ``alpha' x + sigma' noise``; the network's is that of its clean image and noise."""
    x, noise, raw = data()
    t = schedule.t_max * torch.linspace(0.05, 0.95, len(x), dtype=torch.float64)
    x_t = schedule.interpolate(x, noise, t)
    clean = row.clean(schedule, raw, x_t, t)
    alpha_dot, sigma_dot = wide(schedule.alpha_dot(t)), wide(schedule.sigma_dot(t))
    theirs = (alpha_dot * x + sigma_dot * noise) - (alpha_dot * clean + sigma_dot * schedule.noise_in(x_t, clean, t))
    ours = wide(VelocityResidual().scale(schedule, row, t)) * (raw - row.target(schedule, x, noise, t))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_the_velocity_network_needs_no_scaling() -> None:
    t = torch.rand(20, dtype=torch.float64)
    torch.testing.assert_close(VelocityResidual().scale(Linear(), PredictVelocity(), t), -torch.ones_like(t))
    torch.testing.assert_close(RawResidual().scale(Linear(), Karras(), t), torch.ones_like(t))


def test_the_objective_gives_the_metric_the_residual() -> None:
    """In float32, down to both ends of time, where a velocity formed from the clean image would be off by 0.02."""
    network = CountingNetwork()
    denoiser = Denoiser(network, Linear(), Karras(level_min=1e-5, level_max=99999.0), image_shape=(1, 4, 4))
    u = torch.cat([torch.tensor([1e-9, 1 - 1e-9]), torch.rand(62)]).double().clamp(1e-9, 1 - 1e-9)
    x, noise = 0.5 * torch.randn(64, 1, 4, 4), torch.randn(64, 1, 4, 4)
    batch = Batch(x=x, y=None, noise=noise, index=torch.arange(64), u=u)
    t = UShaped().quantile(u)
    q = t**2 + 0.25 * (1 - t) ** 2
    x_t = Linear().interpolate(x.double(), noise.double(), t)
    raw = network.double()(x_t / wide(q.sqrt()), (t / (1 - t)).log() / 4)
    exact = ((noise - x) - literal_velocity(x_t, raw, t)).square().flatten(1).mean(1)
    network.float()
    objective = Regression(denoiser, UShaped(), metric=SquaredL2(), residual=VelocityResidual())
    torch.testing.assert_close(objective(batch, 0).double(), exact, rtol=1e-4, atol=1e-5)


def test_the_clean_image_is_the_edm_denoisers() -> None:
    x, noise, raw = data()
    keep = TIMES <= 0.9
    t, x_t, raw = TIMES[keep], Linear().interpolate(x, noise, TIMES)[keep].float(), raw[keep].float()
    ours = Karras().clean(Linear(), raw, x_t, t)
    edm = Karras().clean(VE(), raw, x_t / wide(1 - t).float(), t / (1 - t))
    torch.testing.assert_close(ours, edm, rtol=1e-5, atol=1e-6)
