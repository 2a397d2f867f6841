"""What is worth a line on stderr before the work: it can be done, and may not be what was meant."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genflow.cli.models import run_of
from genflow.config import Config, RegressionConfig, UShapedConfig
from genflow.data.images import EMBEDDED
from genflow.data.pair_files import read_manifest
from genflow.data.pairs import is_pairs
from genflow.data.paths import expanded
from genflow.denoiser import SUBFOLDER, Denoiser, is_consistency, saved_in
from genflow.denoiser_parts import network_arguments

MOST_STEPS = 2  # in which 2-RF++'s rule is Euler's


def caution(text: str) -> None:
    """Print a sentence on stderr, on one line."""
    print(f"genflow: warning: {' '.join(text.split())}", file=sys.stderr)


def caution_of_straight(model: str, sampler: str, steps: int) -> None:
    """Say so where 2-RF++'s rule is to solve a flow in many steps that nobody knows to be straight."""
    if sampler in ("straight", "straight_heun") and steps > MOST_STEPS and not is_of_pairs(model):
        caution(
            f"the sampler {sampler} solves straight flows only, and {model} is not known to have been trained on pairs:"
            f" on a curved flow more steps than {MOST_STEPS} lead away from its images; euler and heun follow any flow"
        )


def caution_of_solver(model: str, denoiser: Denoiser, sampler: str, steps: int) -> None:
    """Say so where a consistency model is drawn as a flow, or a flow as one; in one step Euler's rule is both's."""
    if not is_consistency(denoiser) and sampler == "multistep" and steps > 1:
        caution(
            f"the sampler multistep is that of consistency models, and {model} is none: the clean images it estimates"
            " are means, and stay blurred; euler and heun follow its flow"
        )
    if is_consistency(denoiser) and sampler != "multistep" and (sampler, steps) != ("euler", 1):
        caution(
            f"the sampler {sampler} follows a flow, and {model} is a consistency model, which has none: what comes of"
            " it means nothing; its sampler is multistep"
        )


def caution_of_times(model: str, denoiser: Denoiser, times: Sequence[float]) -> None:
    """Say so where a call of a consistency model begins at its lowest level, where it gives back what it is given."""
    low = denoiser.schedule.t_min
    if is_consistency(denoiser) and times[-2] <= low:
        caution(
            f"at times of {low:g} and below {model} gives the image back as it is: the call at {times[-2]:g} does"
            " nothing"
        )


def caution_of_flow(model: str, denoiser: Denoiser) -> None:
    """Say so where a flow is asked of a consistency model."""
    if is_consistency(denoiser):
        caution(
            f"{model} is a consistency model, whose clean images are ends of paths and not means: there is no flow in"
            " them that a solver could follow, and what comes of it means nothing; give the diffusion model"
        )


def is_of_pairs(model: str) -> bool:
    """Tell whether a saved model is known to have been trained on pairs: by itself, its run, or its import."""
    if told_by(model).get("teacher"):  # which older models do not name
        return True
    try:
        config = run_of(model)
    except ValueError:  # of a run file that is damaged nothing is known, and sampling does not need it
        return False
    return is_imported_reflow(model) if config is None else has_pairs(config)


def has_pairs(config: Config) -> bool:
    """Tell whether a run is on pairs; where its data lie elsewhere by now, its configuration tells."""
    path = config.data.path
    if path in EMBEDDED or expanded(path).exists():
        return is_pairs(path)
    return config.data.pairs > 0 or _is_reflow(config)


def _is_reflow(config: Config) -> bool:
    """Tell whether times are drawn by 2-RF's law."""
    return isinstance(config.objective, RegressionConfig) and isinstance(config.objective.times, UShapedConfig)


def is_imported_reflow(model: str) -> bool:
    """Tell whether a folder is what ``genflow import`` makes of 2-RF++'s weights."""
    try:
        told = json.loads((Path(model) / "import.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("method") == "2-RF++"


def caution_of_data(config: Config) -> None:
    """Say so where a method of pairs trains on plain images, and where pairs take classes away.

    To be called once the data are known to be there.
    """
    path = config.data.path
    if not is_pairs(path):
        if _is_reflow(config):
            caution(
                f"this is a recipe for pairs (objective.times is UShaped), and {path} holds images alone: each meets"
                " new noise at every step, which makes no flow straight; give a folder of  genflow pairs  as data.path"
            )
        return
    manifest = read_manifest(expanded(path))
    if manifest is None or manifest.num_classes > 0 or not config.data.classes:
        return
    teacher = network_arguments(manifest.made.get("teacher", {}).get("network", {})).get("num_classes", 0)
    there = {f"the model of init {config.init}": classes_of(config.init), "their teacher": teacher}
    had = [f"{name} has {count}" for name, count in there.items() if count]
    if had:
        caution(
            f"the pairs of {path} have no labels, so that this model gets no classes, and {had[0]}: genflow pairs"
            " --labels random  makes pairs with labels"
        )


def classes_of(model: str) -> int:
    """Return how many classes a saved model on the disk has; 0 if it is not there."""
    return told_by(model).get("num_classes", 0)


def told_by(model: str) -> dict[str, Any]:
    """Return what the config.json of a saved model on the disk says; nothing if it is not there, or damaged."""
    folder = Path(saved_in(model))
    for place in (folder / SUBFOLDER, folder):
        if model and (place / Denoiser.config_name).is_file():
            try:
                told = json.loads((place / Denoiser.config_name).read_text(encoding="utf-8"))
            except ValueError:
                return {}
            return told if isinstance(told, dict) else {}
    return {}
