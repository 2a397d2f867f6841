import itertools
import math

import pytest
import torch
from oracles import GaussianDenoiser

from genflow.sampling.samplers import ancestral, dpmpp_2m, euler, heun
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, Trig

STD = 0.5


def no_noise(draw: int) -> torch.Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def normal(shape: tuple[int, ...], seed: int = 0):
    return lambda draw: torch.randn(
        shape, generator=torch.Generator().manual_seed(1000 * seed + draw), dtype=torch.float64
    )


def start(schedule: Schedule, count: int = 16) -> torch.Tensor:
    level = schedule.sigma(torch.tensor(schedule.t_max, dtype=torch.float64))
    return level * torch.randn(count, 1, 2, 2, dtype=torch.float64)


def error(sampler, schedule: Schedule, steps: int, x: torch.Tensor) -> float:
    oracle = GaussianDenoiser(schedule, STD)
    times = schedule.times(steps)
    return float((sampler(oracle, schedule, x, times, no_noise) - oracle.exact(x, times[0])).abs().max())


def slope_of(sampler, schedule: Schedule, fewest: int) -> float:
    x, counts = start(schedule), [fewest * 2**k for k in range(4)]
    errors = torch.tensor([error(sampler, schedule, n, x) for n in counts], dtype=torch.float64)
    return float(-(errors.log().diff() / math.log(2)).mean())


@pytest.mark.parametrize("schedule", [VE(), VP(), Linear(), Trig()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence(sampler, order: int, schedule: Schedule) -> None:
    """The slope of the error over the number of steps, on the schedule's own grid, is the declared order."""
    assert slope_of(sampler, schedule, 32) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("schedule", "least"), [(VE(), 1.8), (VP(), 1.8), (Linear(), 1.5), (Trig(), 1.5)], ids=str)
def test_order_of_the_multistep_method(schedule: Schedule, least: float) -> None:
    """Second order on grids that are even in a power of the noise level.

    A grid uniform in t has steps near both ends over which alpha / sigma doubles however many steps there are; summed
    up they leave an error of log(N) / N^2, whose slope falls short of 2.
    """
    assert slope_of(dpmpp_2m, schedule, 256) > least


@pytest.mark.parametrize("schedule", [DiscreteVP(), Cosine()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m])
def test_convergence_on_grids_uniform_in_time(sampler, schedule: Schedule) -> None:
    """Near t = 0 these schedules have sigma ~ sqrt(t), so their last step is first order whatever the solver."""
    x = start(schedule)
    assert error(sampler, schedule, 500, x) < error(sampler, schedule, 50, x) / 5


def test_euler_on_ve_is_edms() -> None:
    x, oracle = start(VE()), GaussianDenoiser(VE(), STD)
    times = VE().times(10)
    state = x
    for t, s in itertools.pairwise(times):
        state = state + (s - t) * (state - oracle(state, t, s)) / t
    torch.testing.assert_close(euler(oracle, VE(), x, times, no_noise), state, rtol=1e-9, atol=1e-9)


def test_euler_on_linear_is_rectified_flows() -> None:
    x, oracle = start(Linear()), GaussianDenoiser(Linear(), STD)
    times = Linear().times(10)
    state = x
    for t, s in itertools.pairwise(times):
        velocity = (state - oracle(state, t, s)) / t
        state = state - (t - s) * velocity
    torch.testing.assert_close(euler(oracle, Linear(), x, times, no_noise), state, rtol=1e-9, atol=1e-9)


def edm_heun(denoise, x, times, churn, low, high, extra, noise):
    """EDM's algorithm 2, written out independently."""
    n = len(times) - 1
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= t <= high else 0.0
        raised = t + gamma * t
        x = x + (raised**2 - t**2).clamp(min=0).sqrt() * extra * noise(i + 1) if gamma else x
        d = (x - denoise(x, raised, s)) / raised
        ahead = x + (s - raised) * d
        if s > 0:
            d_ahead = (ahead - denoise(ahead, s, s)) / s
            ahead = x + (s - raised) * (d + d_ahead) / 2
        x = ahead
    return x


def test_heun_on_ve_is_edms() -> None:
    x, oracle, times = start(VE()), GaussianDenoiser(VE(), STD), VE().times(18)
    expected = edm_heun(oracle, x, times, 0, 0, math.inf, 1, no_noise)
    torch.testing.assert_close(heun(oracle, VE(), x, times, no_noise), expected, rtol=1e-9, atol=1e-9)


def test_heun_with_churn_is_edms() -> None:
    x, oracle, times = start(VE()), GaussianDenoiser(VE(), STD), VE().times(18)
    noise = normal(tuple(x.shape))
    expected = edm_heun(oracle, x, times, 30, 0.05, 50, 1.003, noise)
    ours = heun(oracle, VE(), x, times, noise, churn=30, churn_min=0.05, churn_max=50, churn_noise=1.003)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_heun_on_linear_is_the_trapezoid_rule_on_velocity() -> None:
    x, oracle, times = start(Linear()), GaussianDenoiser(Linear(), STD), Linear().times(9)
    state = x
    for t, s in itertools.pairwise(times):
        v = (state - oracle(state, t, s)) / t
        ahead = state + (s - t) * v
        if s > 0:
            ahead = state + (s - t) * (v + (ahead - oracle(ahead, s, s)) / s) / 2
        state = ahead
    torch.testing.assert_close(heun(oracle, Linear(), x, times, no_noise), state, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [VP(), Linear(), Trig()], ids=lambda s: type(s).__name__)
def test_churn_keeps_the_law_on_any_schedule(schedule: Schedule) -> None:
    x = start(schedule, 20_000)
    oracle = GaussianDenoiser(schedule, STD)
    made = heun(oracle, schedule, x, schedule.times(64), normal(tuple(x.shape)), churn=20)
    assert made.std() == pytest.approx(STD, rel=0.02)


def test_ancestral_draws_from_the_right_law() -> None:
    for schedule, steps in ((DiscreteVP(), 500), (Linear(), 500)):
        x = start(schedule, 10_000)
        made = ancestral(
            GaussianDenoiser(schedule, STD, 0.3), schedule, x, schedule.times(steps), normal(tuple(x.shape))
        )
        assert made.mean() == pytest.approx(0.3, abs=0.01)
        assert made.std() == pytest.approx(STD, rel=0.02)


def test_ancestral_without_fresh_noise_is_euler() -> None:
    x, oracle = start(VP()), GaussianDenoiser(VP(), STD)
    times = VP().times(12)
    still = ancestral(oracle, VP(), x, times, normal(tuple(x.shape)), eta=0.0)
    torch.testing.assert_close(still, euler(oracle, VP(), x, times, no_noise), rtol=1e-9, atol=1e-9)


@pytest.mark.reference
@pytest.mark.parametrize("steps", [10, 50])
def test_euler_is_diffusers_ddim(steps: int) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    schedule = DiscreteVP()
    theirs = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    theirs.set_timesteps(steps)
    x, oracle = start(schedule), GaussianDenoiser(schedule, STD)
    state = x
    for k in theirs.timesteps:
        t = (k.double() + 1) / 1000
        predicted = schedule.noise_in(state, oracle(state, t, t), t)
        state = theirs.step(predicted, int(k), state).prev_sample
    ours = euler(oracle, schedule, x, schedule.times(steps), no_noise)
    torch.testing.assert_close(ours, state, rtol=1e-5, atol=1e-5)


@pytest.mark.reference
def test_ancestral_mean_is_diffusers_ddpm() -> None:
    """With the same fresh noise every step of DDPM's posterior is the same state."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    schedule = DiscreteVP()
    theirs = DDPMScheduler(clip_sample=False, timestep_spacing="trailing", variance_type="fixed_small")
    theirs.set_timesteps(1000)
    x, oracle = start(schedule, 4), GaussianDenoiser(schedule, STD)
    state, drawn = x, []
    for k in theirs.timesteps:
        t = (k.double() + 1) / 1000
        predicted = schedule.noise_in(state, oracle(state, t, t), t)
        generator = torch.Generator().manual_seed(int(k))
        state = theirs.step(predicted, int(k), state, generator=generator).prev_sample
        drawn.append(torch.randn(x.shape, generator=torch.Generator().manual_seed(int(k)), dtype=x.dtype))
    ours = ancestral(oracle, schedule, x, schedule.times(1000), lambda draw: drawn[draw - 1])
    torch.testing.assert_close(ours, state, rtol=1e-4, atol=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize("steps", [6, 12])
def test_dpmpp_2m_is_diffusers(steps: int) -> None:
    from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler

    schedule = VE()
    theirs = EDMDPMSolverMultistepScheduler(sigma_min=0.002, sigma_max=80.0, final_sigmas_type="zero")
    theirs.set_timesteps(steps)
    x, oracle = start(schedule), GaussianDenoiser(schedule, STD)
    state = x
    for k, t in enumerate(theirs.timesteps):
        sigma = theirs.sigmas[k].double()
        clean = oracle(state, sigma, sigma)
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        state = theirs.step((clean - c_skip * state) / c_out, t, state).prev_sample
    ours = dpmpp_2m(oracle, schedule, x, schedule.times(steps), no_noise)
    torch.testing.assert_close(ours, state.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "schedule", [VE(), VP(), DiscreteVP(), Cosine(), Linear(), Trig()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize(("sampler", "calls"), [(euler, 5), (heun, 9), (dpmpp_2m, 5), (ancestral, 5)])
def test_every_sampler_serves_every_schedule(sampler, calls: int, schedule: Schedule) -> None:
    x, oracle = start(schedule), GaussianDenoiser(schedule, STD)
    made = sampler(oracle, schedule, x, schedule.times(5), normal(tuple(x.shape)))
    assert oracle.calls == calls
    assert made.isfinite().all()


@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m, ancestral])
def test_one_step_is_the_clean_image(sampler) -> None:
    for schedule in (VE(), Linear(), Cosine()):
        x, oracle = start(schedule), GaussianDenoiser(schedule, STD)
        times = schedule.times(1)
        assert torch.equal(sampler(oracle, schedule, x, times, no_noise), oracle(x, times[0], times[1]))


@pytest.mark.reference
def test_few_step_flow_grids_are_right_where_diffusers_own_is_not() -> None:
    """Given our grid, diffusers' flow scheduler agrees; the last step of its own moves next to nothing."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    x, oracle = start(Linear()), GaussianDenoiser(Linear(), STD)

    def theirs(**grid) -> torch.Tensor:
        scheduler, state = FlowMatchEulerDiscreteScheduler(), x
        scheduler.set_timesteps(**grid)
        for k, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[k].double()
            state = scheduler.step((state - oracle(state, sigma, sigma)) / sigma, t, state).prev_sample
        return state

    for steps in (1, 2, 4, 8):
        ours = euler(oracle, Linear(), x, Linear().times(steps), no_noise)
        explicit = theirs(sigmas=[1 - k / steps for k in range(steps)])
        torch.testing.assert_close(explicit.double(), ours, rtol=1e-5, atol=1e-5)
        if steps > 1:  # theirs with one step more is ours, but for a step of 1/1000 at its end
            own = theirs(num_inference_steps=steps + 1).double()
            torch.testing.assert_close(own, ours, rtol=0, atol=5e-3)
