"""From images back to noise: the inverse of the flow, at its order, and nothing where there is no image to see."""

import math

import pytest
import torch
from oracles import CountingNetwork, GaussianDenoiser, counting_denoiser
from torch import Tensor, nn

import genflow
from genflow.denoiser import Denoiser
from genflow.nn.unet import UNet
from genflow.parameterizations import Karras, PredictClean, PredictNoise, PredictVelocity
from genflow.pixels import quantize, to_unit
from genflow.sampling import SeededNoise, decode, euler, heun, inversion_calls, invert, rising_times, slerp, translate
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, Trig

STD = 0.4  # at 0.5, its own, Trig would do better than its order
SCHEDULES: list[Schedule] = [Linear(), VE(), VP(), DiscreteVP(), Cosine(), Trig()]
SHAPE = (1, 4, 4)


def no_noise(draw: int) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


class Seen(nn.Module):
    """A backbone that gives the same for every input, and remembers the times it is asked at."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        self.times.append(float(c_noise[0]) / 1000)
        return torch.zeros_like(x)


class StraightNetwork(nn.Module):
    """The velocity that carries (1 - t) k z + t z straight on: z (1 - k), on ``Linear``."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        t = (c_noise / 1000).view(-1, 1, 1, 1)
        return (1 - self.gain) * x / ((1 - t) * self.gain + t)


def network(schedule: Schedule) -> Denoiser:
    """Random weights everywhere, so that nothing it computes is trivially equal."""
    torch.manual_seed(1)
    unet = UNet(image_size=(8, 8), in_channels=1, num_classes=3, width=16, multipliers=(1, 2), blocks=1, attention=(4,))
    for p in unet.parameters():
        p.data += 0.02 * torch.randn_like(p)
    row = PredictVelocity() if isinstance(schedule, Linear) else Karras()
    return Denoiser(unet, schedule, row, image_shape=(1, 8, 8), num_classes=3)


def pictures(count: int = 9, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 2, 3, 18, 128, 700])
def test_grids_rise_from_the_lowest_time_in_the_schedules_own_steps(schedule: Schedule, steps: int) -> None:
    times = rising_times(schedule, steps)
    assert (len(times), float(times[0]), float(times[-1])) == (steps + 1, schedule.t_min, schedule.t_max)
    assert (times.diff() > 0).all()
    own = [set(schedule.times(n).tolist()) for n in range(steps, steps + 3)]
    assert any(set(times[1:].tolist()) <= grid for grid in own)


def test_known_grids() -> None:
    assert rising_times(Linear(), 4).tolist() == [0.001, 0.25, 0.5, 0.75, 1.0]
    assert rising_times(Linear(), 1).tolist() == [0.001, 1.0]
    assert rising_times(VE(), 1).tolist() == [0.002, 80.0]
    assert torch.allclose(rising_times(VE(), 18), VE().times(19)[:-1].flip(0), rtol=1e-9)
    assert rising_times(DiscreteVP(), 999).tolist() == [(k + 1) / 1000 for k in range(1000)]
    assert len(rising_times(Linear(), 5000)) == 5001
    for steps, said in ((0, "at least 1"), (1000, "at most 999"), (5000, "at most 999")):
        with pytest.raises(ValueError, match=said):
            rising_times(DiscreteVP(), steps)


def exact(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """The noise, of unit scale, that the flow of Gaussian data of std STD carries a state at t to."""
    end = torch.tensor(schedule.t_max, dtype=torch.float64)
    spread = [(schedule.alpha(each) * STD) ** 2 + schedule.sigma(each) ** 2 for each in (end, t)]
    return x * (spread[0] / spread[1]).sqrt() / schedule.sigma(end)


@pytest.mark.parametrize("schedule", [Linear(), VE(), VP(), Trig()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence_upwards(sampler, order: int, schedule: Schedule) -> None:
    state, errors = torch.randn(16, 1, 2, 2, dtype=torch.float64), []
    for steps in (32, 64, 128, 256):
        times, oracle = rising_times(schedule, steps), GaussianDenoiser(schedule, STD)
        made = sampler(oracle, schedule, state, times, no_noise) / schedule.sigma(times[-1])
        errors.append(float((made - exact(schedule, state, times[0])).abs().max()))
        assert oracle.calls == inversion_calls(schedule, sampler.__name__, steps)
    slopes = -torch.tensor(errors, dtype=torch.float64).log().diff() / math.log(2)
    assert float(slopes.mean()) == pytest.approx(order, abs=0.25)


class GaussianNetwork(nn.Module):
    """The clean image of ``GaussianDenoiser`` on ``Linear``."""

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        return GaussianDenoiser(Linear(), STD)(x, c_noise[0] / 1000, c_noise[0])


def test_gaussian_images_become_unit_noise() -> None:
    """x -> x / std, and its squared norm is that of a chi-square."""
    denoiser = Denoiser(GaussianNetwork(), Linear(), PredictClean(), image_shape=(3, 16, 16))
    x = STD * torch.randn(200, 3, 16, 16)
    noise = invert(denoiser, x, sampler="heun", steps=64)
    torch.testing.assert_close(noise, x / STD, rtol=0, atol=0.02)
    assert float(noise.square().flatten(1).sum(1).mean()) == pytest.approx(768, abs=4 * (2 * 768 / 200) ** 0.5)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_straight_flows_are_inverted_in_any_number_of_steps_up_to_the_blend(steps: int, sampler: str) -> None:
    """Pairs (0.7 z, z): the noise is the image over 0.7, and the image comes back."""
    denoiser = Denoiser(StraightNetwork(0.7), Linear(), PredictVelocity(), image_shape=SHAPE, sampler="straight")
    x = 0.7 * torch.randn(5, *SHAPE).clamp(-1.4, 1.4)
    noise = invert(denoiser, x, sampler=sampler, steps=steps)
    blended = 0.999 * x + 0.001 * SeededNoise(range(5), SHAPE, torch.device("cpu"))(0)
    torch.testing.assert_close(noise, blended / (0.999 * 0.7 + 0.001), rtol=0, atol=2e-4)  # rounding over t
    for back in ("euler", "heun", "straight", "straight_heun"):
        again = decode(denoiser, noise, sampler=back, steps=3, output="float")
        torch.testing.assert_close(again, 0.7 * noise, rtol=1e-5, atol=1e-5)
        assert (again - x).abs().max() < 8e-3


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 4), ("heun", 7)])
def test_the_network_is_never_asked_about_pure_noise(sampler: str, calls: int) -> None:
    seen = Seen()
    denoiser = Denoiser(seen, Linear(), PredictVelocity(), image_shape=SHAPE)
    invert(denoiser, torch.zeros(2, *SHAPE), sampler=sampler, steps=4)
    assert sorted(set(seen.times)) == pytest.approx([0.001, 0.25, 0.5, 0.75])
    assert len(seen.times) == calls == inversion_calls(Linear(), sampler, 4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_calls_are_counted_on_every_schedule(sampler: str, steps: int, schedule: Schedule) -> None:
    denoiser = counting_denoiser(schedule)
    noise = invert(denoiser, torch.zeros(2, *SHAPE), labels=[1, 2], sampler=sampler, steps=steps)
    assert denoiser.backbone.calls == inversion_calls(schedule, sampler, steps)
    assert noise.isfinite().all()


@pytest.mark.parametrize("schedule", [Linear(), VE()], ids=lambda s: type(s).__name__)
def test_a_flow_is_followed_back_to_the_image(schedule: Schedule) -> None:
    """The more steps, the closer; of the right class only."""
    denoiser, x, labels = network(schedule), pictures(), [k % 3 for k in range(9)]
    off = {}
    for steps in (4, 64):
        for name, to in (("same", labels), ("other", [(k + 1) % 3 for k in labels])):
            made = translate(
                denoiser,
                x,
                labels=labels,
                to=to,
                sampler="heun",
                steps=steps,
                decode_sampler="heun",
                decode_steps=steps,
            )
            assert made.dtype == torch.uint8
            off[steps, name] = float((to_unit(made) - to_unit(x)).square().mean())
    assert off[64, "same"] < min(1e-4, off[4, "same"])
    assert off[64, "other"] > 10 * off[64, "same"]


def test_translation_is_inversion_and_decoding() -> None:
    denoiser, x = network(Linear()), pictures()
    noise = invert(denoiser, x, labels=1, sampler="euler", steps=4)
    two_steps = decode(denoiser, noise, labels=2, sampler="straight", steps=2)
    translated = translate(
        denoiser, x, labels=1, to=2, sampler="euler", steps=4, decode_sampler="straight", decode_steps=2
    )
    assert torch.equal(translated, two_steps)


def test_decoding_a_seeds_noise_is_generating_it() -> None:
    for schedule in (Linear(), VE()):
        denoiser = network(schedule)
        noise = SeededNoise(range(3), (1, 8, 8), torch.device("cpu"))(0)
        assert torch.equal(
            decode(denoiser, noise, labels=1, steps=3), genflow.generate(denoiser, range(3), labels=1, steps=3)
        )


@pytest.mark.parametrize("schedule", [Linear(), VE()], ids=lambda s: type(s).__name__)
def test_noise_does_not_depend_on_the_batch(schedule: Schedule) -> None:
    denoiser, x, labels = network(schedule), pictures(), [k % 3 for k in range(9)]
    whole = invert(denoiser, x, labels=labels, sampler="heun", steps=3)
    for size in (1, 4):
        torch.testing.assert_close(
            invert(denoiser, x, labels=labels, sampler="heun", steps=3, batch_size=size), whole, rtol=1e-4, atol=1e-3
        )
    alone = invert(denoiser, x[5:6], labels=labels[5], seeds=[5], sampler="heun", steps=3)
    torch.testing.assert_close(alone, whole[5:6], rtol=1e-4, atol=1e-3)
    other = invert(denoiser, x[5:6], labels=labels[5], seeds=[6], sampler="heun", steps=3)
    assert not torch.allclose(other, alone, rtol=1e-4, atol=1e-3)


def test_bytes_and_numbers_are_the_same_images() -> None:
    denoiser, x = network(Linear()), pictures()
    assert torch.equal(invert(denoiser, x, steps=2), invert(denoiser, to_unit(x).double(), steps=2))
    assert torch.equal(quantize(to_unit(x)), x)


def test_a_grid_can_be_given() -> None:
    denoiser, x = network(Linear()), pictures()
    own = rising_times(Linear(), 3).tolist()
    assert torch.equal(invert(denoiser, x, steps=3), invert(denoiser, x, times=own))
    assert not torch.equal(invert(denoiser, x, steps=3), invert(denoiser, x, times=[1e-5, *own[1:]]))


def test_the_models_own_sampler_serves_if_it_can() -> None:
    for own, taken in (("heun", "heun"), ("euler", "euler"), ("straight", "euler"), ("dpmpp_2m", "euler")):
        denoiser = Denoiser(CountingNetwork(), VE(), Karras(), image_shape=SHAPE, sampler=own, steps=5, num_classes=10)
        invert(denoiser, torch.zeros(1, *SHAPE))
        assert denoiser.backbone.calls == inversion_calls(VE(), taken, 5)


def test_training_mode_is_left_as_it_was() -> None:
    denoiser = network(Linear()).train()
    invert(denoiser, pictures(), steps=1)
    assert denoiser.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "straight"}, "straight does not follow a flow from image to noise: choose euler or heun"),
        ({"sampler": "straight_heun"}, "choose euler or heun"),
        ({"sampler": "ancestral"}, "choose euler or heun"),
        ({"sampler": "dpmpp_2m"}, "choose euler or heun"),
        ({"sampler": "hein"}, "unknown sampler 'hein'"),
        ({"labels": 11}, "out of range: this model has the classes 0 to 9"),
        ({"labels": [1]}, "1 labels for 3"),
        ({"seeds": [1]}, "1 seeds for 3 images"),
        ({"seeds": [-1, 0, 1]}, "seeds must be in"),
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"times": [0.1, 0.5]}, r"rise from above 0 to 80"),
        ({"times": [0.0, 80.0]}, r"rise from above 0"),
        ({"times": [80.0, 0.1]}, r"must rise"),
        ({"times": [0.1, math.nan, 80.0]}, r"must rise"),
        ({"times": [math.nan, 80.0]}, r"must rise"),
        ({"steps": 3, "times": [0.1, 80.0]}, "give one of the two"),
    ],
)
def test_bad_requests(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invert(counting_denoiser(VE()), torch.zeros(3, *SHAPE), **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 1, 4, 5), r"images must be .*4, 4.*, got \(3, 1, 4, 5\)"),
        (torch.zeros(1, 4, 4), "images must be"),
        (torch.zeros(0, 1, 4, 4), "images must be"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.int32), "uint8, or floating point"),
        (torch.full((3, 1, 4, 4), math.nan), "must be finite"),
        (
            torch.full((3, 1, 4, 4), 255.0),
            r"must be in \[-1, 1\], and these reach 255: give them as uint8, or x / 127.5",
        ),
        (torch.zeros(3, 1, 4, 4).numpy(), r"images must be a tensor, got numpy\.ndarray: torch\.as_tensor makes one"),
    ],
)
def test_bad_images(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invert(counting_denoiser(VE()), images)


def test_latents_may_reach_further_than_pictures() -> None:
    denoiser = Denoiser(CountingNetwork(0), VE(), Karras(), image_shape=(4, 4, 4))
    assert invert(denoiser, torch.full((1, 4, 4, 4), 30.0), steps=2).shape == (1, 4, 4, 4)
    overshot = Denoiser(CountingNetwork(0), VE(), Karras(), image_shape=SHAPE)
    assert invert(overshot, torch.full((1, *SHAPE), -1.5), steps=2).shape == (1, *SHAPE)


def test_translations_refuse_what_inversions_do() -> None:
    with pytest.raises(ValueError, match="these reach 255"):
        translate(counting_denoiser(VE()), torch.full((3, *SHAPE), 255.0), labels=1, to=2)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (torch.full((3, *SHAPE), math.nan), "noise must be finite"),
        (torch.zeros(3, *SHAPE).numpy(), "noise must be a tensor, got numpy"),
        (torch.zeros(3, 1, 4, 5), r"\(3, 1, 4, 4\)"),
    ],
)
def test_bad_noise(noise: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(counting_denoiser(VE()), noise)


def test_labels_without_classes_and_noise_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match="no classes"):
        invert(counting_denoiser(VE(), classes=0), torch.zeros(3, *SHAPE), labels=1)
    with pytest.raises(ValueError, match="ancestral adds noise of its own"):
        decode(counting_denoiser(VE()), torch.zeros(3, *SHAPE), sampler="ancestral")
    noisy = Denoiser(CountingNetwork(), VE(), Karras(), image_shape=SHAPE, sampler="ancestral")
    with pytest.raises(ValueError, match="choose another one for the way to images, such as euler or heun"):
        decode(noisy, torch.zeros(3, *SHAPE))
    with pytest.raises(ValueError, match="ancestral adds noise of its own"):
        translate(counting_denoiser(VE()), torch.zeros(3, *SHAPE), labels=1, to=2, decode_sampler="ancestral")


def test_epsilon_models_are_inverted_too() -> None:
    """No noise seen anywhere: the image is scaled, and its own little noise stays what it is."""
    denoiser = Denoiser(Seen(), Cosine(), PredictNoise(), image_shape=SHAPE)
    x = torch.randn(2, *SHAPE).clamp(-1, 1)
    end, start = (torch.tensor(t, dtype=torch.float64) for t in (Cosine().t_max, Cosine().t_min))
    state = Cosine().interpolate(x, SeededNoise(range(2), SHAPE, torch.device("cpu"))(0), start)
    expected = state * (Cosine().alpha(end) / Cosine().alpha(start) / Cosine().sigma(end)).float()
    torch.testing.assert_close(invert(denoiser, x, sampler="euler", steps=3), expected, rtol=1e-4, atol=1e-5)


def test_arcs_begin_and_end_at_the_noises_and_keep_their_length() -> None:
    a, b = torch.randn(2, 3, 16, 16)
    b = b * a.norm() / b.norm()
    made = slerp(a, b, [0.0, 0.25, 0.5, 1.0])
    assert made.shape == (4, 3, 16, 16)
    torch.testing.assert_close(made[0], a)
    torch.testing.assert_close(made[-1], b)
    torch.testing.assert_close(made.flatten(1).norm(dim=1), a.norm().expand(4), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(made[2] / made[2].norm(), (a + b) / (a + b).norm(), rtol=1e-4, atol=1e-6)
    whole, quarter = (torch.acos((a * other).sum() / a.norm() ** 2) for other in (b, made[1]))
    torch.testing.assert_close(4 * quarter, whole, rtol=1e-3, atol=1e-4)


def test_lengths_are_not_normalised_and_lines_are_followed() -> None:
    a, b = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]])
    half = math.sqrt(0.5)
    torch.testing.assert_close(slerp(a, b, [0.5]), torch.tensor([[[[2 * half, 4 * half]]]]))
    torch.testing.assert_close(slerp(a, 3 * a, [0.0, 0.5]), torch.stack([a, 2 * a]))
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3])), a[None])
    assert slerp(a, 0 * a, [0.5]).tolist() == [[[[1.0, 0.0]]]]
    with pytest.raises(ValueError, match="one shape"):
        slerp(a, torch.zeros(1, 3), [0.5])


def test_one_weight_gives_one_noise_and_what_is_no_weight_is_refused() -> None:
    a, b = torch.randn(2, 1, 4, 4)
    for weight in (0.5, torch.tensor(0.5)):
        assert torch.equal(slerp(a, b, weight), slerp(a, b, [0.5])[0])
    assert torch.equal(slerp(a, a, 1), a)
    for weights, said in ((math.nan, "weights must be finite"), ([[0.5]], r"weights .* got shape \(1, 1\)")):
        with pytest.raises(ValueError, match=said):
            slerp(a, b, weights)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="first must be a tensor, got numpy"):
        slerp(a.numpy(), b, 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="second must be finite"):
        slerp(a, b / 0, 0.5)


@pytest.mark.parametrize(("steps", "error"), [(1.5, TypeError), (0, ValueError)])
def test_a_number_of_steps_that_is_none_is_refused_at_once(steps, error) -> None:
    with pytest.raises(error):
        rising_times(Linear(), steps)
