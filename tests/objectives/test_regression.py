import pytest
import torch
from oracles import CountingNetwork, PointNetwork, ToldNetwork, counting_denoiser

from genflow.denoiser import Denoiser
from genflow.objectives import Batch, DiscreteUniform, LogitNormal, LogNormal, Regression, TimeDistribution, Uniform
from genflow.objectives.base import drop_labels
from genflow.parameterizations import Karras, PredictNoise, PredictV, PredictVelocity
from genflow.sampling import generate
from genflow.schedules import VE, VP, DiscreteVP, Linear


def draw_batch(count: int = 64, shape: tuple[int, ...] = (1, 4, 4), classes: int = 10) -> Batch:
    return Batch.draw(torch.randn(count, *shape), torch.randint(classes, (count,)), torch.arange(count))


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        (Uniform(high=0.9), lambda t: t / 0.9),
        (LogNormal(), lambda t: torch.special.ndtr((t.log() + 1.2) / 1.2)),
        (LogNormal(mean=0.3, std=2.0), lambda t: torch.special.ndtr((t.log() - 0.3) / 2.0)),
        (LogitNormal(), lambda t: torch.special.ndtr(torch.logit(t))),
        (LogitNormal(mean=-0.5, std=0.7), lambda t: torch.special.ndtr((torch.logit(t) + 0.5) / 0.7)),
    ],
    ids=lambda given: "cdf" if callable(given) else str(given),
)
def test_times_follow_their_law(law: TimeDistribution, cdf) -> None:
    u = torch.rand(100_000, dtype=torch.float64)
    t = law.quantile(u)
    torch.testing.assert_close(cdf(t), u, rtol=1e-7, atol=1e-7)  # the quantile inverts the CDF, so the draw is exact
    assert (law.quantile(torch.tensor([1e-9, 0.5, 1 - 1e-9], dtype=torch.float64)).diff() > 0).all()


def test_discrete_times_are_ddpms_steps() -> None:
    t = DiscreteUniform(count=10).quantile(torch.linspace(0, 1, 10_001, dtype=torch.float64))
    values, counts = t.unique(return_counts=True)
    torch.testing.assert_close(values, torch.arange(1, 11, dtype=torch.float64) / 10)
    assert (counts - 1000).abs().max() <= 1


def test_one_loss_per_image() -> None:
    objective = Regression(counting_denoiser(VE()), LogNormal())
    batch = draw_batch()
    losses = objective(batch, 0)
    assert losses.shape == (64,)
    assert losses.dtype == torch.float32
    objective = Regression(counting_denoiser(VE()), LogNormal(), label_dropout=0.0)
    losses = objective(batch, 0)
    first = Batch(x=batch.x[:1], y=batch.y[:1], noise=batch.noise[:1], index=batch.index[:1], u=batch.u[:1])
    torch.testing.assert_close(objective(first, 0)[0], losses[0])


def test_the_network_is_told_of_augmentation() -> None:
    """A network that adds a number to its output has the loss of one whose target is smaller by that number."""
    denoiser = Denoiser(ToldNetwork(), VE(), Karras(), image_shape=(1, 4, 4), num_classes=10)
    objective = Regression(denoiser, LogNormal(), label_dropout=0.0)
    plain = draw_batch()
    augment = torch.randn(64, 9)
    torch.manual_seed(0)
    batch = Batch.draw(plain.x, plain.y, plain.index, augment)
    assert batch.augment is augment
    torch.manual_seed(0)
    plain = Batch.draw(plain.x, plain.y, plain.index)
    assert plain.augment is None
    assert torch.equal(batch.noise, plain.noise)
    assert torch.equal(batch.u, plain.u)
    t = objective.times.quantile(batch.u)
    raw = denoiser(denoiser.schedule.interpolate(batch.x, batch.noise, t), t, batch.y)
    target = denoiser.parameterization.target(denoiser.schedule, batch.x, batch.noise, t)
    expected = (raw + augment.mean(dim=1).view(-1, 1, 1, 1) - target).square().flatten(1).mean(1)
    torch.testing.assert_close(objective(batch, 0), expected)
    assert not torch.allclose(objective(plain, 0), expected)


@pytest.mark.parametrize(
    ("schedule", "row", "law", "by_hand"),
    [
        (Linear(), PredictVelocity(), Uniform(), lambda net, x, e, t, y: _flow(net, x, e, t, y)),
        (VE(), Karras(), LogNormal(), lambda net, x, e, t, y: _edm(net, x, e, t, y)),
        (DiscreteVP(), PredictNoise(), DiscreteUniform(), lambda net, x, e, t, y: _ddpm(net, x, e, t, y)),
    ],
    ids=["rectified flow", "EDM", "DDPM"],
)
def test_losses_are_the_papers(schedule, row, law, by_hand) -> None:
    network = CountingNetwork()
    denoiser = Denoiser(network, schedule, row, image_shape=(1, 4, 4), num_classes=10)
    batch = draw_batch()
    ours = Regression(denoiser, law, label_dropout=0.0)(batch, 0)
    t = law.quantile(batch.u)
    theirs = by_hand(network, batch.x.double(), batch.noise.double(), t, batch.y)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def _wide(t: torch.Tensor) -> torch.Tensor:
    return t.view(-1, 1, 1, 1)


def _flow(net, x, noise, t, y):
    """|v(x_t, t) - (noise - x)|^2 with x_t = (1 - t) x + t noise."""
    x_t = (1 - _wide(t)) * x + _wide(t) * noise
    return (net(x_t, 1000 * t, y) - (noise - x)).square().flatten(1).mean(1)


def _edm(net, x, noise, sigma, y):
    """EDM's weight times the squared error of its denoiser."""
    noisy, s, sd = x + _wide(sigma) * noise, _wide(sigma), 0.5
    raw = net(noisy / (s**2 + sd**2).sqrt(), sigma.log() / 4, y)
    clean = sd**2 / (s**2 + sd**2) * noisy + s * sd / (s**2 + sd**2).sqrt() * raw
    return ((s**2 + sd**2) / (s * sd) ** 2 * (clean - x).square()).flatten(1).mean(1)


def _ddpm(net, x, noise, t, y):
    """DDPM's simple loss over its table."""
    products = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    k = (t * 1000).round().long() - 1
    a = _wide(products[k])
    return (net(a.sqrt() * x + (1 - a).sqrt() * noise, k.double(), y) - noise).square().flatten(1).mean(1)


def test_labels_are_dropped_at_their_rate() -> None:
    y = torch.zeros(100_000, dtype=torch.int64)
    dropped = drop_labels(y, 0.1, 10)
    assert (dropped == 10).double().mean() == pytest.approx(0.1, abs=0.005)
    assert set(dropped.unique().tolist()) == {0, 10}
    assert drop_labels(None, 0.1, 10) is None
    with pytest.raises(ValueError, match="label_dropout"):
        Regression(counting_denoiser(VE()), LogNormal(), label_dropout=1.0)


def test_losses_are_finite_at_the_ends_of_time() -> None:
    for schedule, row, law in (
        (Linear(), PredictVelocity(), Uniform()),
        (Linear(), Karras(), Uniform()),
        (VE(), Karras(), LogNormal()),
        (VP(), PredictNoise(), Uniform()),
        (VP(), PredictV(), Uniform()),
    ):
        denoiser = Denoiser(CountingNetwork(), schedule, row, image_shape=(1, 4, 4), num_classes=10)
        batch = draw_batch(4)
        ends = torch.tensor([1e-9, 1e-7, 1 - 1e-7, 1 - 1e-9], dtype=torch.float64)
        batch = Batch(x=batch.x, y=batch.y, noise=batch.noise, index=batch.index, u=ends)
        assert Regression(denoiser, law)(batch, 0).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "row", "law", "scale", "sampler", "steps"),
    [
        (VE(), Karras(), LogNormal(), 1.0, "heun", 18),
        (DiscreteVP(), PredictNoise(), DiscreteUniform(), 0.001, "ancestral", 200),
        (VP(), PredictV(), Uniform(), 0.001, "dpmpp_2m", 20),
        (Linear(), PredictVelocity(), Uniform(), 0.001, "heun", 20),
        (Linear(), Karras(), LogitNormal(), 1.0, "euler", 50),
    ],
    ids=["EDM", "DDPM", "v", "rectified flow", "flow with EDM's row"],
)
def test_learns_a_mixture_of_points(schedule, row, law, scale, sampler, steps) -> None:
    """Four separate modes: nearly all samples lie on one of them, and all modes are hit evenly."""
    modes = torch.tensor([[0.6, 0.6], [0.6, -0.6], [-0.6, 0.6], [-0.6, -0.6]])
    spread = 0.1
    denoiser = Denoiser(PointNetwork(scale), schedule, row, image_shape=(2, 1, 1))
    objective = Regression(denoiser, law, label_dropout=0.0)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    total = 2500
    for step in range(total):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / total)
        points = modes[torch.randint(4, (512,))] + spread * torch.randn(512, 2)
        batch = Batch.draw(points.view(-1, 2, 1, 1), None, torch.arange(512))
        optimizer.zero_grad()
        objective(batch, step).mean().backward()
        optimizer.step()
    made = generate(denoiser, range(1000), sampler=sampler, steps=steps, output="float", batch_size=1000).flatten(1)
    distance, nearest = torch.cdist(made, modes).min(dim=1)
    assert (distance < 4 * spread).double().mean() > 0.95
    assert nearest.bincount(minlength=4).min() > 180
