"""Straightness and crossing against closed forms of Gaussian flows, and of flows that are straight."""

import math

import pytest
import torch
from oracles import CountingNetwork, GaussianDenoiser, counting_denoiser
from torch import Tensor

import genflow
from genflow.denoiser import Denoiser
from genflow.evaluation.crossing import crossing, departures
from genflow.evaluation.straightness import Straightness, measure, straightness
from genflow.evaluation.trajectories import even_times, follow, linear_time
from genflow.parameterizations import Karras, PredictVelocity
from genflow.sampling.generate import generate
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, Trig

S = 0.5  # the standard deviation of the data
LIMIT = S * (2 - math.pi / 2)
SCHEDULES: list[Schedule] = [Linear(), VE(), VP(), DiscreteVP(), Cosine(), Trig()]


class StraightFlow:
    """A perfect 2-RF of pairs (s z, z), on any schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return S * x_t / (self.schedule.alpha(t) * S + self.schedule.sigma(t))


def unit_noise() -> Tensor:
    """Noise whose mean square is 1 exactly, in each of 4 images of 4 values."""
    z = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    return z / z.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def couples() -> tuple[Tensor, Tensor]:
    """Images and noise with exactly the second moments of independent N(0, s^2) and N(0, 1)."""
    x, z = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    return S * x.double().view(1, 1, 2, 2), z.double().view(1, 1, 2, 2)


def found(denoise, schedule: Schedule, times: Tensor) -> Straightness:
    return measure([follow(denoise, schedule, schedule.sigma(times[0]) * unit_noise(), times)])


def gaussian(schedule: Schedule, times: Tensor) -> float:
    return found(GaussianDenoiser(schedule, S), schedule, times).straightness.value


def test_eulers_values_on_a_gaussian_flow_are_the_published_ones() -> None:
    for steps, expected in {2: 0.04, 4: 0.117195, 8: 0.160095, 32: 0.199428, 128: 0.210693}.items():
        assert gaussian(Linear(), Linear().times(steps)) == pytest.approx(expected, abs=1e-6)
    assert gaussian(Linear(), Linear().times(1)) == pytest.approx(0, abs=1e-30)


def test_it_converges_at_first_order_to_the_integral_on_any_grid() -> None:
    grids = {
        "even": lambda n: Linear().times(n),
        "dense at the noise": lambda n: 1 - (1 - Linear().times(n)) ** 2,
        "dense at the images": lambda n: Linear().times(n) ** 2,
        "two spacings": lambda n: torch.cat([1 - 0.2 * Linear().times(n).flip(0)[:-1], 0.8 * Linear().times(n)]),
    }
    for grid in grids.values():
        errors = [LIMIT - gaussian(Linear(), grid(steps)) for steps in (250, 500, 1000)]
        assert errors[0] / errors[1] == pytest.approx(2, rel=0.03)
        assert 2 * errors[2] == pytest.approx(errors[1], rel=0.03)
        assert abs(errors[2]) < 2e-3


def test_crossing_of_independent_noise_and_the_identity_of_both() -> None:
    """V -> pi s / 2, and E|noise - x|^2 - E|chord|^2 = S + V, which is 2 s."""
    oracle = GaussianDenoiser(Linear(), S)
    v = [float(departures(oracle, Linear(), *couples(), steps=steps).mean()) for steps in (50, 100)]
    errors = [abs(value - math.pi * S / 2) for value in v]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)
    assert errors[1] < 2e-5
    extrapolated = 2 * gaussian(Linear(), Linear().times(4000)) - gaussian(Linear(), Linear().times(2000))
    assert extrapolated == pytest.approx(LIMIT, abs=1e-5)
    assert extrapolated + v[1] == pytest.approx(2 * S, abs=2e-5)
    assert 1 + S**2 - (1 - S) ** 2 == 2 * S


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_every_form_of_a_flow_is_as_straight_as_its_linear_one(schedule: Schedule) -> None:
    """On the same grid to rounding; and near the limit however much of the way the schedule covers."""
    times = even_times(schedule, 16)
    linear = linear_time(schedule, times)
    assert (linear.diff() + linear[0] / 16).abs().max() < 1e-9
    assert (times[0], times[-1]) == (schedule.t_max, 0)
    for model in (GaussianDenoiser, lambda schedule, _: StraightFlow(schedule)):
        one, other = found(model(schedule, S), schedule, times), found(model(Linear(), S), Linear(), linear)
        assert one.straightness.value == pytest.approx(other.straightness.value, abs=1e-9)
        assert one.one_step_gap.value == pytest.approx(other.one_step_gap.value, abs=1e-9)
        assert one.profile == pytest.approx(other.profile, abs=1e-9)
    assert gaussian(schedule, even_times(schedule, 2000)) == pytest.approx(LIMIT, rel=0.05)
    covered = float(linear[0])
    v = float(departures(GaussianDenoiser(schedule, S), schedule, *couples(), steps=200).mean())
    exact = S * (math.atan(((1 + S**2) * covered - S**2) / S) + math.atan(S)) / covered  # of 1 / (t^2 + (1 - t)^2 s^2)
    assert v == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_pairs_that_a_flow_has_straightened_measure_as_0(schedule: Schedule) -> None:
    z = unit_noise()
    assert float(departures(StraightFlow(schedule), schedule, S * z, z, steps=9).max()) < 1e-20
    start = found(StraightFlow(Linear()), Linear(), Linear().times(7))
    for figure in (start.straightness, start.one_step_gap):
        assert figure.value < 1e-20
        assert figure.standard_error is not None


def test_permuted_pairs_cross_as_independent_ones_do_and_more_than_the_best_model_would_say() -> None:
    z = torch.randn(4000, 1, 2, 2, dtype=torch.float64)
    paired, permuted = (departures(StraightFlow(Linear()), Linear(), S * x, z, steps=64) for x in (z, z.roll(1, 0)))
    independent = float(departures(StraightFlow(Linear()), Linear(), *couples(), steps=64).mean())
    best = float(departures(GaussianDenoiser(Linear(), S), Linear(), *couples(), steps=64).mean())
    assert float(paired.max()) < 1e-20
    assert float(permuted.mean()) == pytest.approx(independent, rel=0.03)
    assert independent > best == pytest.approx(math.pi * S / 2, abs=1e-4)


def test_where_a_flow_is_bent_is_told() -> None:
    """A velocity of 1 from t = 0.9 to 0.6, else 0, whose paths bend there and stray from their chord elsewhere."""

    def late(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x_t - t * (0.6 < t - 1e-9 < 0.9)

    flow = measure([follow(late, Linear(), torch.ones(1, 1, 1, 1).double(), Linear().times(10))])
    assert flow.profile == pytest.approx([0.09, *[0.49] * 3, *[0.09] * 6])
    assert flow.straightness.value == pytest.approx(0.3 * 0.7)
    assert flow.straightness.standard_error is None
    middle, total = 0.49 * (2 / 3 - 0.6) + 0.09 * (0.6 - 1 / 3), 0.21
    assert flow.thirds() == pytest.approx([1 - (middle + 0.03) / total, middle / total, 0.03 / total])


def test_a_models_figures_are_those_of_its_images_and_do_not_depend_on_batches() -> None:
    denoiser = genflow.Denoiser.from_pretrained(genflow.asset("models/digits-rf"))
    denoiser.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    whole = straightness(denoiser, range(12), steps=8)
    assert denoiser.training
    assert torch.equal(torch.get_rng_state(), before)
    for batch_size in (1, 5):
        other = straightness(denoiser, range(12), steps=8, batch_size=batch_size)
        assert other.straightness.value == pytest.approx(whole.straightness.value, rel=1e-5)
        assert other.straightness.standard_error == pytest.approx(whole.straightness.standard_error, rel=1e-5)
        assert other.one_step_gap.value == pytest.approx(whole.one_step_gap.value, rel=1e-5)
    labels = [seed % 10 for seed in range(12)]
    one, eight = (
        generate(denoiser, range(12), labels=labels, sampler="euler", steps=n, output="float") for n in (1, 8)
    )
    assert whole.one_step_gap.value == pytest.approx(float((one - eight).square().mean()), rel=1e-4)
    assert whole.profile[0] == pytest.approx(whole.one_step_gap.value, rel=1e-9)  # on Linear they are one thing


def test_small_times_lose_no_digits() -> None:
    """The last velocity, (x_t - clean) / t at t = 1e-6, is what the float32 network said."""
    network = CountingNetwork(classes=0)
    denoiser = Denoiser(network, Linear(), PredictVelocity(), image_shape=(1, 4, 4))
    times = torch.tensor([1, 0.5, 1e-6, 0], dtype=torch.float64)
    with torch.no_grad():
        path = follow(lambda x, t, s: denoiser.denoise(x, t), Linear(), torch.randn(3, 1, 4, 4).double(), times)
        said = network(path.states[2].float(), torch.full((3,), 1e-3), None)
    torch.testing.assert_close(path.velocity[2].float(), said, rtol=1e-6, atol=1e-6)


def test_crossing_of_a_model_is_its_velocity_error_and_does_not_depend_on_batches() -> None:
    denoiser = Denoiser(CountingNetwork(10), Linear(), Karras(), image_shape=(1, 4, 4), num_classes=10)
    x, z, y = torch.rand(7, 1, 4, 4) * 2 - 1, torch.randn(7, 1, 4, 4), torch.arange(7)
    figures = [crossing(denoiser, x, z, y, steps=4, batch_size=size).value for size in (1, 3, 64)]
    assert figures == pytest.approx([figures[0]] * 3, rel=1e-5)
    errors = []
    with torch.no_grad():
        for t in torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64):
            x_t = Linear().interpolate(x, z, t)
            errors.append(((z - x) - (x_t - denoiser.denoise(x_t, t, y)) / t).square().mean())
    assert figures[0] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"steps": 1}, "in one step every path is straight"), ({"seeds": []}, "one seed"), ({"batch_size": 0}, "batch")],
)
def test_what_cannot_be_measured_is_refused(given, said) -> None:
    with pytest.raises(ValueError, match=said):
        straightness(counting_denoiser(Linear()), **({"seeds": range(2)} | given))


@pytest.mark.parametrize(("count", "steps"), [(2, 0), (0, 4)])
def test_a_crossing_of_nothing_is_refused(count, steps) -> None:
    x = torch.zeros(count, 1, 2, 2)
    with pytest.raises(ValueError, match="at least one image, noise of its shape and at least one step"):
        crossing(counting_denoiser(Linear()), x, x, steps=steps)
