"""Consistency models' sampling: to the image, and back up by fresh noise."""

import itertools
import math

import pytest
import torch
from oracles import CountingNetwork, ExactConsistency, counting_denoiser
from torch import Tensor

from genflow import generate
from genflow.denoiser import Denoiser
from genflow.parameterizations import ConsistencyKarras
from genflow.sampling import euler, multistep, network_calls
from genflow.sampling.generate import choose_times, times_above
from genflow.sampling.noise import SeededNoise
from genflow.schedules import VE, VP, DiscreteVP, Linear
from genflow.training.ema import EMA

TWO = torch.tensor([80.0, 0.821, 0.0], dtype=torch.float64)


def no_noise(draw: int) -> Tensor:
    raise AssertionError("one step needs no fresh noise")


def draws(draw: int) -> Tensor:
    return torch.randn(8, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(draw))


def curved(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return x_t / (1 + t**2) + torch.sin(3 * x_t)


def consistency_model(network=None, **given) -> Denoiser:
    return Denoiser(network or CountingNetwork(), VE(), ConsistencyKarras(), image_shape=(1, 4, 4), **given)


def test_identities_give_the_noise_back() -> None:
    """f = identity: 80 z in one step. f = 0: before the second call, sqrt(tau^2 - 4e-6) z' and nothing else."""
    z = 80 * draws(0)
    assert torch.equal(multistep(lambda x, t, s: x, VE(), z, torch.tensor([80.0, 0.0]).double(), no_noise), z)
    seen: list[Tensor] = []

    def nothing(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        seen.append(x_t)
        return torch.zeros_like(x_t)

    assert multistep(nothing, VE(), z, TWO, draws).abs().max() == 0
    torch.testing.assert_close(seen[1], math.sqrt(0.821**2 - 4e-6) * draws(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [VE(), Linear(), VP()], ids=lambda s: type(s).__name__)
def test_one_step_is_eulers(schedule) -> None:
    times = torch.tensor([schedule.t_max, 0.0], dtype=torch.float64)
    x = draws(0)
    ours = multistep(curved, schedule, x, times, no_noise)
    torch.testing.assert_close(ours, euler(curved, schedule, x, times, no_noise), rtol=1e-12, atol=0)


@pytest.mark.parametrize("grid", [[80, 0.821, 0], [80, 24.4, 5.8, 0.9, 0.1, 0]])
def test_it_is_the_papers_algorithm(grid: list[float]) -> None:
    """Written out, times between the first and 0 as its tau."""
    times = torch.tensor(grid, dtype=torch.float64)
    state = curved(80 * draws(0), times[0], times[1])
    for k, (tau, after) in enumerate(itertools.pairwise(times[1:])):
        state = curved(state + math.sqrt(tau**2 - 0.002**2) * draws(k + 1), tau, after)
    torch.testing.assert_close(multistep(curved, VE(), 80 * draws(0), times, draws), state, rtol=1e-12, atol=1e-12)


def test_the_lowest_level_adds_no_noise() -> None:
    """At t_min the clean image has the noise that belongs there already."""
    times = torch.tensor([80.0, 0.002, 0.0], dtype=torch.float64)
    once = multistep(lambda x, t, s: x / t, VE(), 80 * draws(0), times[[0, 2]], no_noise)
    again = multistep(lambda x, t, s: x / t if t > 1 else x, VE(), 80 * draws(0), times, draws)
    assert torch.equal(once, again)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_no_call_is_wasted_where_no_times_are_given(steps: int) -> None:
    """At t_min the model is the identity: its grid ends above, as EDM's of one step more does without its last time."""
    seen: list[float] = []

    class Watched(Denoiser):
        def denoise(self, x_t, t, y=None, s=None, **given):
            seen.append(float(t))
            return super().denoise(x_t, t, y, s, **given)

    denoiser = Watched(CountingNetwork(), VE(), ConsistencyKarras(), image_shape=(1, 4, 4), sampler="multistep")
    generate(denoiser, range(2), steps=steps)
    assert seen == pytest.approx(VE().times(steps + 1)[:-2].tolist())
    assert len(seen) == steps
    assert min(seen) > 0.4 if steps < 4 else min(seen) > 0.002
    assert choose_times(denoiser, steps, None, "heun").tolist() == VE().times(steps).tolist()


def test_grids_above_the_lowest_time() -> None:
    assert times_above(Linear(), 4).tolist() == Linear().times(4).tolist()
    with pytest.raises(ValueError, match="steps must be at most 999"):
        times_above(DiscreteVP(), 1000)


def test_the_spread_of_exact_samples_is_the_datas() -> None:
    """Of the exact map for N(0, 1/4), by its response to each of the two noises: .499994 and .500001."""
    network = ExactConsistency()

    def exact(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return network.answer(t) * x_t

    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    first = multistep(exact, VE(), 80 * one, TWO[[0, 2]], no_noise)
    assert float(first) == pytest.approx(0.499994, abs=1e-6)
    parts = [multistep(exact, VE(), 80 * a, TWO, lambda draw, b=b: b) for a, b in ((one, none), (none, one))]
    assert math.hypot(*map(float, parts)) == pytest.approx(0.500001, abs=1e-6)


def test_two_steps_of_a_model_are_two_calls_written_by_hand() -> None:
    denoiser = consistency_model(sampler="multistep", times={"2": [80.0, 0.821, 0.0]})
    seeds = [3, 5, 8]
    made = generate(denoiser, seeds, steps=2, output="float")
    noise = SeededNoise(seeds, (1, 4, 4), torch.device("cpu"))
    t = torch.tensor([80.0, 0.821], dtype=torch.float64)
    with torch.no_grad():
        state = denoiser.denoise(80 * noise(0), t[0])
        state = denoiser.denoise(state + math.sqrt(0.821**2 - 0.002**2) * noise(1), t[1])
    torch.testing.assert_close(made, state, rtol=1e-5, atol=1e-6)
    assert denoiser.backbone.calls == 4
    assert network_calls("multistep", 2) == 2


def test_samples_are_a_function_of_their_seeds() -> None:
    """Bit by bit, whatever the batch; and with labels."""
    denoiser = counting_denoiser(VE())
    seeds, labels = [7, 2**40, 0, 11, 5], [0, 3, 1, 10, 2]
    alone = [
        generate(denoiser, [s], labels=[y], sampler="multistep", steps=3) for s, y in zip(seeds, labels, strict=True)
    ]
    for size in (1, 2, 5):
        made = generate(denoiser, seeds, labels=labels, sampler="multistep", steps=3, batch_size=size)
        assert torch.equal(made, torch.cat(alone))
    other = generate(denoiser, [s + 1 for s in seeds], labels=labels, sampler="multistep", steps=3)
    assert not torch.equal(other, torch.cat(alone))


@pytest.mark.parametrize(
    ("share", "steps", "batch"),
    [(0.9999, 6931, 512), (0.99993, 9902, 1024), (0.99997, 23105, 4096), (0.999943, 12160, 2048)],
)
def test_half_lives_of_published_averages(share: float, steps: int, batch: int) -> None:
    """What a step keeps of the average, from its half-life in images."""
    average = EMA(counting_denoiser(VE()), halflife=steps * batch, rampup=0.0)
    assert average.beta(10**9, batch) == pytest.approx(share, abs=5e-9)
