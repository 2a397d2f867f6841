"""``genflow train``, which the scripts in train/ share."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from genflow.config import Config, ConsistencyConfig, ConstantConfig, GridLevelsConfig
from genflow.config_files import find_recipe, load_config, override, recipes
from genflow.config_findings import check, findings
from genflow.processes import end_with_launcher


def train(arguments: Sequence[str], *, prog: str = "genflow train") -> Path:
    """Train what a recipe and its overrides describe, and return the folder of the model."""
    end_with_launcher(signal.SIGTERM)  # before anything that takes long, or an early end would go unheard
    config = read(arguments, prog=prog)
    check(config)
    from accelerate import PartialState  # torch and its friends load only once the options are known to be right

    from genflow.build import build_trainer
    from genflow.cli.cautions import caution, caution_of_data

    check_resume(config)
    trainer = build_trainer(config)
    if PartialState().is_main_process:
        caution_of_data(config)
        for finding in findings(config):
            caution(finding)
    model = trainer.fit()
    PartialState().print(f"{model}: the model; try  genflow sample {model}")  # once, however many processes there are
    return model


def read(arguments: Sequence[str], *, prog: str) -> Config:
    """Return the configuration that the command line asks for."""
    about = (
        f"Train a model: {prog} RECIPE [--section.field value ...]\n\nRECIPE is a TOML file or one of"
        f" {', '.join(recipes())}. The same command again continues the run. The run's folder holds model/ (to use),"
        " checkpoints/ (to resume), previews/, log.jsonl and config.toml."
    )
    match list(arguments):
        case [recipe, *rest] if not recipe.startswith("-"):
            return override(load_config(find_recipe(recipe)), rest, prog=f"{prog} {recipe}", about=about)
        case rest:
            override(Config(), rest, prog=f"{prog} RECIPE", about=about)  # prints the help, or says what is wrong
            raise ValueError(f"name a recipe first: {prog} RECIPE, where RECIPE is a file or {', '.join(recipes())}")


def check_resume(config: Config) -> None:
    """Refuse to continue a run as another one; whether the images are the same, wherever they lie now, shows later.

    Raises ``ValueError`` naming the first section that differs from the run's config.toml.
    """
    written = config.folder / "config.toml"
    if not any((config.folder / "checkpoints").glob("step-*")):
        return
    if not written.is_file():
        raise ValueError(f"{config.folder} has checkpoints but no config.toml: put it back, or give another --name")
    before = load_config(written)
    now = config.data
    before = replace(before, data=replace(before.data, path=now.path, labels=now.labels, pairs=now.pairs))
    fixed = ("seed", "init", "data", "backbone", "surgery", "schedule", "parameterization", "objective", "optim")
    differing = [name for name in fixed if getattr(before, name) != getattr(config, name)]
    if before.train.batch_size != config.train.batch_size:
        differing.append("train.batch_size")
    if _has_pace(config) and before.train.steps != config.train.steps:
        differing.append("train.steps, which sets the pace of its noise levels")
    if differing:
        raise ValueError(
            f"{config.folder} holds a run with another {' and '.join(differing)} (see {written}): continue it with the"
            " same options, or give this one another --name"
        )


def _has_pace(config: Config) -> bool:
    """Tell whether what is trained on changes along the run, by the share of its steps that are taken."""
    match config.objective:
        case ConsistencyConfig(levels=GridLevelsConfig(curriculum=ConstantConfig())):
            return False
        case objective:
            return isinstance(objective, ConsistencyConfig)
