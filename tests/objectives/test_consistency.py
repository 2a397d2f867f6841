"""Consistency models' loss: what student and teacher share, its published values, and the mistakes these tell apart."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from oracles import CountingNetwork, ExactConsistency, Nothing
from torch import Tensor, nn

from genflow import generate
from genflow.config import Config
from genflow.denoiser import Denoiser
from genflow.nn.dit import DiT
from genflow.nn.unet import UNet
from genflow.objectives import (
    AveragedWeights,
    Batch,
    ByTeacher,
    Consistency,
    Constant,
    CurrentWeights,
    EasyLevels,
    GridLevels,
    InverseGap,
    Levels,
    LogNormalInterval,
    Metric,
    Norm,
    PseudoHuber,
    SquaredL2,
    Unweighted,
)
from genflow.parameterizations import ConsistencyKarras, Karras
from genflow.schedules import VE
from genflow.training.tuning import tune

STAGES = (11, 21, 41, 81, 161, 321, 641, 1281)


@dataclass(frozen=True, kw_only=True)
class OneTime(Levels):
    """Student and teacher at the same noise level: their images must be the same ones."""

    time: float = 0.7

    def pairs(self, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return torch.full_like(u, self.time), torch.full_like(u, self.time)


@dataclass(frozen=True, kw_only=True)
class Kept(Metric):
    """Keeps what it is given."""

    seen: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((residual, clean, x, t))
        return residual.square().flatten(1).mean(dim=1)


def icts_levels(points: int) -> GridLevels:
    return GridLevels(curriculum=Constant(count=points), law=LogNormalInterval())


def ict(network: nn.Module, points: int, shape: tuple[int, int, int], metric: Metric | None = None) -> Consistency:
    denoiser = Denoiser(network, VE(), ConsistencyKarras(), image_shape=shape, sampler="multistep", steps=1)
    return Consistency(denoiser, icts_levels(points), metric=metric or PseudoHuber.ict(), weighting=InverseGap())


def even_batch(x: Tensor) -> Batch:
    """Ranks spread evenly over the law, so that the mean loss is its expectation but for the noise of images."""
    count = len(x)
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return Batch(x=x, y=None, noise=torch.randn_like(x), index=torch.arange(count), u=u)


def random_unet(classes: int = 3) -> UNet:
    net = UNet(
        image_size=(8, 8), in_channels=1, num_classes=classes, width=16, multipliers=(1, 2), blocks=1, attention=(4,),
        dropout=0.5,
    )  # fmt: skip
    return stirred(net)


def random_dit(classes: int = 3) -> DiT:
    net = DiT(
        image_size=(8, 8), in_channels=1, num_classes=classes, patch_size=2, width=32, depth=2, heads=2, mlp_ratio=4.0,
        dropout=0.5,
    )  # fmt: skip
    return stirred(net)


def stirred(network):
    """Weights without the zeros that networks start with."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


NETWORKS = {"unet": random_unet, "dit": random_dit}


def shared(device: torch.device, make=random_unet, kind: type[Consistency] = Consistency, average: bool = False):
    """A loss of dropout's masks alone: one image, one noise, one time, for student and teacher."""
    denoiser = Denoiser(make(), VE(), ConsistencyKarras(), image_shape=(1, 8, 8), num_classes=3).to(device)
    target = AveragedWeights(denoiser, rate=0.5) if average else CurrentWeights()
    made = kind(denoiser, OneTime(), metric=Kept(), weighting=Unweighted(), target=target, label_dropout=0.5)
    return made.to(device).train()


def draw(device: torch.device, count: int = 8) -> Batch:
    x = torch.rand(count, 1, 8, 8, device=device) * 2 - 1
    return Batch.draw(x, torch.randint(3, (count,), device=device), torch.arange(count, device=device))


def assert_masks_are_shared(objective: Consistency, device: torch.device, steps: int = 3) -> None:
    """No difference at all between the two images, though dropout changes them from step to step."""
    batch, images = draw(device), []
    for step in range(steps):
        objective(batch, step).sum().backward()
        assert isinstance(objective.metric, Kept)
        residual, clean, _, _ = objective.metric.seen[-1]
        assert residual.abs().max() == 0
        images.append(clean.detach())
    assert (images[0] - images[1]).abs().max() > 1e-2


# The dropout mask


@pytest.mark.parametrize("average", [False, True], ids=["current", "average"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("network", NETWORKS)
def test_dropout_masks_are_shared(network: str, checkpointing: bool, average: bool, device) -> None:
    objective = shared(device, NETWORKS[network], average=average)
    for part in objective.modules():
        if isinstance(part, Denoiser):
            part.backbone.gradient_checkpointing = checkpointing
    assert_masks_are_shared(objective, device)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("average", [False, True], ids=["current", "average"])
@pytest.mark.parametrize("network", NETWORKS)
def test_dropout_masks_are_shared_by_compiled_networks(network: str, average: bool, device) -> None:
    """One compilation has gradients and the other none: they must draw the same masks all the same.

    What is left is rounding, since the two are not fused alike; another mask would be a thousand times as much.
    """
    objective = shared(device, NETWORKS[network], average=average)
    tune(objective, Config(compile=True), device)
    batch, images = draw(device), []
    for step in range(3):
        objective(batch, step).sum().backward()
        assert isinstance(objective.metric, Kept)
        residual, clean, _, _ = objective.metric.seen[-1]
        assert residual.abs().max() < 1e-4
        images.append(clean.detach())
    assert (images[0] - images[1]).abs().max() > 1e-2


class OtherMasks(Consistency):
    """The teacher's masks are not given back to the student."""

    @torch.no_grad()
    def goal(self, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        return self.target.network(self.denoiser).denoise(x_t, s, y)


@pytest.mark.parametrize("network", NETWORKS)
def test_masks_that_are_not_shared_are_told_apart(network: str, device) -> None:
    with pytest.raises(AssertionError):
        assert_masks_are_shared(shared(device, NETWORKS[network], OtherMasks), device)


def test_the_teacher_uses_no_luck_up(device) -> None:
    """Random numbers after the loss are those after the student's pass alone."""
    objective, batch = shared(device), draw(device)
    torch.manual_seed(1)
    objective.goal(batch, batch.x, batch.u, batch.u, batch.y)
    after = torch.rand(4, device=device)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4, device=device), after)


# What else is shared


class Recorder(CountingNetwork):
    """Keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__(classes=3)
        self.given: list[dict[str, Tensor | None]] = []

    def forward(self, x, c_noise, y=None, s=None, *, augment=None):
        self.given.append({"x": x, "c_noise": c_noise, "y": y, "augment": augment, "training": self.training})
        return super().forward(x, c_noise, y, s)


def test_image_noise_label_and_augmentation_are_shared() -> None:
    """Half of the labels are dropped, the same ones; the noise is one, x_t - x_s = (t - s) noise."""
    network = Recorder()
    denoiser = Denoiser(network, VE(), ConsistencyKarras(), image_shape=(1, 8, 8), num_classes=3)
    objective = Consistency(denoiser, icts_levels(11), metric=Kept(), weighting=InverseGap(), label_dropout=0.5).train()
    batch = replace(draw(torch.device("cpu"), 64), augment=torch.randn(64, 9))
    objective(batch, 0)
    teacher, student = network.given
    for name in ("y", "augment"):
        assert torch.equal(teacher[name], student[name])
    assert student["augment"] is batch.augment
    assert 10 < int((student["y"] == 3).sum()) < 54
    assert teacher["training"] is student["training"] is True
    t, s = objective.levels.pairs(batch.u, 0)
    for seen, time in ((student, t), (teacher, s)):
        column = time.view(-1, 1, 1, 1)
        state = (batch.x + column * batch.noise) / (column**2 + 0.25).sqrt()
        torch.testing.assert_close(seen["x"], state.float())
        torch.testing.assert_close(seen["c_noise"], (time.log() / 4).float())


def test_the_teacher_has_no_gradient_and_keeps_no_activations(device) -> None:
    objective, batch = shared(device), draw(device)
    t = torch.full_like(batch.u, 0.7)
    x_t = batch.x + 0.7 * batch.noise
    with counted() as kept:
        goal = objective.goal(batch, x_t, t, t, batch.y)
    assert (len(kept), goal.requires_grad) == (0, False)
    with counted() as kept:
        assert objective.denoiser.denoise(x_t, t, batch.y).requires_grad
    assert len(kept) > 10


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """What autograd keeps for a backward pass."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_student_has_all_of_its_gradient(network: str, precision: torch.dtype | None, device) -> None:
    """As if the goal were a constant, made in a context of its own: none of the teacher's casts stays for the student.

    Weights that autocast rounds where there are no gradients, and keeps for the next to come, would have none.
    """
    objective, batch = shared(device, NETWORKS[network]), draw(device)
    levels = icts_levels(11)
    objective.levels, objective.label_dropout, objective.metric = levels, 0.0, SquaredL2()
    t, s = levels.pairs(batch.u, 0)
    x_t = objective.denoiser.schedule.interpolate(batch.x, batch.noise, t)

    def precise() -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device.type, precision) if precision else contextlib.nullcontext()

    with precise():
        torch.manual_seed(3)
        objective(batch, 0).sum().backward()
    ours = taken(objective)
    torch.manual_seed(3)
    with precise():
        goal = objective.goal(batch, x_t, t, s, batch.y)
    with precise():
        clean = objective.denoiser.denoise(x_t, t, batch.y)
        (clean - goal).square().flatten(1).mean(1).sum().backward()
    alone = taken(objective)
    assert ours.keys() == alone.keys() == dict(objective.denoiser.named_parameters()).keys()
    for name, gradient in ours.items():
        if device.type == "cpu":
            assert torch.equal(gradient, alone[name]), name
        else:  # where sums are in whatever order comes
            assert torch.allclose(gradient, alone[name], rtol=1e-2, atol=1e-6), name
        assert gradient.isfinite().all()
    assert sum(bool(g.abs().max() > 0) for g in ours.values()) > 0.9 * len(ours)


def taken(objective: Consistency) -> dict[str, Tensor]:
    found = {k: p.grad for k, p in objective.denoiser.named_parameters() if p.grad is not None}
    objective.zero_grad(set_to_none=True)
    return found


def test_an_average_is_not_trained_and_follows() -> None:
    objective = shared(torch.device("cpu"), average=True)
    target = objective.target
    assert isinstance(target, AveragedWeights)
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert all(name.startswith("denoiser.") for name in trained)
    before = [p.clone() for p in target.average.parameters()]
    with torch.no_grad():
        for p in objective.denoiser.parameters():
            p.add_(1)
    objective.after_step(0)
    for old, new in zip(before, target.average.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)
    assert target.average.training
    with pytest.raises(ValueError, match=r"must be in \(0, 1\), got 1"):
        AveragedWeights(objective.denoiser, rate=1.0)


def test_current_weights_are_those_of_the_student() -> None:
    objective = shared(torch.device("cpu"))
    assert objective.target.network(objective.denoiser) is objective.denoiser
    before = objective.state_dict()
    objective.after_step(0)
    assert objective.state_dict().keys() == before.keys()


def test_a_teacher_of_distillation_is_frozen_and_drops_nothing() -> None:
    """Its step costs no luck, whatever mode the objective is put in."""
    teacher = Denoiser(random_unet(0), VE(), Karras(), image_shape=(1, 8, 8))
    descent = ByTeacher(teacher)
    student = Denoiser(random_unet(), VE(), ConsistencyKarras(), image_shape=(1, 8, 8), num_classes=3)
    objective = Consistency(student, icts_levels(11), metric=Kept(), weighting=Unweighted(), descent=descent).train()
    assert student.backbone.training
    assert not any(part.training for part in teacher.modules())
    batch = draw(torch.device("cpu"))
    objective(batch, 0).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    t, s = objective.levels.pairs(batch.u, 0)
    states = [descent(VE(), batch, batch.x, t, s, batch.y) for _ in range(2)]
    assert torch.equal(*states)


def test_one_loss_per_image_and_a_label_dropout_that_is_a_share() -> None:
    objective = ict(CountingNetwork(), 11, (1, 4, 4))
    losses = objective(even_batch(torch.rand(6, 1, 4, 4)), 0)
    assert (losses.shape, losses.dtype) == ((6,), torch.float32)
    with pytest.raises(ValueError, match=r"label_dropout must be in \[0, 1\), got 1"):
        Consistency(objective.denoiser, icts_levels(11), metric=Norm(), weighting=InverseGap(), label_dropout=1.0)


# Published values


def test_the_lowest_level_gives_its_state_back_bit_by_bit() -> None:
    """For any network; so two levels regress the image with hardly any noise."""
    objective = ict(random_unet(0), 2, (1, 8, 8), Kept())
    batch = even_batch(torch.rand(6, 1, 8, 8) * 2 - 1)
    objective(batch, 0)
    assert isinstance(objective.metric, Kept)
    _, _, goal, t = objective.metric.seen[0]
    assert torch.equal(goal, batch.x + 0.002 * batch.noise)
    assert set(t.tolist()) == {80.0}


@pytest.mark.parametrize("data", ["normal", "signs"])
def test_icts_loss_at_the_start_whatever_the_data(data: str) -> None:
    """With a network that gives 0 and values of mean square 1/4, in 3 x 32 x 32."""
    x = torch.randn(384, 3, 32, 32) / 2 if data == "normal" else torch.randint(2, (384, 3, 32, 32)) - 0.5
    x = x * (0.25 / x.square().mean()).sqrt()
    losses = [float(ict(Nothing(), points, (3, 32, 32))(even_batch(x), 0).mean()) for points in STAGES]
    assert losses == pytest.approx([29.87, 30.85, 30.70, 29.88, 28.36, 25.91, 22.35, 17.71], rel=0.01)


def test_icts_loss_at_the_start_on_larger_images() -> None:
    x = torch.randn(128, 3, 64, 64) / 2
    losses = [float(ict(Nothing(), points, (3, 64, 64))(even_batch(x), 0).mean()) for points in (11, 1281)]
    assert losses == pytest.approx([59.74, 35.42], rel=0.01)


def exact_losses(metric: Metric | None = None) -> list[float]:
    x = torch.randn(384, 3, 32, 32) / 2
    made = [ict(ExactConsistency(), points, (3, 32, 32), metric) for points in (11, 81, 1281)]
    return [float(objective(even_batch(x), 0).mean()) for objective in made]


def assert_is_icts_loss(losses: list[float]) -> None:
    assert losses == pytest.approx([30.26, 29.86, 17.68], rel=0.01)


def test_icts_loss_at_the_exact_solution_is_that_of_the_start() -> None:
    """On Gaussian data: why the loss says nothing about a run."""
    assert_is_icts_loss(exact_losses())


@dataclass(frozen=True, kw_only=True)
class ByElement(Metric):
    """Pseudo-Huber of each value, with the c of the whole vector."""

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        c = 0.00054 * residual[0].numel() ** 0.5
        values = residual.double()
        return ((values**2 + c**2).sqrt() - c).flatten(1).mean(dim=1)


def test_pseudo_huber_by_element_is_told_apart() -> None:
    losses = exact_losses(ByElement())
    assert losses[-1] == pytest.approx(0.0111, rel=0.02)
    with pytest.raises(AssertionError):
        assert_is_icts_loss(losses)
    wide = exact_losses(PseudoHuber())  # c for a vector of D, not sqrt(D), values
    with pytest.raises(AssertionError):
        assert_is_icts_loss(wide)


def test_icts_loss_at_the_exact_solution_in_two_dimensions() -> None:
    objective = ict(ExactConsistency(), 11, (2, 1, 1))
    assert float(objective(even_batch(torch.randn(200_000, 2, 1, 1) / 2), 0).mean()) == pytest.approx(0.6837, rel=0.005)


def test_the_exact_linear_network() -> None:
    """The gain that takes N(0, 1/4) to where its flow ends."""
    sigma = torch.tensor([0.01, 0.1, 0.5, 0.821, 1, 10, 80], dtype=torch.float64)
    network = ExactConsistency()
    assert network.gain(sigma).tolist() == pytest.approx(
        [0.004001, 0.093299, 0.411864, 0.561046, 0.617675, 0.951428, 0.993802], abs=1e-6
    )
    denoiser = ict(network, 11, (1, 1, 1)).denoiser
    seen = denoiser.denoise(torch.ones(7, 1, 1, 1), sigma).flatten().double()
    torch.testing.assert_close(seen, network.answer(sigma), rtol=1e-5, atol=0)
    assert float(network.answer(sigma)[-1]) == pytest.approx(0.006249927932, rel=1e-9)


def test_sampling_sees_what_training_saw() -> None:
    """One step from a state at the highest level gives the student's image of it, bit by bit."""
    objective = ict(random_unet(0), 2, (1, 8, 8), Kept()).eval()  # of two levels the student's is the highest
    batch = even_batch(torch.rand(5, 1, 8, 8) * 2 - 1)
    objective(batch, 0)
    assert isinstance(objective.metric, Kept)
    _, clean, _, _ = objective.metric.seen[0]
    made = generate(objective.denoiser, range(5), x=batch.x + 80 * batch.noise, output="float")
    torch.testing.assert_close(made, clean.detach(), rtol=1e-5, atol=1e-5)


# ECT


def easy(network: nn.Module, levels: EasyLevels, metric: Metric | None = None) -> Consistency:
    denoiser = Denoiser(network, VE(), Karras(), image_shape=(1, 8, 8))
    return Consistency(denoiser, levels, metric=metric or Norm(), weighting=InverseGap())


def test_ect_with_the_teacher_at_zero_is_a_diffusion_models_loss() -> None:
    """Below t = ln 7 the first stage's teacher gives the clean image itself, bit by bit, and nothing is undefined."""
    objective = easy(random_unet(0), EasyLevels(total=8), Kept())
    batch = even_batch(torch.rand(64, 1, 8, 8) * 2 - 1)
    losses = objective(batch, 0)
    assert isinstance(objective.metric, Kept)
    _, clean, goal, t = objective.metric.seen[0]
    low = t < 1.9459
    assert 20 < int(low.sum()) < 64
    assert torch.equal(goal[low], batch.x[low])
    expected = (clean - batch.x).square().flatten(1).mean(1) / t
    torch.testing.assert_close(losses[low], expected[low].float())


def test_ects_loss_and_gradient_stay_finite_where_there_is_no_difference() -> None:
    """The norm at 0, over a teacher at 0 or not."""
    x = torch.zeros(64, 1, 8, 8)
    batch = replace(even_batch(x), noise=torch.zeros_like(x))
    network = random_unet(0)
    for step in range(8):
        objective = easy(Scaled(), EasyLevels(total=8))
        losses = objective(batch, step)
        losses.sum().backward()
        assert (losses == 0).all()
        gradient = next(objective.parameters()).grad
        assert gradient is not None
        assert float(gradient) == 0
        assert easy(network, EasyLevels(total=8))(even_batch(torch.rand(64, 1, 8, 8)), step).isfinite().all()


class Scaled(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, c_noise, y=None, s=None):
        return self.weight * x
