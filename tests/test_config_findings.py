"""What is known to keep consistency models from working is said, or refused, before anything is built."""

import math
from dataclasses import replace

import pytest
import torch

from genflow.config import (
    AveragedWeightsConfig,
    ByTeacherConfig,
    Config,
    ConsistencyConfig,
    ConsistencyKarrasConfig,
    ConstantConfig,
    CosineConfig,
    DiTConfig,
    DoublingConfig,
    EasyLevelsConfig,
    GridLevelsConfig,
    KarrasConfig,
    KINDConfig,
    L1Config,
    LinearConfig,
    LogNormalIntervalConfig,
    LPIPSConfig,
    NormConfig,
    OptimConfig,
    PredictCleanConfig,
    PredictNoiseConfig,
    PseudoHuberConfig,
    RegressionConfig,
    SampleConfig,
    SquareRootConfig,
    TrainConfig,
    TransferConfig,
    UNetConfig,
    UniformIntervalConfig,
    UnweightedConfig,
    VEConfig,
    VGGConfig,
)
from genflow.config_files import find_recipe, load_config, recipes, to_toml
from genflow.config_findings import LARGEST_FOURIER_SCALE, check, findings
from genflow.nn.embeddings import TimeInput, ddpm_embedding

NCSN = UNetConfig(fourier_scale=16.0, resample_filter=(1, 3, 3, 1), residual_encoder=True, attention=(16,), dropout=0.0)
ICT = Config(
    backbone=replace(NCSN, fourier_scale=0.02, dropout=0.3),
    parameterization=ConsistencyKarrasConfig(),
    objective=ConsistencyConfig(),
    optim=OptimConfig(rule="radam", lr=1e-4, ema_halflife=9902 * 1024),
    train=TrainConfig(steps=400_000, batch_size=1024),
    sample=SampleConfig(sampler="multistep", steps=1, middle=(0.821,)),
)
ADM = replace(
    ICT,
    backbone=UNetConfig(width=192, multipliers=(1, 2, 3, 4), blocks=3, dropout=0.2),
    train=TrainConfig(steps=800_000, batch_size=4096),
)
CT = replace(
    ICT,
    backbone=NCSN,
    objective=ConsistencyConfig(
        levels=GridLevelsConfig(curriculum=SquareRootConfig(), law=UniformIntervalConfig()),
        metric=LPIPSConfig(perceptual=VGGConfig()),
        weighting=UnweightedConfig(),
        target=AveragedWeightsConfig(rate=0.9),
    ),
    optim=OptimConfig(rule="radam", lr=4e-4, ema_halflife=6931 * 512),
    train=TrainConfig(steps=800_000, batch_size=512),
)
CD = replace(
    CT,
    init="edm",
    objective=replace(
        CT.objective,
        levels=GridLevelsConfig(curriculum=ConstantConfig(count=18), law=UniformIntervalConfig()),
        target=AveragedWeightsConfig(rate=0.95),
        descent=ByTeacherConfig(teacher="edm"),
    ),
)
ECT = replace(
    ICT,
    init="edm",
    backbone=UNetConfig(dropout=0.2),
    parameterization=KarrasConfig(),
    objective=ConsistencyConfig(levels=EasyLevelsConfig(), metric=NormConfig()),
    train=TrainConfig(steps=200_000, batch_size=128),
)
PUBLISHED = {"ict": ICT, "adm": ADM, "ct": CT, "ct-l1": replace(CT, objective=replace(CT.objective, metric=L1Config()))}
PUBLISHED |= {"cd": CD, "ect": ECT}
PUBLISHED["cd-current"] = replace(CD, objective=replace(CD.objective, target=ConsistencyConfig().target))
PUBLISHED["ect-64"] = replace(ECT, objective=replace(ECT.objective, metric=ConsistencyConfig().metric))


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_said_of_published_settings(name: str) -> None:
    check(PUBLISHED[name])
    assert findings(PUBLISHED[name]) == []


@pytest.mark.parametrize("name", recipes())
def test_nothing_is_said_of_recipes(name: str) -> None:
    config = load_config(find_recipe(name))
    check(config)
    assert findings(config) == []


def with_law(mean: float) -> Config:
    return with_objective(levels=GridLevelsConfig(law=LogNormalIntervalConfig(mean=mean)))


def with_objective(config: Config = ICT, **parts) -> Config:
    return replace(config, objective=replace(config.objective, **parts))


def with_optim(**given) -> Config:
    return replace(ICT, optim=replace(ICT.optim, **given))


def with_train(**given) -> Config:
    return replace(ICT, train=replace(ICT.train, **given))


MISTAKES = {
    "sign of the mean: noise levels are log-normal about e.1.1,": with_law(1.1),
    "sign of the mean: noise levels are log-normal about e.0.8,": with_objective(
        ECT, levels=EasyLevelsConfig(mean=0.8)
    ),
    "mean of the law: noise levels are log-normal about e.-50,": with_law(-50),
    "mean of the law: noise levels are log-normal about e.-8,": with_objective(ECT, levels=EasyLevelsConfig(mean=-8)),
    "wrong network: 6 resolutions": replace(ICT, backbone=replace(ICT.backbone, multipliers=(1, 1, 2, 2, 4, 4))),
    "wrong network: 6 resolutions,": replace(CT, backbone=replace(CT.backbone, multipliers=(1, 1, 2, 2, 4, 4))),
    "wrong network: no attention": replace(ICT, backbone=replace(ICT.backbone, attention=())),
    "c of the wrong dimension: ": with_objective(metric=PseudoHuberConfig()),
    "c of the wrong dimension:": with_objective(metric=PseudoHuberConfig(c_power=0.5, divisor_power=1.0)),
    "c counted twice: objective.metric.c = 0.03": with_objective(
        metric=PseudoHuberConfig(c=0.03, c_power=0.5, divisor_power=0.0)
    ),
    "an average of weights as teacher: ": with_objective(target=AveragedWeightsConfig()),
    "an average of weights as teacher:": with_objective(ECT, target=AveragedWeightsConfig()),
    "Fourier scale 16: ": replace(ICT, backbone=replace(ICT.backbone, fourier_scale=16.0)),
    "adaptive norm: scale and shift by the time": replace(ICT, backbone=replace(ICT.backbone, adaptive_norm=True)),
    "bf16: neighbouring noise levels differ by less than": with_train(mixed_precision="bf16"),
    "fp16: neighbouring noise levels differ by less than": with_train(mixed_precision="fp16"),
    "batch of 64: published runs have": with_train(batch_size=64),
    "optimiser: .* here rule = adam$": with_optim(rule="adam"),
    "optimiser: .* here weight_decay = 1e-06$": with_optim(weight_decay=1e-6),
    "optimiser: .* here decay = cosine$": with_optim(decay="cosine"),
    "optimiser: .* here beta1 = 0.95$": with_optim(beta1=0.95),
    "optimiser: .* here beta2 = 0.995$": with_optim(beta2=0.995),
    "optimiser: .* here warmup = 500$": with_optim(warmup=500),
    "optimiser: .* here clip = 1$": with_optim(clip=1.0),
    "optimiser: .* here rule = adam, weight_decay = 0.01, decay = cosine$": with_optim(
        rule="adam", weight_decay=0.01, decay="cosine"
    ),
    "no average of weights: ": with_optim(ema_halflife=0),
    "no dropout: iCT has 0.3 on CIFAR-10": replace(ICT, backbone=replace(ICT.backbone, dropout=0.0)),
    "deviation of the law: ln sigma spreads by 0.001, so that hardly any level but those": with_objective(
        levels=GridLevelsConfig(law=LogNormalIntervalConfig(std=0.001))
    ),
    "deviation of the law: ln sigma spreads by 20, so that every level": with_objective(
        ECT, levels=EasyLevelsConfig(std=20.0)
    ),
    "curriculum stuck: the grid has 11 points throughout": with_objective(
        levels=GridLevelsConfig(curriculum=ConstantConfig(count=11))
    ),
    "curriculum stuck: the grid has 2 points throughout": with_objective(
        CT, levels=GridLevelsConfig(curriculum=SquareRootConfig(last=2), law=UniformIntervalConfig())
    ),
    "every pair of levels alike: ": with_objective(weighting=UnweightedConfig()),
    "c counted twice: objective.metric.c = 0.009": with_objective(
        metric=PseudoHuberConfig(c=0.009, c_power=0.5, divisor_power=0.0)
    ),
    "CD from nothing: published students start from their teacher's weights: --init edm": replace(CD, init=""),
    "an average of weights as teacher": with_objective(
        levels=GridLevelsConfig(curriculum=SquareRootConfig()), target=AveragedWeightsConfig()
    ),
    "Fourier scale 0.002: the embedding hardly differs": replace(
        ICT, backbone=replace(ICT.backbone, fourier_scale=0.002)
    ),
    "no dropout: iCT has 0.3": replace(ICT, backbone=DiTConfig()),
}


def test_six_resolutions_are_right_for_large_images() -> None:
    six = replace(CT, backbone=replace(CT.backbone, multipliers=(1, 1, 2, 2, 4, 4)))
    assert findings(replace(six, data=replace(six.data, size=256))) == []


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_named_alone_and_in_one_line(said: str) -> None:
    config = MISTAKES[said]
    check(config)
    (finding,) = findings(config)
    assert "\n" not in finding
    with pytest.raises(ValueError, match=said):
        raise ValueError(finding)


def test_a_curriculum_that_is_stuck_hides_no_other_mistake() -> None:
    """Each is found by what it is itself, not by the curriculum beside it."""
    levels = GridLevelsConfig(curriculum=ConstantConfig(count=11))
    wrong = replace(ICT, backbone=replace(ICT.backbone, fourier_scale=16.0, dropout=0.0, adaptive_norm=True))
    wrong = with_objective(wrong, levels=levels, target=AveragedWeightsConfig(), weighting=UnweightedConfig())
    kinds = ("curriculum stuck", "an average", "no dropout", "Fourier scale", "every pair", "adaptive norm")
    assert {kind: sum(said.startswith(kind) for said in findings(wrong)) for kind in kinds} == dict.fromkeys(kinds, 1)


def test_only_consistency_models_are_looked_at() -> None:
    config = Config(optim=OptimConfig(ema_halflife=0), train=TrainConfig(batch_size=1, mixed_precision="bf16"))
    assert findings(config) == []


REFUSED = {
    "curriculum stuck: objective.levels.curriculum doubles from 10 to at most 11 intervals, so it never does": (
        with_objective(levels=GridLevelsConfig(curriculum=DoublingConfig(last=11)))
    ),
    "objective Consistency goes with schedule VE, not Linear": replace(
        ICT, schedule=LinearConfig(), parameterization=KarrasConfig()
    ),
    "on a grid needs parameterization ConsistencyKarras: with Karras .* nothing anchors": replace(
        ICT, parameterization=KarrasConfig()
    ),
    r"objective.levels Easy \(ECT\) starts from a trained diffusion model .* name it by --init": replace(ECT, init=""),
    "Easy .ECT. goes down to noise level 0 and needs parameterization Karras: ConsistencyKarras stops": replace(
        ECT, parameterization=ConsistencyKarrasConfig()
    ),
    "sample.sampler is heun, which follows a flow, and a consistency model has none": replace(
        ICT, sample=SampleConfig()
    ),
    "sample.middle ends at 0.002, and at 0.002 and below .* gives the image back": replace(
        ICT, sample=replace(ICT.sample, middle=(0.821, 0.002))
    ),
    "ConsistencyKarras is made for the noise levels of schedule VE: use that": replace(ICT, schedule=CosineConfig()),
    "ConsistencyKarras gives images back untouched at the lowest noise level": replace(
        ICT, objective=RegressionConfig()
    ),
    "PredictNoise leaves the inputs of schedule VE, up to 80 times too large, unscaled: use Karras": replace(
        ICT, parameterization=PredictNoiseConfig()
    ),
    "PredictClean leaves the inputs of schedule VE": replace(ICT, parameterization=PredictCleanConfig()),
    "Karras with conditioning time needs t in": replace(
        ECT, schedule=VEConfig(), parameterization=KarrasConfig(conditioning="time")
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_work_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        check(REFUSED[said])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_survive_being_written_down(name: str, tmp_path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(PUBLISHED[name]), encoding="utf-8")
    assert load_config(path) == PUBLISHED[name]


def turn(scale: float) -> float:
    """How far the features of a noise level turn, in radians per unit of its logarithm, root mean square."""
    module = TimeInput(4096, ddpm_embedding, scale, 0)
    c = torch.log(torch.tensor([0.3, 0.3 * math.exp(1e-4)])) / 4
    first, second = module(c, None).double()
    return float((second - first).norm() / (len(first) / 2) ** 0.5 / 1e-4)


def test_what_the_bound_on_fourier_scales_tells_apart() -> None:
    """iCT's 0.02 and the positional embedding are calm; 16 turns by 25 radians."""
    assert turn(16.0) == pytest.approx(25.1, rel=0.05)
    assert turn(0.02) == pytest.approx(0.0314, rel=0.1)
    assert turn(0.0) == pytest.approx(0.06, rel=0.1)
    assert turn(LARGEST_FOURIER_SCALE) == pytest.approx(25.1 / 16, rel=0.05)


def test_decay_of_absent_tailors_is_told_of() -> None:
    decay = replace(Config(), optim=OptimConfig(weight_decay=0.01))
    for surgery in (KINDConfig(), TransferConfig()):
        (said,) = findings(replace(decay, surgery=surgery))
        assert said.startswith("weight decay 0.01 shrinks the tailors of classes that are absent")
        assert not findings(replace(decay, surgery=replace(surgery, lazy_tailors=True)))
        assert not findings(replace(Config(), surgery=surgery))
    assert not findings(decay)
