"""Objectives are built as they are described, and descriptions that do not fit together are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import CountingNetwork
from teachers import make_teacher

from genflow.build import build_denoiser
from genflow.build_objective import build_objective
from genflow.config import (
    AveragedWeightsConfig,
    ByTeacherConfig,
    Config,
    ConsistencyConfig,
    ConsistencyKarrasConfig,
    ConstantConfig,
    DataConfig,
    DiTConfig,
    DoublingConfig,
    EasyLevelsConfig,
    GridLevelsConfig,
    InverseOutputConfig,
    KarrasConfig,
    L1Config,
    LinearConfig,
    LogNormalIntervalConfig,
    LPIPSConfig,
    LPIPSHuberConfig,
    MetricConfig,
    NormConfig,
    PackagedConfig,
    PseudoHuberConfig,
    RegressionConfig,
    SampleConfig,
    SquaredL2Config,
    SquareRootConfig,
    TrainConfig,
    UNetConfig,
    UniformIntervalConfig,
    UnweightedConfig,
    UShapedConfig,
    VEConfig,
    VelocityResidualConfig,
)
from genflow.denoiser import Denoiser
from genflow.nn.dit import DiT
from genflow.objectives import (
    L1,
    LPIPS,
    AveragedWeights,
    Batch,
    ByImage,
    ByTeacher,
    ByTeacherHeun,
    Consistency,
    CurrentWeights,
    Doubling,
    EasyLevels,
    GridLevels,
    InverseGap,
    InverseOutput,
    LogNormalInterval,
    LPIPSHuber,
    Norm,
    PseudoHuber,
    RawResidual,
    Regression,
    SquaredL2,
    SquareRoot,
    UniformInterval,
    Unweighted,
    UShaped,
    VelocityResidual,
)
from genflow.parameterizations import ConsistencyKarras, Karras
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


# Consistency models


GRID = GridLevelsConfig(curriculum=DoublingConfig(first=5, last=40), law=LogNormalIntervalConfig(mean=-0.8, std=1.6))


MULTISTEP = SampleConfig(sampler="multistep", steps=1)


def consistency_of(objective: ConsistencyConfig, schedule: VEConfig | None = None, steps: int = 1000) -> Consistency:
    easy = isinstance(objective.levels, EasyLevelsConfig)
    config = Config(
        backbone=SMALL,
        schedule=schedule or VEConfig(),
        parameterization=KarrasConfig() if easy else ConsistencyKarrasConfig(),
        objective=objective,
        train=TrainConfig(steps=steps),
        sample=MULTISTEP,
    )
    fresh = replace(config, objective=RegressionConfig() if easy else ConsistencyConfig())  # ECT's has a trained start
    made = build_objective(config, build_denoiser(fresh, (1, 8, 8), 3))
    assert isinstance(made, Consistency)
    return made


def test_the_parts_of_ict_are_the_defaults() -> None:
    made = consistency_of(ConsistencyConfig())
    assert made.levels == GridLevels(curriculum=Doubling(total=1000), law=LogNormalInterval())
    assert (made.metric, made.weighting, made.label_dropout) == (PseudoHuber.ict(), InverseGap(), 0.0)
    assert isinstance(made.target, CurrentWeights)
    assert isinstance(made.descent, ByImage)


def test_the_parts_of_consistency_models_are_those_described() -> None:
    """Levels lie between the schedule's ends, and so does the identity."""
    described = ConsistencyConfig(levels=GRID, label_dropout=0.2)
    made = consistency_of(described, VEConfig(sigma_min=0.01, sigma_max=40.0, rho=5.0))
    assert made.label_dropout == 0.2
    law = LogNormalInterval(mean=-0.8, std=1.6)
    curriculum = Doubling(total=1000, first=5, last=40)
    assert made.levels == GridLevels(curriculum=curriculum, law=law, low=0.01, high=40.0, rho=5.0)
    assert made.denoiser.parameterization == ConsistencyKarras(sigma_min=0.01, level_max=40.0)
    t, s = made.levels.pairs(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64), 0)
    assert (float(s[0]), float(t[1])) == (0.01, 40.0)
    levels = EasyLevelsConfig(mean=-0.8, std=1.6, q=4.0, k=6.0, b=2.0, stages=3)
    made = consistency_of(ConsistencyConfig(levels=levels, weighting=InverseOutputConfig(), metric=NormConfig()))
    assert made.levels == EasyLevels(total=1000, mean=-0.8, std=1.6, q=4.0, k=6.0, b=2.0, stages=3)
    assert (made.weighting, made.metric) == (InverseOutput(), Norm())


@pytest.mark.parametrize(
    ("curriculum", "followed"),
    [
        (SquareRootConfig(first=2, last=30), SquareRoot(total=1000, first=2, last=30)),
        (ConstantConfig(count=18), None),
        (DoublingConfig(), Doubling(total=1000)),
    ],
)
def test_an_average_slows_down_as_levels_grow_in_number(curriculum, followed) -> None:
    levels = GridLevelsConfig(curriculum=curriculum, law=UniformIntervalConfig())
    target = AveragedWeightsConfig(rate=0.95)
    made = consistency_of(
        ConsistencyConfig(levels=levels, target=target, metric=L1Config(), weighting=UnweightedConfig())
    )
    assert isinstance(made.target, AveragedWeights)
    assert (made.target.rate, made.target.curriculum) == (0.95, followed)
    assert (made.metric, made.weighting) == (L1(), Unweighted())
    assert isinstance(made.levels, GridLevels)
    assert made.levels.law == UniformInterval()


@pytest.mark.parametrize(("solver", "kind"), [("euler", ByTeacher), ("heun", ByTeacherHeun)])
def test_a_teacher_is_loaded_and_kept_out_of_training(solver: str, kind: type, tmp_path) -> None:
    teacher = make_teacher(tmp_path / "teacher")
    made = consistency_of(ConsistencyConfig(descent=ByTeacherConfig(teacher=str(tmp_path / "teacher"), solver=solver)))
    assert type(made.descent) is kind
    for name, value in made.descent.teacher.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name])
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    assert all(name.startswith("denoiser.") for name in trained)


def test_teachers_that_do_not_fit_are_refused(tmp_path) -> None:
    def asked(path: Path) -> ConsistencyConfig:
        return ConsistencyConfig(descent=ByTeacherConfig(teacher=str(path)))

    with pytest.raises(ValueError, match=r"objective.descent.teacher .*none is not a folder"):
        consistency_of(asked(tmp_path / "none"))
    make_teacher(tmp_path / "large", shape=(1, 16, 16))
    with pytest.raises(
        ValueError, match=r"makes images \(1, 16, 16\) on schedule VE; the student's are \(1, 8, 8\) on VE"
    ):
        consistency_of(asked(tmp_path / "large"))
    make_teacher(tmp_path / "classes", classes=5)
    with pytest.raises(ValueError, match="knows 5 classes and the data 3"):
        consistency_of(asked(tmp_path / "classes"))
    flow = Denoiser(
        DiT(image_size=(8, 8), in_channels=1, width=32, depth=1, heads=1), Linear(), Karras(), image_shape=(1, 8, 8)
    )
    flow.save_pretrained(tmp_path / "flow")
    with pytest.raises(ValueError, match=r"on schedule Linear; the student's are \(1, 8, 8\) on VE"):
        consistency_of(asked(tmp_path / "flow"))
    make_teacher(tmp_path / "plain", classes=0)  # knows no classes: it is asked without
    batch = Batch.draw(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.arange(4))
    assert consistency_of(asked(tmp_path / "plain"))(batch, 0).isfinite().all()


def test_a_consistency_model_is_no_teacher(tmp_path) -> None:
    make_teacher(tmp_path / "ct", sampler="multistep")
    with pytest.raises(ValueError, match=r"ct is a consistency model, which has no flow to step along: give the diff"):
        consistency_of(ConsistencyConfig(descent=ByTeacherConfig(teacher=str(tmp_path / "ct"))))


def test_a_teacher_that_cannot_be_told_of_augmentation_is_refused(tmp_path) -> None:
    make_teacher(tmp_path / "edm")
    config = Config(
        data=DataConfig(augment=0.1),
        backbone=UNetConfig(width=16, multipliers=(1,), blocks=1, attention=()),
        schedule=VEConfig(),
        parameterization=ConsistencyKarrasConfig(),
        objective=ConsistencyConfig(descent=ByTeacherConfig(teacher=str(tmp_path / "edm"))),
        sample=MULTISTEP,
    )
    with pytest.raises(ValueError, match=r"edm was trained without data.augment and cannot be told of it"):
        build_objective(config, build_denoiser(config, (1, 8, 8), 3))
