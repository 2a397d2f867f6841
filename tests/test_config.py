import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genflow.build import build_denoiser, build_objective
from genflow.config import (
    Config,
    ConvertedConfig,
    CosineConfig,
    DataConfig,
    DiscreteVPConfig,
    DiTConfig,
    KarrasConfig,
    KINDConfig,
    LinearConfig,
    LogNormalConfig,
    LPIPSConfig,
    LPIPSHuberConfig,
    OptimConfig,
    PackagedConfig,
    PredictVConfig,
    PseudoHuberConfig,
    RegressionConfig,
    TrainConfig,
    TransferConfig,
    UNetConfig,
    UShapedConfig,
    VelocityResidualConfig,
    VGGConfig,
)
from genflow.config_files import _one_line, find_recipe, load_config, override, recipes, to_flat, to_toml
from genflow.denoiser import Denoiser
from genflow.parameterizations import Karras
from genflow.schedules import VE

RECIPES = recipes()
REGRESSION = '[objective]\ntype = "Regression"\n'


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "given.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def change(*arguments: str, config: Config | None = None) -> Config:
    return override(config or Config(), arguments, prog="test", about="")


def complaint(action, *arguments) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the caller looks at the message)
        action(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


ALL_KINDS = Config(
    name="ünïcode-1.0",
    init='a "quoted" path and a \\',
    compile=True,
    data=DataConfig(path="C:\\images", size=32, classes=False, flip=True),
    backbone=DiTConfig(dropout=0.25),
    schedule=CosineConfig(),
    parameterization=KarrasConfig(sigma_data=1e-7),
    objective=RegressionConfig(times=LogNormalConfig(mean=-0.4, std=1e10), label_dropout=0.0),
    optim=OptimConfig(lr=0.1 + 0.2, decay="cosine"),
    train=TrainConfig(tracker="tensorboard"),
)


RFPP = Config(
    schedule=LinearConfig(),
    parameterization=KarrasConfig(level_max=99999.0, conditioning="time"),
    objective=RegressionConfig(
        times=UShapedConfig(a=0.0),
        residual=VelocityResidualConfig(),
        metric=LPIPSHuberConfig(perceptual=PackagedConfig(name="mnist5k"), huber=PseudoHuberConfig(c_power=0.5)),
    ),
)
CONVERTED = Config(
    schedule=LinearConfig(),
    parameterization=ConvertedConfig(schedule=DiscreteVPConfig(count=37), row=PredictVConfig()),
)
SURGERY = Config(surgery=KINDConfig(class_to_tailor=(0, -1, 0), linears=r"(.*\.)?q", order="interleaved"))
TRANSFER = Config(data=DataConfig(keep=(1, 2)), init="a", surgery=TransferConfig(trains="all", lazy_tailors=True))
LPIPS = Config(objective=RegressionConfig(metric=LPIPSConfig(perceptual=VGGConfig(weights="a.pth"), divide_by_t=True)))


@pytest.mark.parametrize(
    "config",
    [Config(), ALL_KINDS, Config(backbone=UNetConfig(attention=())), RFPP, LPIPS, CONVERTED, SURGERY, TRANSFER],
    ids=range(8),
)
def test_a_written_configuration_reads_back_unchanged(config, tmp_path) -> None:
    assert read(tmp_path, to_toml(config)) == config
    assert change(config=config) == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_being_written_and_builds_a_model(name: str, tmp_path, monkeypatch) -> None:
    config = load_config(find_recipe(name))
    assert config.name == name  # so that a run is found under the name of its recipe
    assert read(tmp_path, to_toml(config)) == config
    small = config.data.path in ("digits", "mnist5k", "shapes")
    size = {"digits": 8, "mnist5k": 28}.get(config.data.path, config.data.size or 32)
    shape = (1, size, size)  # there are no models to start from, and teachers are diffusion models
    edm = Denoiser(torch.nn.Identity(), VE(), Karras(), image_shape=shape, num_classes=10)
    goes_on = isinstance(config.surgery, TransferConfig)
    start = build_denoiser(load_config(find_recipe("tiny-kind")), shape, 10) if goes_on else edm
    with torch.device("cpu" if small else "meta"):  # networks without weights, where they have many
        monkeypatch.setattr("genflow.build.load_named", lambda path, option: start)
        monkeypatch.setattr("genflow.build_surgery.describe_named", lambda path, option: start.config["network"])
        monkeypatch.setattr("genflow.build_objective.load_named", lambda path, option: copy.deepcopy(edm))
        monkeypatch.setattr("genflow.build_surgery.load_weights", lambda denoiser, source: None)
        monkeypatch.setattr("genflow.build.misreading", lambda source, denoiser: "")
        denoiser = build_denoiser(config, shape, 10)
    if "VGG" not in to_toml(config):  # whose weights are not there
        assert build_objective(config, denoiser).denoiser is denoiser


def test_recipes_are_found_by_name_and_by_path(tmp_path) -> None:
    assert {"tiny-edm", "tiny-ddpm", "tiny-rf", "tiny-dit", "tiny-reflow", "demo"} <= set(RECIPES)
    (tmp_path / "mine.toml").write_text("seed = 3\n")
    assert load_config(find_recipe(str(tmp_path / "mine.toml"))) == Config(seed=3)
    assert complaint(find_recipe, "tiny-edn").endswith("did you mean tiny-edm?")
    said = complaint(find_recipe, "zzz")
    assert said.endswith("published ones, which genflow train --help lists")
    assert all(name in said for name in RECIPES if name.startswith(("demo", "tiny")))


REGRESSION = '[objective]\ntype = "Regression"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed = 1", "unknown key sed; did you mean seed?"),
        ("[optim]\nlearning = 1", "unknown key optim.learning; allowed are rule, lr, warmup,"),
        ('[backbone]\ntype = "UNet"\nwidht = 3', "unknown key backbone.widht; did you mean width?"),
        (
            REGRESSION + '[objective.times]\ntype = "LogNormal"\nmaen = 0.0',
            "unknown key objective.times.maen; did you mean mean?",
        ),
        ('[backbone]\ntype = "UNet"\npatch_size = 2', "unknown key backbone.patch_size; allowed are type, width,"),
        ('[backbone]\ntype = "DiT"\nmultipliers = [1]', "unknown key backbone.multipliers"),
        ('[schedule]\ntype = "Linear"\nsigma_max = 80.0', "unknown key schedule.sigma_max; allowed are type"),
        ('[schedule]\ntype = "VX"', "schedule.type is 'VX', allowed are VE, VP, DiscreteVP, Cosine, Linear"),
        (
            REGRESSION + '[objective.times]\ntype = "Normal"',
            "objective.times.type is 'Normal', allowed are Uniform, LogNormal",
        ),
        (
            REGRESSION + '[objective.metric]\ntype = "L2"',
            "objective.metric.type is 'L2', allowed are SquaredL2, L1, Norm, PseudoHuber, LPIPS",
        ),
        (
            REGRESSION
            + '[objective.metric]\ntype = "LPIPSHuber"\n[objective.metric.perceptual]\ntype = "VGG"\nweight = "x"',
            "unknown key objective.metric.perceptual.weight; did you mean weights?",
        ),
        (
            REGRESSION + '[objective.metric]\ntype = "PseudoHuber"\nc = 0.0',
            "objective.metric.c = 0.0: input should be greater",
        ),
        ('[parameterization]\ntype = "Karras"\nconditioning = "t"', "input should be 'level' or 'time'"),
        (
            '[parameterization]\ntype = "Converted"\n[parameterization.schedule]\ntype = "VE"',
            "parameterization.schedule.type is 'VE', allowed are VP, DiscreteVP, Cosine",
        ),
        ('[objective.times]\ntype = "Uniform"', "objective.type is missing, allowed are Regression, Consistency"),
        ("[backbone]\nwidth = 3", "backbone.type is missing, allowed are UNet, DiT"),
        ("backbone = 3", "backbone = 3: input should be an object"),
        ('seed = "1"', 'seed = "1": input should be a valid integer'),
        ("seed = 1.0", "seed = 1.0: input should be a valid integer"),
        ("compile = 1", "compile = 1: input should be a valid boolean"),
        ("[backbone]\ntype = 'UNet'\nmultipliers = [1, 'x']", 'backbone.multipliers.1 = "x"'),
        ("[optim]\nlr = 0.0", "optim.lr = 0.0: input should be greater than 0"),
        ("[optim]\nlr = nan", "optim.lr = NaN: input should be a finite number"),
        ("[optim]\nema_halflife = inf", "optim.ema_halflife = Infinity: input should be a finite number"),
        ("[train]\nsteps = -1", "train.steps = -1: input should be greater than 0"),
        ("[optim]\ndecay = 'linear'", "optim.decay = \"linear\": input should be 'constant' or 'cosine'"),
        ("seed = 2020-01-01", "it holds a date or a time, which no key takes"),
        ("seed = ", "is not valid TOML: Invalid value"),
        ("just text", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_says_what_is_right(text: str, said: str, tmp_path) -> None:
    message = complaint(read, tmp_path, text)
    assert said in message
    assert "given.toml" in message


def test_a_file_that_is_not_text_or_cannot_be_read_is_refused(tmp_path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "is not valid TOML" in complaint(load_config, tmp_path / "binary.toml")
    assert "cannot read" in complaint(load_config, tmp_path)


def test_a_whole_number_is_a_number() -> None:
    assert change("--optim.lr", "1").optim.lr == 1.0


def test_options_override_any_field_and_nothing_else() -> None:
    config = load_config(find_recipe("tiny-edm"))
    arguments = ["--optim.lr", "3e-4", "--backbone.multipliers", "1", "2", "4", "--backbone.attention", "4", "2"]
    arguments += ["--compile", "--data.no-classes", "--data.flip", "--train.mixed-precision", "bf16", "--name", "mine"]
    changed = change(*arguments, "--objective.times.mean", "-0.4", config=config)
    assert changed.optim.lr == 3e-4
    assert changed.backbone.multipliers == (1, 2, 4)
    assert changed.backbone.attention == (4, 2)
    assert (changed.compile, changed.data.classes, changed.data.flip) == (True, False, True)
    assert (changed.train.mixed_precision, changed.name) == ("bf16", "mine")
    assert changed.objective.times == LogNormalConfig(mean=-0.4)
    before, after = to_flat(config), to_flat(changed)
    assert {k for k in before if before[k] != after[k]} == {
        *("optim.lr", "backbone.multipliers", "backbone.attention", "compile", "data.classes", "data.flip"),
        *("train.mixed_precision", "name", "objective.times.mean"),
    }


def test_options_reach_into_the_metric() -> None:
    arguments = ["--objective.metric.perceptual.name", "digits", "--objective.metric.divide-by-t"]
    changed = change(*arguments, "--objective.metric.huber.c", "0.001", "--objective.times.a", "2", config=RFPP)
    before, after = to_flat(RFPP), to_flat(changed)
    assert {k: v for k, v in after.items() if before[k] != v} == {
        "objective.metric.perceptual.name": "digits",
        "objective.metric.divide_by_t": True,
        "objective.metric.huber.c": 0.001,
        "objective.times.a": 2.0,
    }


def test_options_reach_into_the_schedule_of_converted_weights() -> None:
    changed = change("--parameterization.schedule.beta-end", "0.03", config=CONVERTED)
    assert changed.parameterization == ConvertedConfig(
        schedule=DiscreteVPConfig(count=37, beta_end=0.03), row=PredictVConfig()
    )


def test_a_flag_can_be_taken_back() -> None:
    assert change("--no-compile", config=Config(compile=True)).compile is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optim.lrr", "1"], "did you mean --optim.lr?"),
        (["--train.step", "1"], "did you mean --train.steps?"),
        (["--lr", "1"], "did you mean --optim.lr?"),
        (["--optim.lr", "fast"], "--optim.lr: could not convert string to float: 'fast'"),
        (["--optim.lr", "-1"], "the command line: optim.lr = -1.0: input should be greater than 0"),
        (["--optim.lr", "nan"], "optim.lr = NaN: input should be a finite number"),
        (["--backbone.multipliers", "1", "x"], "Could not find valid parse for arguments: ['1', 'x']"),
        (["--backbone.type", "DiT"], "invalid choice 'DiT' for argument '--backbone.type'"),
        (["--schedule.type", "Linear"], "a type comes with options of its own, and is chosen in a recipe's TOML file"),
        (["--backbone.patch-size", "2"], "--backbone.patch-size"),
        (["--data.path"], "--data.path"),
        (["--" + "very-" * 30 + "long", "1"], "long, 1 (see --help)"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(arguments: list[str], said: str) -> None:
    message = complaint(change, *arguments)
    assert said in message
    assert "---" not in message


@pytest.mark.parametrize(
    "box",
    [
        "╭─ Value error ─────╮\n│ Error parsing     │\n│ --optim.lrr       │\n│ ───────────────── │\n"
        "│ Perhaps you meant:│\n│   --optim.lr FLOAT│\n╰───────────────────╯\n",
        " Value error \n ----------- \n  Error parsing \n  --optim.lrr \n  ---------- \n  Perhaps you meant: \n"
        "    --optim.lr FLOAT\n",
    ],
    ids=["unicode", "ascii"],
)
def test_both_kinds_of_box_that_options_are_refused_with_become_one_line(box: str) -> None:
    assert _one_line(box) == "Error parsing --optim.lrr; did you mean --optim.lr? (see --help)"


def test_help_lists_every_field_with_its_meaning(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        change("--help")
    assert not stop.value.code
    shown = capsys.readouterr().out
    for key in to_flat(Config()):
        assert "--" + key.replace("_", "-") in shown
    assert "Learning rate after warm-up." in shown


def test_reading_a_configuration_takes_no_torch() -> None:
    code = "import sys, genflow.config_files; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_trackers_get_flat_numbers_and_strings() -> None:
    flat = to_flat(load_config(find_recipe("tiny-edm")))
    assert flat["optim.lr"] == 2e-3
    assert flat["backbone.multipliers"] == "[1, 2]"
    assert all(isinstance(v, (int, float, str, bool)) for v in flat.values())
