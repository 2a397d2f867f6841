"""2-RF++'s rule: exact where paths are straight, wrong where they are curved."""

import itertools

import pytest
import torch
from oracles import CountingNetwork, GaussianDenoiser
from torch import Tensor

from genflow import generate
from genflow.config import SampleConfig
from genflow.denoiser import Denoiser
from genflow.parameterizations import Karras, PredictVelocity
from genflow.sampling import euler, heun, network_calls, straight, straight_heun
from genflow.sampling.samplers import Sampler
from genflow.schedules import VE, VP, Cosine, Linear, Schedule, Trig

STD = 0.5
SCHEDULES: list[Schedule] = [Linear(), VE(), VP(), Trig(), Cosine()]
RULES: list[Sampler] = [straight, straight_heun]


def no_noise(draw: int) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def normal(count: int = 8) -> Tensor:
    return torch.randn(count, 1, 2, 2, dtype=torch.float64)


def published_grid(steps: int) -> Tensor:
    return torch.tensor([1 - 1e-5, *(1 - i / steps for i in range(1, steps)), 0.0], dtype=torch.float64)


class StraightPairs:
    """What a perfect 2-RF sees on pairs (s z, z): from x_t = (alpha s + sigma) z, the image s z."""

    def __init__(self, schedule: Schedule, s: float) -> None:
        self.schedule, self.s, self.calls = schedule, s, 0

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.calls += 1
        return self.s * x_t / (self.schedule.alpha(t) * self.s + self.schedule.sigma(t))


class Curved:
    """A denoiser with no structure, from a network that depends on state and time."""

    def __init__(self) -> None:
        self.denoiser = Denoiser(CountingNetwork().double(), Linear(), PredictVelocity(), image_shape=(1, 2, 2))

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        network = self.denoiser.backbone(x_t, (5 * t).expand(len(x_t)))
        return x_t - t * (network + torch.sin(3 * x_t * (1 + t)))


@pytest.mark.parametrize("rule", [*RULES, euler, heun], ids=lambda f: f.__name__)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 16])
def test_straight_pairs_are_followed_exactly_in_any_number_of_steps(rule, steps: int) -> None:
    z, oracle = normal(), StraightPairs(Linear(), 0.7)
    made = rule(oracle, Linear(), z, Linear().times(steps), no_noise)
    torch.testing.assert_close(made, 0.7 * z, rtol=1e-9, atol=1e-9)
    assert oracle.calls == network_calls(rule.__name__, steps)


@pytest.mark.parametrize("schedule", [VP(), Trig(), Cosine()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("rule", RULES, ids=lambda f: f.__name__)
def test_other_schedules_are_followed_as_closely_as_they_start_from_pure_noise(rule, schedule: Schedule) -> None:
    z, times = normal(), schedule.times(5)
    made = rule(StraightPairs(schedule, 0.7), schedule, schedule.sigma(times[0]) * z, times, no_noise)
    off = float(schedule.alpha(times[0]) / schedule.sigma(times[0]))
    assert ((made - 0.7 * z).abs() <= 2 * off * z.abs()).all()


@pytest.mark.parametrize("rule", RULES, ids=lambda f: f.__name__)
def test_one_step_is_eulers_bit_by_bit(rule) -> None:
    for schedule in SCHEDULES:
        x, times = schedule.sigma(torch.tensor(schedule.t_max, dtype=torch.float64)) * normal(), schedule.times(1)
        oracle = GaussianDenoiser(schedule, STD)
        assert torch.equal(rule(oracle, schedule, x, times, no_noise), euler(oracle, schedule, x, times, no_noise))


def test_two_steps_are_eulers_and_three_are_not() -> None:
    x = normal()
    for grid in (Linear().times, published_grid):
        two = [rule(Curved(), Linear(), grid(2)[0] * x, grid(2), no_noise) for rule in (straight, euler)]
        assert (two[0] - two[1]).abs().max() < 5e-5  # the published start has 1e-5 of an image in it
        three = [rule(Curved(), Linear(), grid(3)[0] * x, grid(3), no_noise) for rule in (straight, euler)]
        assert (three[0] - three[1]).abs().max() > 0.05
    ours = [rule(Curved(), Linear(), x, Linear().times(2), no_noise) for rule in (straight, euler)]
    torch.testing.assert_close(ours[0], ours[1], rtol=1e-12, atol=1e-12)


def test_on_a_curved_flow_it_moves_away_as_steps_are_added() -> None:
    """Gaussian data of std 1/2, whose true map is z -> z / 2: the factors of the rule, of Euler and of Heun."""
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    oracle = GaussianDenoiser(Linear(), STD)
    factors = {2: 0.200, 4: 0.380, 8: 0.563, 16: 0.774, 64: 1.345, 1024: 3.62}
    for steps, factor in factors.items():
        assert float(straight(oracle, Linear(), z, Linear().times(steps), no_noise)) == pytest.approx(factor, abs=6e-3)
    for steps, factor in {2: 0.200, 4: 0.341, 8: 0.415, 16: 0.456, 64: 0.489, 1024: 0.499}.items():
        assert float(euler(oracle, Linear(), z, Linear().times(steps), no_noise)) == pytest.approx(factor, abs=6e-4)
    off = [
        abs(float(straight_heun(oracle, Linear(), z, Linear().times(steps), no_noise)) - 0.5) for steps in (16, 64, 256)
    ]
    assert off[0] < off[1] < off[2]
    assert off[2] > 0.5


def published_heun(denoise, z: Tensor, times: Tensor) -> Tensor:
    """The published algorithm on velocities, written out: predict, average the velocities, apply the rule."""
    x = times[0] * z
    for t, s in itertools.pairwise(times):
        v = (x - denoise(x, t, s)) / t
        if s > 0:
            ahead = (1 - s) * (x - t * v) + s * z
            v = (v + (ahead - denoise(ahead, s, s)) / s) / 2
        x = (1 - s) * (x - t * v) + s * z
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_its_heun_is_the_published_one(steps: int) -> None:
    z = normal()
    for grid in (Linear().times(steps), published_grid(steps)):
        ours = straight_heun(Curved(), Linear(), grid[0] * z, grid, no_noise)
        torch.testing.assert_close(ours, published_heun(Curved(), z, grid), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("sampler", "calls"), [("straight", [1, 2, 3, 8]), ("straight_heun", [1, 3, 5, 15])])
def test_network_calls_are_counted(sampler: str, calls: list[int]) -> None:
    network = CountingNetwork()
    denoiser = Denoiser(network, Linear(), Karras(), image_shape=(1, 4, 4))
    for steps, expected in zip((1, 2, 3, 8), calls, strict=True):
        network.calls = 0
        generate(denoiser, range(2), sampler=sampler, steps=steps)
        assert network.calls == expected == network_calls(sampler, steps)


def test_the_published_grid_is_the_default_one_but_for_its_start() -> None:
    """t_0 = 1 - 1e-5 and state (1 - 1e-5) z, given by ``times=``: images agree to 1e-4."""
    assert published_grid(1).tolist() == [0.99999, 0.0]
    assert published_grid(2).tolist() == [0.99999, 0.5, 0.0]
    assert published_grid(4).tolist() == [0.99999, 0.75, 0.5, 0.25, 0.0]
    rows = [Karras(), Karras(level_min=1e-5, level_max=99999.0)]
    for row, steps, sampler in itertools.product(rows, (1, 2, 4), ("euler", "straight", "straight_heun")):
        denoiser = Denoiser(CountingNetwork(), Linear(), row, image_shape=(1, 4, 4))
        given = generate(denoiser, range(4), times=published_grid(steps).tolist(), sampler=sampler, output="float")
        default = generate(denoiser, range(4), steps=steps, sampler=sampler, output="float")
        torch.testing.assert_close(given, default, rtol=0, atol=1e-4)


def test_given_states_bring_their_own_noise() -> None:
    """A state x at times[0] is taken for sigma(times[0]) z, wherever on the way it lies."""
    times = torch.tensor([0.8, 0.5, 0.3, 0.0], dtype=torch.float64)
    state, z = 0.8 * normal(), None
    z = state / 0.8
    expected = state
    for t, s in itertools.pairwise(times):
        expected = (1 - s) * Curved()(expected, t, s) + s * z
    torch.testing.assert_close(straight(Curved(), Linear(), state, times, no_noise), expected)


def test_the_sign_of_two_points_is_kept() -> None:
    """Data at -1 and 1: the flow keeps the sign of the noise, so pairs are (sign z, z)."""

    def two_points(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.tanh((1 - t) * x_t / t**2)

    z = torch.randn(2000, 1, 1, 1, dtype=torch.float64)
    z = z[z.abs() > 0.1].view(-1, 1, 1, 1)
    carried = heun(two_points, Linear(), z, Linear().times(200), no_noise)
    torch.testing.assert_close(carried, z.sign(), rtol=0, atol=0.02)
    for rule in RULES:  # a 2-RF on these pairs sees sign(z) from anywhere; the curved flow's rule is another matter
        made = rule(lambda x_t, t, s: x_t.sign(), Linear(), z, Linear().times(4), no_noise)
        assert torch.equal(made, z.sign())


def test_names_of_the_configuration_are_samplers() -> None:
    from typing import get_args, get_type_hints

    names = get_args(get_type_hints(SampleConfig)["sampler"])
    assert {"straight", "straight_heun"} <= set(names)
    for name in names:
        assert network_calls(name, 3) in (3, 5)
    with pytest.raises(ValueError, match=r"unknown sampler 'straigth': choose .* straight or straight_heun"):
        network_calls("straigth", 1)
