import math

import pytest
import torch

from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, Trig, linear_betas

SCHEDULES = [VE(), VP(), DiscreteVP(), Cosine(), Linear(), Trig()]


def name(schedule: Schedule) -> str:
    return type(schedule).__name__


@pytest.fixture(params=SCHEDULES, ids=name)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param


def interior(schedule: Schedule, count: int = 97) -> torch.Tensor:
    """Times within (0, t_max), between the knots of DDPM's table, where its slope jumps."""
    return schedule.t_max * (torch.arange(count, dtype=torch.float64) + 0.503) / count


def test_derivatives_equal_autograd(schedule: Schedule) -> None:
    for value, slope in ((schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)):
        t = interior(schedule).requires_grad_()
        y = value(t)
        expected = torch.zeros_like(t)
        if y.requires_grad:
            (expected,) = torch.autograd.grad(y.sum(), t)
        torch.testing.assert_close(slope(t.detach()), expected, rtol=1e-9, atol=1e-9)


def test_data_is_at_time_zero(schedule: Schedule) -> None:
    zero = torch.zeros((), dtype=torch.float64)
    assert schedule.alpha(zero) == 1
    assert schedule.sigma(zero) == 0


def test_noise_level_grows(schedule: Schedule) -> None:
    t = interior(schedule)
    assert (torch.diff(schedule.sigma(t) / schedule.alpha(t)) > 0).all()


def test_time_at_inverts_the_noise_level(schedule: Schedule) -> None:
    t = interior(schedule)
    torch.testing.assert_close(schedule.time_at(schedule.sigma(t) / schedule.alpha(t)), t, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 18, 50])
def test_times_fall_from_t_max_to_zero(schedule: Schedule, steps: int) -> None:
    times = schedule.times(steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] == schedule.t_max
    assert times[-1] == 0
    assert (times.diff() < 0).all()


def test_zero_steps_are_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        schedule.times(0)


@pytest.mark.parametrize("schedule", [VP(), DiscreteVP(), Cosine()], ids=name)
def test_variance_is_preserved(schedule: Schedule) -> None:
    t = interior(schedule)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


def test_ve_grid_is_edms() -> None:
    n, rho = 18, 7
    expected = [(80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for i in range(n)]
    torch.testing.assert_close(VE().times(n), torch.tensor([*expected, 0.0], dtype=torch.float64))


def test_few_step_flow_grids_waste_no_step() -> None:
    """diffusers' default flow grid ends 1/1000 above 0, so that its last step moves nothing."""
    assert Linear().times(2).tolist() == [1.0, 0.5, 0.0]
    assert Linear().times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_ddpm_table_holds_the_cumulative_products() -> None:
    schedule = DiscreteVP()
    products = torch.cumprod(1 - torch.tensor(linear_betas(), dtype=torch.float64), 0)
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    torch.testing.assert_close(schedule.alpha(t) ** 2, products)


def test_ddpm_grids_are_made_of_table_entries_and_end_at_the_noisiest() -> None:
    for steps in (7, 10, 250, 1000):
        entries = DiscreteVP().times(steps) * 1000
        torch.testing.assert_close(entries, entries.round())
        assert entries[0] == 1000
    with pytest.raises(ValueError, match="at most 1000"):
        DiscreteVP().times(1001)


def test_trig_is_the_linear_path_in_other_words() -> None:
    """Equal noise level means equal image up to scale."""
    level = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    for schedule in (Linear(), Trig(), VP(), Cosine()):
        t = schedule.time_at(level)
        torch.testing.assert_close(schedule.sigma(t) / schedule.alpha(t), level)


def test_linear_time_at_infinite_noise() -> None:
    assert Linear().time_at(torch.tensor(math.inf)) == 1


def test_interpolate_noise_in_and_move_agree(schedule: Schedule) -> None:
    x, noise = torch.randn(2, 5, 1, 3, 3, dtype=torch.float64)
    t, s = 0.9 * torch.full((5,), schedule.t_max, dtype=torch.float64), interior(schedule)[[1, 2, 3, 4, 5]]
    x_t = schedule.interpolate(x, noise, t)
    torch.testing.assert_close(schedule.noise_in(x_t, x, t), noise, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(schedule.move(x_t, x, t, s), schedule.interpolate(x, noise, s), rtol=1e-6, atol=1e-6)


def test_move_to_zero_is_the_clean_image_bit_by_bit(schedule: Schedule) -> None:
    x_t, clean = torch.randn(2, 5, 1, 3, 3)
    end, zero = torch.tensor(schedule.t_max, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    assert torch.equal(schedule.move(x_t, clean, end, zero), clean)


def test_sigma_keeps_its_digits_near_zero() -> None:
    """1 - alpha^2 has no digits left at t = 1e-12; written without the difference it has all of them."""
    t = torch.tensor(1e-12, dtype=torch.float64)
    torch.testing.assert_close(VP().sigma(t), torch.sqrt(0.1 * t), rtol=1e-9, atol=0)
    speed, offset = math.pi / 2 / 1.008, math.pi / 2 * 0.008 / 1.008
    expected = torch.sqrt(2 * math.tan(offset) * speed * t)
    torch.testing.assert_close(Cosine().sigma(t), expected, rtol=1e-6, atol=0)
