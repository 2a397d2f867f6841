"""What is shared of a run, without the local paths of whoever trained it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PureWindowsPath

from genflow.card import HUB_DATA, HUB_MODEL, last_name
from genflow.config import ByTeacherConfig, Config, ConsistencyConfig, LPIPSConfig, LPIPSHuberConfig, VGGConfig
from genflow.data.images import EMBEDDED
from genflow.evaluation.protocol import Result


def result_without_local_paths(result: Result) -> Result:
    """Return a result whose names have lost the folders that lead to them; a note that still tells a path is left out.

    Names of classes, which come from folders too, are not shared.
    """
    samples, reference, network = result.protocol.samples, result.protocol.reference, result.protocol.network
    names = {samples.name: _start(samples.name), reference.name: _data_source(reference.name)}
    names[network.name] = last_name(network.name, "own")
    protocol = replace(
        result.protocol,
        samples=replace(samples, name=names[samples.name]),
        reference=replace(reference, name=names[reference.name]),
        network=replace(network, name=names[network.name]),
    )
    notes = list(result.notes)
    for name in sorted(names, key=len, reverse=True):
        notes = [note.replace(name, names[name]) if set(name) & set("/\\~") else note for note in notes]
    kept = tuple(note for note in notes if not re.search(r"(?<!\w)(?:[~/\\]|\.\.?[/\\]|[A-Za-z]:[/\\])\S", note))
    return replace(result, protocol=protocol, notes=kept, per_class={})


def without_local_paths(config: Config) -> Config:
    """Return the configuration with every local path reduced to its last name; names on the hub stay.

    The folder of runs becomes the default one. Decided by the text alone, so that it is the same wherever it is done.
    """
    objective = config.objective
    match objective.metric:
        case LPIPSConfig(perceptual=VGGConfig(weights=given)) | LPIPSHuberConfig(perceptual=VGGConfig(weights=given)):
            vgg = VGGConfig(weights=last_name(given, "weights"))
            objective = replace(objective, metric=replace(objective.metric, perceptual=vgg))
    match objective:
        case ConsistencyConfig(descent=ByTeacherConfig(teacher=given) as descent):
            objective = replace(objective, descent=replace(descent, teacher=_start(given)))
    data = replace(config.data, path=_data_source(config.data.path), labels=last_name(config.data.labels, "labels"))
    return replace(config, out=Config.out, init=_start(config.init), data=data, objective=objective)


def _data_source(source: str) -> str:
    """Return a data source without the folders that lead to it."""
    if source in EMBEDDED or re.fullmatch(HUB_DATA, source):
        return source
    if source.startswith("hf:"):
        path, mark, query = source.removeprefix("hf:").partition("?")
        return f"hf:./{last_name(path, 'data')}{mark}{query}"
    name = last_name(source, "data")
    return f"./{name}" if name in EMBEDDED or name.startswith("hf:") else name


def _start(init: str) -> str:
    """Return the model that a run started from, or was taught by: a hub repository, or the name of a run or folder."""
    if re.fullmatch(HUB_MODEL, init):
        return init
    path = PureWindowsPath(init)
    return last_name(str(path.parent) if path.parts[1:] and path.name in ("model", "best") else init, "model")
