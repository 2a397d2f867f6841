"""Objectives are built as they are described, and descriptions that do not fit together are refused."""

import pytest
import torch
from oracles import CountingNetwork

from genflow.build import build_denoiser
from genflow.build_objective import build_objective
from genflow.config import (
    Config,
    DiTConfig,
    KarrasConfig,
    LinearConfig,
    LPIPSConfig,
    LPIPSHuberConfig,
    MetricConfig,
    PackagedConfig,
    PseudoHuberConfig,
    RegressionConfig,
    SquaredL2Config,
    UShapedConfig,
    VEConfig,
    VelocityResidualConfig,
)
from genflow.denoiser import Denoiser
from genflow.objectives import (
    LPIPS,
    Batch,
    LPIPSHuber,
    PseudoHuber,
    RawResidual,
    Regression,
    SquaredL2,
    UShaped,
    VelocityResidual,
)
from genflow.parameterizations import Karras
from genflow.schedules import VE, Linear

SMALL = DiTConfig(width=32, depth=1, heads=1)


def built(objective: RegressionConfig, channels: int = 1) -> Regression:
    denoiser = Denoiser(CountingNetwork(), Linear(), Karras(), image_shape=(channels, 8, 8))
    made = build_objective(Config(schedule=LinearConfig(), objective=objective), denoiser)
    assert isinstance(made, Regression)
    return made


def test_the_parts_are_those_described() -> None:
    plain = built(RegressionConfig())
    assert (plain.residual, plain.metric) == (RawResidual(), SquaredL2())
    made = built(
        RegressionConfig(
            times=UShapedConfig(a=3.0, rim=1e-4),
            residual=VelocityResidualConfig(),
            metric=PseudoHuberConfig(c=0.03, c_power=0.5, divisor_power=0.0),
        )
    )
    assert (made.times, made.residual) == (UShaped(a=3.0, rim=1e-4), VelocityResidual())
    assert made.metric == PseudoHuber(c=0.03, c_power=0.5, divisor_power=0.0)
    packaged = PackagedConfig(name="mnist5k")
    metric = built(RegressionConfig(metric=LPIPSConfig(perceptual=packaged, divide_by_t=True))).metric
    assert isinstance(metric, LPIPS)
    assert metric.divide_by_t
    config = LPIPSHuberConfig(perceptual=packaged, huber=PseudoHuberConfig(c=0.001))
    metric = built(RegressionConfig(metric=config)).metric
    assert isinstance(metric, LPIPSHuber)
    assert (metric.divide_by_t, metric.huber) == (False, PseudoHuber(c=0.001))


def test_the_defaults_of_descriptions_are_those_of_the_parts() -> None:
    made = built(RegressionConfig(times=UShapedConfig(), metric=LPIPSHuberConfig(perceptual=PackagedConfig())))
    assert made.times == UShaped()
    assert isinstance(made.metric, LPIPSHuber)
    assert made.metric == LPIPSHuber(distance=made.metric.distance)


@pytest.mark.parametrize("metric", [LPIPSConfig(perceptual=PackagedConfig()), SquaredL2Config(), PseudoHuberConfig()])
def test_a_metrics_networks_are_no_part_of_what_is_trained_and_saved(metric: MetricConfig) -> None:
    objective = built(RegressionConfig(metric=metric))
    assert set(objective.state_dict()) == {"denoiser.backbone.table"}
    assert len(list(objective.parameters())) == 1


def test_gradients_reach_the_network_through_the_perceptual_distance() -> None:
    objective = built(RegressionConfig(times=UShapedConfig(), metric=LPIPSConfig(perceptual=PackagedConfig())))
    network = objective.denoiser.backbone
    shift = torch.zeros(1, 1, 8, 8, requires_grad=True)
    hook = network.register_forward_hook(lambda module, given, out: out + shift)
    x = torch.rand(16, 1, 8, 8) * 2 - 1
    objective(Batch.draw(x, None, torch.arange(16)), 0).sum().backward()
    hook.remove()
    assert shift.grad is not None
    assert (shift.grad.abs() > 0).all()


def test_what_does_not_fit_together_is_refused() -> None:
    config = Config(schedule=VEConfig(), objective=RegressionConfig(times=UShapedConfig()))
    denoiser = Denoiser(CountingNetwork(), VE(), Karras(), image_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="UShaped is 2-RF's law on"):
        build_objective(config, denoiser)
    config = Config(backbone=SMALL, schedule=VEConfig(), parameterization=KarrasConfig(conditioning="time"))
    with pytest.raises(ValueError, match="parameterization Karras with conditioning time needs t in"):
        build_denoiser(config, (1, 8, 8), 0)
    config = Config(backbone=SMALL, schedule=LinearConfig(), parameterization=KarrasConfig(conditioning="time"))
    assert build_denoiser(config, (1, 8, 8), 0).parameterization.conditioning == "time"
