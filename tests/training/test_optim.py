"""RAdam is torch's, though a fused Adam takes its steps; steps that are left out leave everything as it is."""

import pytest
import torch
from torch import Tensor, nn

from genflow.config import OptimConfig
from genflow.training.optim import learning_rate, make_optimizer, mask_step, prepare_step, rectification

SIZE, TOTAL = 12, 60


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-2, 2, SIZE))


def gradient(step: int) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(step)) * (1 + step % 7)


def take(weights: Weights, optimizer, config: OptimConfig, step: int, *, bad: bool = False) -> None:
    weights.weight.grad = torch.full((SIZE,), torch.nan) if bad else gradient(step)
    mask_step(optimizer, torch.tensor(bad))
    prepare_step(optimizer, step, TOTAL, config)
    optimizer.step()


CONFIGS = {
    "plain": OptimConfig(rule="radam", lr=0.02),
    "decay": OptimConfig(rule="radam", lr=0.02, weight_decay=0.1),
    "early": OptimConfig(rule="radam", lr=0.02, beta2=0.9, weight_decay=0.1),  # rectified from the eighth step
    "never": OptimConfig(rule="radam", lr=0.02, beta2=0.5, weight_decay=0.1),  # never rectified
}


@pytest.mark.parametrize("name", CONFIGS)
def test_radam_is_torchs_with_decoupled_weight_decay(name: str) -> None:
    """Over sixty steps: the first without the second moment, the rest with it, and the change between them."""
    config = CONFIGS[name]
    ours, theirs = Weights(), Weights()
    optimizer = make_optimizer(ours, config)
    reference = torch.optim.RAdam(
        theirs.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=True,
    )
    for step in range(TOTAL):
        take(ours, optimizer, config, step)
        theirs.weight.grad = gradient(step)
        reference.step()
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=2e-6, atol=2e-6)
    assert (ours.weight - Weights().weight).abs().min() > 1e-3


def test_rectification_begins_when_the_second_moment_says_something() -> None:
    """For beta2 = 0.999 at the sixth step, with a factor that grows to 1."""
    factors = [rectification(step, 0.999) for step in range(100_000)]
    assert factors[:5] == [None] * 5
    rest = [f for f in factors[5:] if f is not None]
    assert len(rest) == 99_995
    assert rest == sorted(rest)
    assert rest[0] < 0.03
    assert rest[-1] == pytest.approx(1, abs=1e-6)


def test_the_rate_that_is_logged_is_the_one_asked_for() -> None:
    config = OptimConfig(rule="radam", lr=0.02, warmup=4)
    assert [learning_rate(k, TOTAL, config) for k in (0, 3, 50)] == pytest.approx([0.005, 0.02, 0.02])


def test_the_weight_decay_of_a_step_is_that_of_the_configuration() -> None:
    """The product of rate and decay is lr times decay at every step, rectified or not."""
    config = OptimConfig(rule="radam", lr=0.02, weight_decay=0.1, warmup=5)
    optimizer = make_optimizer(Weights(), config)
    for step in range(TOTAL):
        prepare_step(optimizer, step, TOTAL, config)
        (group,) = optimizer.param_groups
        assert group["lr"] * group["weight_decay"] == pytest.approx(learning_rate(step, TOTAL, config) * 0.1)


@pytest.mark.parametrize("rule", ["adam", "radam"])
@pytest.mark.parametrize("step", [2, 30], ids=["early", "late"])
def test_a_masked_step_leaves_everything_as_it_is(rule: str, step: int) -> None:
    """Weights, moments and count, with weight decay, before and after rectification."""
    config = OptimConfig(rule=rule, lr=0.02, weight_decay=0.1)
    weights = Weights()
    optimizer = make_optimizer(weights, config)
    for k in range(step):
        take(weights, optimizer, config, k)
    before = [weights.weight.detach().clone(), *(v.clone() for v in optimizer.state[weights.weight].values())]
    take(weights, optimizer, config, step, bad=True)
    after = [weights.weight.detach(), *optimizer.state[weights.weight].values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    take(weights, optimizer, config, step + 1)
    assert weights.weight.isfinite().all()
    assert not torch.equal(weights.weight, before[0])
