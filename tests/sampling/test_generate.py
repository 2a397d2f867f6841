import hashlib

import pytest
import torch
from oracles import CountingNetwork, counting_denoiser

from genflow.denoiser import Denoiser
from genflow.nn.unet import UNet
from genflow.parameterizations import Karras, PredictVelocity
from genflow.pixels import quantize, to_unit
from genflow.sampling import SeededNoise, ancestral, euler, generate, heun, network_calls
from genflow.sampling.noise import standard_normal
from genflow.schedules import VE, Linear


def network(schedule=None) -> Denoiser:
    """A small network with random weights everywhere, so that nothing it computes is trivially equal."""
    torch.manual_seed(1)
    unet = UNet(
        image_size=(8, 8), in_channels=1, num_classes=10, width=16, multipliers=(1, 2), blocks=1, attention=(4,)
    )
    for p in unet.parameters():
        p.data += 0.05 * torch.randn_like(p)
    schedule = schedule or VE()
    row = PredictVelocity() if isinstance(schedule, Linear) else Karras()
    return Denoiser(unet, schedule, row, image_shape=(1, 8, 8), num_classes=10)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "ancestral"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_and_calls_are_exact(sampler: str, steps: int) -> None:
    denoiser = counting_denoiser(VE())
    generate(denoiser, range(3), labels=1, sampler=sampler, steps=steps)
    assert denoiser.backbone.calls == network_calls(sampler, steps)


def test_guidance_costs_no_extra_calls() -> None:
    denoiser = counting_denoiser(VE())
    generate(denoiser, range(3), labels=1, sampler="heun", steps=4, guidance=2.0)
    assert denoiser.backbone.calls == 7


def churned(denoise, schedule, x, times, noise):
    return heun(denoise, schedule, x, times, noise, churn=10)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "ancestral", pytest.param(churned, id="churned")])
@pytest.mark.parametrize("schedule", [VE(), Linear()], ids=lambda s: type(s).__name__)
def test_a_seed_is_an_image_at_any_batch_size(sampler, schedule) -> None:
    denoiser, seeds = network(schedule), range(64)
    labels = [seed % 10 for seed in seeds]
    made = {
        size: generate(denoiser, seeds, labels=labels, sampler=sampler, steps=4, batch_size=size) for size in (1, 7, 64)
    }
    for size in (1, 7):
        assert (made[size].int() - made[64].int()).abs().max() <= 1
    assert made[64].float().std() > 10  # and they are not all alike


def test_noise_is_bitwise_the_same_at_any_batch_size() -> None:
    whole = SeededNoise(range(64), (1, 8, 8), torch.device("cpu"))
    for draw in (0, 1, 5):
        alone = torch.cat([SeededNoise([seed], (1, 8, 8), torch.device("cpu"))(draw) for seed in range(64)])
        assert torch.equal(whole(draw), alone)


def test_noise_of_other_seeds_and_draws_is_other_noise() -> None:
    noise = SeededNoise([0, 1, 2**64 - 1], (64,), torch.device("cpu"))
    values = torch.cat([noise(0), noise(1)])
    assert (torch.corrcoef(values) - torch.eye(6)).abs().max() < 0.5
    with pytest.raises(ValueError, match="seeds must be in"):
        SeededNoise([-1], (4,), torch.device("cpu"))


def test_noise_is_standard_normal() -> None:
    values = torch.from_numpy(standard_normal(7, 0, 400_001)).double()
    assert values.shape == (400_001,)
    assert values.mean().abs() < 0.006
    assert values.var() == pytest.approx(1, abs=0.01)
    grid = torch.linspace(-3, 3, 61, dtype=torch.float64)
    share = (values[None] < grid[:, None]).double().mean(1)
    assert (share - torch.special.ndtr(grid)).abs().max() < 1.95 / 400_000**0.5  # Kolmogorov-Smirnov at 0.1 %


def test_noise_never_changes() -> None:
    """Golden: stored pairs are (seed, image), so these values must stay for ever."""
    assert standard_normal(0, 0, 4).tolist() == pytest.approx(GOLDEN, abs=1e-6)
    rounded = (standard_normal(123, 4, 1000) * 1e4).round().astype("int32")
    assert hashlib.sha256(rounded.tobytes()).hexdigest()[:16] == GOLDEN_HASH


GOLDEN = [2.2844414710998535, -1.5494507551193237, 1.9245853424072266, -0.6637518405914307]
GOLDEN_HASH = "9750ac05a7f40f77"


def test_guidance_is_the_formula() -> None:
    denoiser = counting_denoiser(VE())
    x, times = SeededNoise(range(2), (1, 4, 4), torch.device("cpu"))(0) * 80, [80.0, 0.0]
    with_class, without, pushed = (
        generate(denoiser, range(2), labels=label, guidance=scale, times=times, x=x, output="float")
        for label, scale in ((3, 1.0), (10, 1.0), (3, 2.5))
    )
    torch.testing.assert_close(pushed, without + 2.5 * (with_class - without))


def test_guidance_acts_within_its_interval_only() -> None:
    denoiser = counting_denoiser(VE())
    for interval, same in (((0.0, 0.001), True), ((100.0, 200.0), True), ((0.0, 100.0), False)):
        plain = generate(denoiser, range(2), labels=3, steps=3, output="float")
        inside = generate(
            denoiser, range(2), labels=3, steps=3, output="float", guidance=3.0, guidance_interval=interval
        )
        assert torch.equal(plain, inside) == same


def test_no_labels_means_the_null_class() -> None:
    denoiser = network()
    assert torch.equal(generate(denoiser, range(4), steps=2), generate(denoiser, range(4), labels=10, steps=2))


def test_stored_grids_are_used_for_their_number_of_steps() -> None:
    denoiser = Denoiser(
        CountingNetwork(), VE(), Karras(), image_shape=(1, 4, 4), num_classes=10, times={"2": [80.0, 0.8, 0.0]}, steps=2
    )
    stored = generate(denoiser, range(2), sampler=euler, output="float")
    assert torch.equal(stored, generate(denoiser, range(2), sampler=euler, times=[80.0, 0.8, 0.0], output="float"))


def test_training_mode_is_left_as_it_was() -> None:
    denoiser = network().train()
    generate(denoiser, range(2), steps=1)
    assert denoiser.training


def test_states_can_be_given() -> None:
    denoiser = network(Linear())
    noise = SeededNoise([5, 6], (1, 8, 8), torch.device("cpu"))(0)
    assert torch.equal(generate(denoiser, [0, 0], x=noise, steps=3), generate(denoiser, [5, 6], steps=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 11}, "out of range: this model has the classes 0 to 9"),
        ({"labels": [1]}, "1 labels for 3 seeds"),
        ({"guidance": 2.0}, "needs labels"),
        ({"steps": 0}, "at least 1"),
        ({"times": [1.0, 2.0, 0.0]}, "must fall"),
        ({"times": [1.0, 0.5]}, "must fall"),
        ({"times": [80.0, float("nan"), 0.0]}, "must fall"),
        ({"times": [float("nan"), 0.0]}, "must fall"),
        ({"times": [90.0, 0.0]}, "at most 80"),
        ({"steps": 3, "times": [1.0, 0.0]}, "give one of the two"),
        ({"sampler": "hein"}, "unknown sampler 'hein'"),
        ({"batch_size": 0}, "batch_size"),
        ({"x": torch.zeros(2, 1, 4, 4)}, "one state per seed"),
        ({"x": torch.full((3, 1, 4, 4), float("inf"))}, "x must be finite"),
        ({"x": torch.zeros(3, 1, 4, 4).numpy()}, "x must be a tensor, got numpy"),
    ],
)
def test_bad_requests(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(counting_denoiser(VE()), range(3), **options)


def test_labels_without_classes_and_no_seeds() -> None:
    with pytest.raises(ValueError, match="no classes"):
        generate(counting_denoiser(VE(), classes=0), range(3), labels=1)
    with pytest.raises(ValueError, match="guidance 2 needs classes, and this model has none: leave guidance at 1"):
        generate(counting_denoiser(VE(), classes=0), range(3), guidance=2.0)
    with pytest.raises(ValueError, match="no seeds"):
        generate(counting_denoiser(VE()), [])


def test_bytes_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantize(to_unit(every)), every)
    assert quantize(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_ancestral_noise_belongs_to_the_seed() -> None:
    denoiser = network()
    pair = generate(denoiser, [3, 4], sampler=ancestral, steps=4)
    assert (generate(denoiser, [4], sampler=ancestral, steps=4)[0].int() - pair[1].int()).abs().max() <= 1
