"""The recipes of consistency models: what they hold is what the papers say, and none of it is a known mistake."""

import math
import re
from dataclasses import replace

import pytest
import torch

from genflow.build import build_denoiser
from genflow.build_objective import build_curriculum
from genflow.config import (
    AveragedWeightsConfig,
    ByImageConfig,
    ByTeacherConfig,
    Config,
    ConsistencyConfig,
    ConstantConfig,
    CurrentWeightsConfig,
    DoublingConfig,
    EasyLevelsConfig,
    GridLevelsConfig,
    InverseGapConfig,
    InverseOutputConfig,
    LogNormalIntervalConfig,
    LPIPSConfig,
    NormConfig,
    PackagedConfig,
    PseudoHuberConfig,
    SquareRootConfig,
    UniformIntervalConfig,
    UnweightedConfig,
)
from genflow.config_files import find_recipe, load_config, parse_arguments
from genflow.config_findings import check, findings
from genflow.nn.unet import unet_preset
from genflow.objectives.levels import karras_grid
from genflow.parameterizations import ConsistencyKarras, Karras

METHODS = ("ct", "cd", "ict", "ict-deep", "ect")
PUBLISHED = [f"{method}-{data}" for method in METHODS for data in ("cifar10", "imagenet64")]
TINY = ["tiny-ct", "tiny-cd", "tiny-ict", "tiny-ect"]
HUBER = PseudoHuberConfig(c=0.00054, c_power=0.5, divisor_power=0.0)
ICT = (GridLevelsConfig(curriculum=DoublingConfig(first=10, last=1280)), HUBER, InverseGapConfig())
ICT_LAW = LogNormalIntervalConfig(mean=-1.1, std=2.0)
ECT_LEVELS = EasyLevelsConfig(mean=-1.1, std=2.0, q=2.0, k=8.0, b=1.0, stages=8)
DEEP = {"ict-deep-cifar10": 8, "ict-deep-imagenet64": 6}


def load(name: str) -> Config:
    return load_config(find_recipe(name))


def head(name: str) -> str:
    return find_recipe(name).read_text(encoding="utf-8").split("\nname = ")[0]


def objective_of(name: str) -> ConsistencyConfig:
    objective = load(name).objective
    assert isinstance(objective, ConsistencyConfig)
    return objective


@pytest.mark.parametrize("name", [*PUBLISHED, *TINY])
def test_none_of_them_is_a_known_mistake(name: str) -> None:
    config = load(name)
    assert config.name == name
    check(config)
    assert findings(config) == []


@pytest.mark.parametrize(
    ("name", "lr", "batch", "steps", "decay"),
    [
        ("ct-cifar10", 4e-4, 512, 800_000, 0.9999),
        ("ct-imagenet64", 1e-4, 2048, 800_000, 0.999943),
        ("cd-cifar10", 4e-4, 512, 800_000, 0.9999),
        ("cd-imagenet64", 8e-6, 2048, 600_000, 0.999943),
        ("ict-cifar10", 1e-4, 1024, 400_000, 0.99993),
        ("ict-deep-cifar10", 1e-4, 1024, 400_000, 0.99993),
        ("ict-imagenet64", 1e-4, 4096, 800_000, 0.99997),
        ("ict-deep-imagenet64", 1e-4, 4096, 800_000, 0.99997),
        ("ect-cifar10", 1e-4, 128, 200_000, 0.9999),
        ("ect-imagenet64", 1e-4, 128, 100_000, 0.9999),
    ],
)
def test_each_is_trained_as_published(name: str, lr: float, batch: int, steps: int, decay: float) -> None:
    config = load(name)
    assert (config.optim.lr, config.train.batch_size, config.train.steps) == (lr, batch, steps)
    assert config.optim.ema_halflife == pytest.approx(batch * math.log(0.5) / math.log(decay), abs=0.5)
    optim = config.optim
    assert (optim.rule, optim.beta1, optim.beta2, optim.eps) == ("radam", 0.9, 0.999, 1e-8)
    assert (optim.warmup, optim.decay, optim.weight_decay, optim.clip) == (0, "constant", 0.0, 0.0)
    assert optim.ema_rampup == 0.0
    half_precision = name in ("ct-imagenet64", "cd-imagenet64")
    assert config.train.mixed_precision == ("fp16" if half_precision else "no")


@pytest.mark.parametrize(
    ("name", "levels", "metric", "weighting", "target"),
    [
        (
            "ct-cifar10",
            GridLevelsConfig(curriculum=SquareRootConfig(first=2, last=150), law=UniformIntervalConfig()),
            LPIPSConfig(),
            UnweightedConfig(),
            AveragedWeightsConfig(rate=0.9),
        ),
        (
            "ct-imagenet64",
            GridLevelsConfig(curriculum=SquareRootConfig(first=2, last=200), law=UniformIntervalConfig()),
            LPIPSConfig(),
            UnweightedConfig(),
            AveragedWeightsConfig(rate=0.95),
        ),
        (
            "cd-cifar10",
            GridLevelsConfig(curriculum=ConstantConfig(count=18), law=UniformIntervalConfig()),
            LPIPSConfig(),
            UnweightedConfig(),
            CurrentWeightsConfig(),
        ),
        (
            "cd-imagenet64",
            GridLevelsConfig(curriculum=ConstantConfig(count=40), law=UniformIntervalConfig()),
            LPIPSConfig(),
            UnweightedConfig(),
            AveragedWeightsConfig(rate=0.95),
        ),
        *(
            (f"{name}-{data}", *ICT, CurrentWeightsConfig())
            for name in ("ict", "ict-deep")
            for data in ("cifar10", "imagenet64")
        ),
        ("ect-cifar10", ECT_LEVELS, NormConfig(), InverseGapConfig(), CurrentWeightsConfig()),
        (
            "ect-imagenet64",
            replace(ECT_LEVELS, mean=-0.8, std=1.6, q=4.0, stages=4),
            HUBER,
            InverseOutputConfig(),
            CurrentWeightsConfig(),
        ),
    ],
)
def test_each_is_the_method_of_its_paper(name: str, levels, metric, weighting, target) -> None:
    objective = objective_of(name)
    assert (objective.levels, objective.metric) == (levels, metric)
    assert (objective.weighting, objective.target) == (weighting, target)
    assert objective.label_dropout == 0.0
    assert load(name).schedule.type == "VE"
    if name.startswith("ict"):
        assert isinstance(objective.levels, GridLevelsConfig)
        assert objective.levels.law == ICT_LAW


@pytest.mark.parametrize("data", ["cifar10", "imagenet64"])
def test_those_that_start_from_a_diffusion_model_say_which(data: str) -> None:
    teacher = {"cifar10": "models/edm-cifar10", "imagenet64": "models/edm-imagenet64"}[data]
    distilled = load(f"cd-{data}")
    assert objective_of(f"cd-{data}").descent == ByTeacherConfig(teacher=teacher, solver="heun")
    assert distilled.init == teacher
    assert load(f"ect-{data}").init == {"cifar10": "models/edm-cifar10-vp"}.get(data, teacher)
    for name in ("ct", "ict", "ict-deep"):
        assert load(f"{name}-{data}").init == ""
    for name in ("ct", "ict", "ict-deep", "ect"):
        assert objective_of(f"{name}-{data}").descent == ByImageConfig()
    for name in ("cd", "ect"):
        assert re.search(r"models/edm-\S+ is EDM's published network edm-\S+, imported", head(f"{name}-{data}"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_network_is_that_of_its_paper(name: str) -> None:
    config = load(name)
    method, _, data = name.rpartition("-")
    preset = unet_preset({"cifar10": "ddpm++" if method == "ect" else "ncsn++", "imagenet64": "adm"}[data])
    dropout = {"ct": 0.0, "cd": 0.0, "ect": 0.2}.get(method, 0.3 if data == "cifar10" else 0.2)
    changes = {"dropout": dropout, "blocks": DEEP.get(name, preset["blocks"])}
    if method.startswith("ict") and data == "cifar10":
        changes["fourier_scale"] = 0.02
    elif method.startswith("ict"):
        changes["adaptive_norm"] = False
    expected = preset | changes
    assert {key: vars(config.backbone)[key] for key in expected} == expected
    shape, classes = {"cifar10": ((3, 32, 32), 0), "imagenet64": ((3, 64, 64), 1000)}[data]
    assert config.data.classes == bool(classes)
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("genflow.build.load_named", lambda path, option: None)  # there is no model to start from here
        patch.setattr("genflow.build.misreading", lambda source, denoiser: "")
        patch.setattr("genflow.build.is_consistency", lambda source: False)
        denoiser = build_denoiser(config, shape, classes)
    count = sum(p.numel() for p in denoiser.parameters()) / 1e6
    # the paper's deep network for CIFAR-10 is said to have over 100 M, as that recipe's head tells
    own = {"ect-cifar10": 55.7, "ict-deep-cifar10": 97.6, "ict-imagenet64": 283.2, "ict-deep-imagenet64": 473.8}
    assert count == pytest.approx(own.get(name, 56.4 if data == "cifar10" else 295.9), abs=0.1)
    assert denoiser.parameterization == (Karras() if method == "ect" else ConsistencyKarras())


def test_deep_is_twice_as_deep_and_nothing_else() -> None:
    for data in ("cifar10", "imagenet64"):
        plain, deep = load(f"ict-{data}"), load(f"ict-deep-{data}")
        backbone = replace(deep.backbone, blocks=vars(plain.backbone)["blocks"])
        assert vars(deep.backbone)["blocks"] == 2 * vars(plain.backbone)["blocks"]
        assert replace(deep, name=plain.name, backbone=backbone) == plain


def test_images_are_mirrored_but_for_ect() -> None:
    for name in PUBLISHED:
        config = load(name)
        assert config.data.flip == (not name.startswith("ect"))
        assert config.data.augment == 0.0
        path = "hf:uoft-cs/cifar10" if name.endswith("cifar10") else "data/imagenet-64x64.zip"
        assert config.data.path == path


def test_curricula_run_as_the_papers_tell() -> None:
    """The numbers of levels at some steps, as the papers' formulas give them."""
    levels = objective_of("ct-cifar10").levels
    assert isinstance(levels, GridLevelsConfig)
    growth = build_curriculum(levels.curriculum, load("ct-cifar10").train.steps)
    counted = [growth.points(k) for k in (0, 1, 8000, 80_000, 200_000, 400_000, 600_000, 720_000, 799_999)]
    assert counted == [2, 3, 16, 48, 76, 107, 131, 144, 151]
    levels = objective_of("ict-cifar10").levels
    assert isinstance(levels, GridLevelsConfig)
    growth = build_curriculum(levels.curriculum, load("ict-cifar10").train.steps)
    assert [growth.points(k * 50_000) for k in range(8)] == [11, 21, 41, 81, 161, 321, 641, 1281]


@pytest.mark.parametrize("name", PUBLISHED)
def test_they_are_sampled_in_one_step_or_two(name: str) -> None:
    """Times between the two are the published points of the grids, where a paper names one."""
    sample = load(name).sample
    assert (sample.sampler, sample.steps) == ("multistep", 1)
    match name.rpartition("-"):
        case "ct" | "cd", _, "cifar10":
            assert sample.middle == ()
            assert "search-times" in head(name)
            return
        case "ct", _, _:
            expected = karras_grid(201).flip(0)[106]
        case "cd", _, _:
            expected = karras_grid(40).flip(0)[22]
        case _, _, "cifar10":
            expected = karras_grid(1281)[492]
        case _:
            expected = karras_grid(1281)[571]
    assert sample.middle == (pytest.approx(float(expected), abs=5e-4),)


@pytest.mark.parametrize(
    ("name", "paper", "figures"),
    [
        ("ct-cifar10", "2303.01469", "8.70 in 1 step, 5.83 in 2"),
        ("ct-imagenet64", "2303.01469", "13.0 in 1 step, 11.1 in 2"),
        ("cd-cifar10", "2303.01469", "3.55 in 1 step, 2.93 in 2"),
        ("cd-imagenet64", "2303.01469", "6.20 in 1 step, 4.70 in 2, 4.32 in 3"),
        ("ict-cifar10", "2310.14189", "2.83 in 1 step, 2.46 in 2"),
        ("ict-imagenet64", "2310.14189", "4.02 in 1 step, 3.20 in 2"),
        ("ict-deep-cifar10", "2310.14189", "2.51 in 1 step, 2.24 in 2"),
        ("ict-deep-imagenet64", "2310.14189", "3.25 in 1 step, 2.77 in 2"),
        ("ect-cifar10", "2406.14548", "3.86 in 1 step, 2.15 in 2"),
        ("ect-imagenet64", "2406.14548", "5.51 in 1 step, 3.18 in 2"),
    ],
)
def test_the_expected_figures_stand_at_the_head(name: str, paper: str, figures: str) -> None:
    said = head(name)
    assert f"Published FID-50k: {figures}" in said
    assert f"arXiv {paper}" in said
    assert "not run by us yet" in said
    config = load(name)
    images = config.train.steps * config.train.batch_size
    (number, unit) = re.findall(r"Cost: ([\d.]+) (M|billion) images", said)[0]
    assert float(number) == pytest.approx(images / {"M": 1e6, "billion": 1e9}[unit], rel=0.03)


def test_the_short_run_that_a_recipe_tells_of_is_the_papers() -> None:
    """One stage with a gap of t / 256, 8,000 steps, an average of 0.9993 a step."""
    given = re.findall(r"--\S+ [\d.]+", head("ect-cifar10"))
    options = [word for option in given for word in option.split()]
    config = parse_arguments(Config, options, prog="", about="", default=load("ect-cifar10"))
    assert config.train.steps == 8000
    assert isinstance(config.objective, ConsistencyConfig)
    assert config.objective.levels == replace(ECT_LEVELS, q=256.0, stages=1)
    assert 0.5 ** (128 / config.optim.ema_halflife) == pytest.approx(0.9993, abs=1e-7)


def test_what_nobody_has_confirmed_is_marked_on_its_line() -> None:
    def marked(name: str) -> set[str]:
        lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
        return {line.split(" = ")[0] for line in lines if "unconfirmed" in line and not line.startswith("#")}

    ict = {"flip", "dropout", "adaptive_norm", "ema_halflife", "steps", "batch_size"}
    assert marked("ict-imagenet64") == ict
    assert marked("ict-deep-imagenet64") == ict | {"blocks"}
    assert marked("ict-cifar10") == marked("ict-deep-cifar10") == {"flip"}
    assert marked("ct-cifar10") == marked("cd-cifar10") == marked("ect-cifar10") == set()
    assert {"flip", "dropout", "lr", "ema_halflife", "batch_size", "middle"} == marked("ect-imagenet64")


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_ones_share_the_tiny_teachers_network(name: str) -> None:
    student, teacher = load(name), load("tiny-edm")
    assert replace(student.backbone, dropout=0.1) == teacher.backbone
    objective = objective_of(name)
    from_teacher = name in ("tiny-cd", "tiny-ect")
    assert student.init == (f"{teacher.folder}/model" if from_teacher else "")
    if name == "tiny-cd":
        assert isinstance(objective.descent, ByTeacherConfig)
        assert objective.descent.teacher == student.init
    if name in ("tiny-ct", "tiny-cd"):
        assert objective.metric == LPIPSConfig(perceptual=PackagedConfig(name="digits"))
    assert (student.sample.sampler, student.sample.steps, student.sample.middle) == ("multistep", 1, (0.821,))
