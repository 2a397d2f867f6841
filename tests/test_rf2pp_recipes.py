"""The recipes of 2-RF++: what they hold is what the paper says, and those of the ablation differ in that alone."""

import math
import re
from dataclasses import replace

import pytest
import torch

from genflow.build import build_denoiser
from genflow.build_objective import build_times
from genflow.cli.image_pairs import PAPER_CALLS
from genflow.cli.pair_options import PairsArguments
from genflow.config import Config, LPIPSConfig, LPIPSHuberConfig, RegressionConfig
from genflow.config_files import find_recipe, load_config, parse_arguments, to_flat
from genflow.nn.unet import unet_preset
from genflow.objectives import UShaped
from genflow.parameterizations import Karras
from genflow.sampling import network_calls
from genflow.schedules import Linear

ALL = [*(f"rf2pp-cifar10-{c}" for c in "abcdefg"), "rf2pp-afhq", "rf2pp-ffhq", "rf2pp-imagenet64"]


def load(name: str) -> Config:
    return load_config(find_recipe(name))


def changed(before: str, after: str) -> dict[str, tuple[object, object]]:
    """What the second recipe of the ablation has otherwise than the first; a name is none of it."""
    old, new = (to_flat(load(f"rf2pp-cifar10-{c}")) for c in (before, after))
    return {k: (old.get(k), new.get(k)) for k in sorted({*old, *new} - {"name"}) if old.get(k) != new.get(k)}


def test_the_ablation_changes_one_thing_at_a_time() -> None:
    assert set(changed("a", "b")) == {"init", "data.path", "train.batch_size", "optim.ema_halflife"}
    assert changed("b", "c") == {"objective.times.a": (0.0, 4.0)}
    assert {k: v[1] for k, v in changed("c", "d").items()} == {
        "objective.metric.type": "PseudoHuber",
        "objective.metric.c": 0.00054,
        "objective.metric.c_power": 1.0,
        "objective.metric.divisor_power": 1.0,
    }
    assert all(key.startswith("objective.metric") for key in changed("d", "e"))
    assert changed("e", "f") == {"objective.metric.divide_by_t": (False, True)}
    assert changed("f", "g") == {
        "init": ("models/edm-cifar10", "runs/rf2pp-cifar10-f/model"),
        "data.path": ("pairs/edm-cifar10", "pairs/edm-cifar10-real"),
        "train.steps": (800_000, 5000),
        "train.checkpoint_every": (50_000, 5000),
        "optim.lr": (2e-4, 1e-5),
        "optim.warmup": (5000, 0),
    }
    start = changed("f", "g")["init"][1]
    assert start == f"runs/{load('rf2pp-cifar10-f').name}/model"  # where F's run leaves its model


@pytest.mark.parametrize("name", ALL)
def test_what_all_share(name: str) -> None:
    config = load(name)
    assert config.name == name
    optim = config.optim
    assert (optim.beta1, optim.beta2, optim.eps, optim.weight_decay, optim.clip) == (0.9, 0.999, 1e-8, 0.0, 0.0)
    assert (optim.decay, optim.ema_rampup) == ("constant", 0.0)
    decay = 0.5 ** (config.train.batch_size / optim.ema_halflife)
    assert decay == pytest.approx(0.9999, abs=1e-9)
    assert optim.ema_halflife / config.train.batch_size == pytest.approx(math.log(0.5) / math.log(0.9999), rel=1e-6)
    assert (config.data.flip, config.data.augment) == (False, 0.0)
    assert config.objective.residual.type == "Velocity"
    assert network_calls(config.sample.sampler, config.sample.steps) == 2
    assert isinstance(config.objective, RegressionConfig)
    law = build_times(config.objective.times, Linear())
    assert law == UShaped(a=0.0 if name[-2:] in ("-a", "-b") else 4.0)


def test_what_imagenet_costs_in_network_calls_is_as_published() -> None:
    """5 M pairs of 79 calls, and as many again as images are trained on: 1,828.6 M."""
    train = load("rf2pp-imagenet64").train
    pairs, training = 5_000_000 * network_calls("heun", 40), train.steps * train.batch_size
    assert (pairs, training, pairs + training) == (395_000_000, 1_433_600_000, 1_828_600_000)


@pytest.mark.parametrize(
    ("name", "batch", "lr", "warmup", "steps", "preset", "changes", "shape", "classes", "parameters", "over_t"),
    [
        ("cifar10-f", 512, 2e-4, 5000, 800_000, "ncsn++", {}, (3, 32, 32), 0, 56.40e6, True),
        ("afhq", 256, 2e-4, 5000, 1_000_000, "ncsn++", {"dropout": 0.25}, (3, 64, 64), 0, 62.76e6, True),
        ("ffhq", 256, 2e-4, 5000, 1_000_000, "ncsn++", {"dropout": 0.25}, (3, 64, 64), 0, 62.76e6, False),
        ("imagenet64", 2048, 1e-4, 2500, 700_000, "adm", {}, (3, 64, 64), 1000, 295.90e6, False),
    ],
)
def test_each_is_as_published(
    name, batch, lr, warmup, steps, preset, changes, shape, classes, parameters, over_t
) -> None:
    config = load(f"rf2pp-{name}")
    assert (config.train.batch_size, config.optim.lr, config.optim.warmup) == (batch, lr, warmup)
    assert config.train.steps == steps
    network = unet_preset(preset) | changes
    if shape[1] == 64 and preset == "ncsn++":
        network["multipliers"] = (1, 2, 2, 2)
    assert {k: vars(config.backbone)[k] for k in network} == network
    assert config.objective.metric == LPIPSHuberConfig(divide_by_t=over_t)
    with torch.device("meta"):
        denoiser = build_denoiser(replace(config, init=""), shape, classes)
    assert denoiser.parameterization == Karras(level_min=1e-5, level_max=99999.0)
    # EDM's networks have a kernel for 9 augmentation labels more, and none for "no class"
    assert sum(p.numel() for p in denoiser.parameters()) == pytest.approx(parameters, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_the_expected_figures_stand_at_the_head(name: str) -> None:
    table = dict(
        zip(ALL, ("12.21", "7.14", "5.17", "5.24", "3.42", "3.38", "3.07", "4.11", "5.21", "4.31"), strict=True)
    )
    head = find_recipe(name).read_text(encoding="utf-8").split("\nname = ")[0]
    assert f"Published FID-50k: {table[name]} in 1 step" in head
    assert "arXiv 2405.20320" in head
    assert "not run by us yet" in head


def test_the_last_of_the_ablation_says_how_its_pairs_are_made() -> None:
    """Of EDM's network and the training images, in 128 calls, where the run looks for them."""
    head = find_recipe("rf2pp-cifar10-g").read_text(encoding="utf-8")
    (given,) = re.findall(r"^#   genflow pairs (.*)$", head, flags=re.MULTILINE)
    options = parse_arguments(PairsArguments, given.split(), prog="genflow pairs", about="")
    assert (options.model, options.invert) == (load("rf2pp-cifar10-f").init, "hf:uoft-cs/cifar10")
    assert options.out == load("rf2pp-cifar10-g").data.path
    assert (options.sampler, options.steps, PAPER_CALLS) == ("default", 0, 128)
    assert re.findall(r"^#   genflow train (.*)$", head, flags=re.MULTILINE) == ["rf2pp-cifar10-g"]


def test_only_the_last_three_of_the_ablation_perceive() -> None:
    metrics = {c: load(f"rf2pp-cifar10-{c}").objective.metric for c in "abcdefg"}
    perceiving = [c for c, metric in metrics.items() if isinstance(metric, LPIPSConfig | LPIPSHuberConfig)]
    assert perceiving == ["e", "f", "g"]


def test_the_tiny_recipe_starts_from_the_tiny_teacher() -> None:
    """Its network is the teacher's, dropout apart, and so is its embedding, which only stops at a lower noise level."""
    student, teacher = load("tiny-reflow"), load("tiny-edm")
    assert replace(student.backbone, dropout=0.0) == replace(teacher.backbone, dropout=0.0)
    assert replace(student.parameterization, level_max=80.0) == teacher.parameterization
    assert student.init == f"{teacher.folder}/model"
