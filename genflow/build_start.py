"""The composition root's part for starting from a saved model: its weights, and whether they keep their meaning."""

# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genflow.config import Config
from genflow.config_files import recipes
from genflow.data.pairs import PairData
from genflow.denoiser import Denoiser, read_config, saved_in, weights_hash
from genflow.denoiser_parts import network_arguments
from genflow.parameterizations import (
    Conditioning,
    Converted,
    Karras,
    Parameterization,
    PredictClean,
    PredictNoise,
    PredictV,
)
from genflow.schedules import VP, Cosine, DiscreteVP, Linear

_AUGMENT = "backbone.conditioning.time.augment.weight"  # the UNet's kernel for augmentation labels
_LEVELS = (0.1, 0.2, 0.5, 1.0)  # of noise, that all models visit and no clipping reaches


def load_named(path: str, option: str) -> Denoiser:
    """Load a model that an option names: of the hub only by ``hf:``, so that a run's file tells what it was anywhere.

    Raises ``ValueError`` for anything else than a saved model's folder or hf:OWNER/NAME.
    """
    return Denoiser.from_pretrained(_place(path, option))


def describe_named(path: str, option: str) -> dict[str, Any]:
    """Return what the config.json of a model that an option names tells of its network, whose weights are not read.

    Raises ``ValueError`` as ``load_named``.
    """
    return read_config(_place(path, option))["network"]


def _place(path: str, option: str) -> str:
    if path.startswith("hf:"):
        return path.removeprefix("hf:")
    if not Path(path).is_dir():
        match Path(path).parts:
            case ("runs", name, *_) if name in recipes():
                first = f"; that is where genflow train {name} leaves its own, which has not been run here"
            case _:
                first = ""
        raise ValueError(
            f"{option} {path} is not a folder: give a saved model's, or hf:OWNER/NAME for one on the hub{first}"
        )
    return saved_in(path)


def resumes(config: Config) -> bool:
    """Tell whether a run has checkpoints to go on from, so that what it began with is not asked for again."""
    return any((config.folder / "checkpoints").glob("step-*"))


def check_pairs(config: Config, source: Denoiser, pairs: PairData) -> None:
    """Refuse pairs that the model to start from has nothing to do with.

    It made them itself, or was trained on pairs of the model that did, as a student is that goes on with other pairs of
    its teacher; told by the hashes of their weights, wherever they lie. ``config.data.any_teacher`` allows others.
    Raises ``ValueError`` naming both models, and for images of another shape.
    """
    if source.image_shape != pairs.image_shape:
        raise ValueError(
            f"init {config.init} makes images {source.image_shape}, and the pairs of {pairs.name} are"
            f" {pairs.image_shape}: start from their teacher, or from another model of such images"
        )
    if config.data.any_teacher:
        return
    maker, own = pairs.manifest.teacher, weights_hash(source)
    if maker and maker in (own, source.teacher):
        return
    taught = f", which was trained on pairs of {source.teacher[:12]}" if source.teacher else ""
    raise ValueError(
        f"{pairs.name} holds pairs of another teacher: they were made by a model of weights {maker[:12] or 'unknown'},"
        f" and init {config.init} has weights {own[:12]}{taught}; start from that model or one trained on its pairs,"
        " make pairs with this one, or train on these all the same by --data.any-teacher"
    )


def load_weights(denoiser: Denoiser, source: Denoiser) -> None:
    """Copy the weights of ``source``.

    If its classes differ in number, the class table starts anew but for "no class"; if only one of the two reads
    augmentation labels, those weights start at 0 or are left out, for the same function of images without any.
    Raises ``ValueError`` naming the weights that do not fit.
    """
    given, wanted = source.state_dict(), denoiser.state_dict()
    if _AUGMENT not in given and _AUGMENT in wanted:
        given[_AUGMENT] = torch.zeros_like(wanted[_AUGMENT])
    elif _AUGMENT in given and _AUGMENT not in wanted:
        del given[_AUGMENT]
    if source.num_classes != denoiser.num_classes:
        for name, fresh in wanted.items():
            old = given.get(name)
            rows = (source.num_classes + 1, denoiser.num_classes + 1)
            if old is not None and (len(old), len(fresh)) == rows and old.shape[1:] == fresh.shape[1:]:
                given[name] = torch.cat([fresh[:-1], old[-1:]])  # the last row is "no class"
            elif old is None and source.num_classes == 0 and len(fresh) == denoiser.num_classes + 1:
                given[name] = fresh  # a table where there was none
        if denoiser.num_classes == 0:  # and none where there was one
            given = {k: v for k, v in given.items() if k in wanted or len(v) != source.num_classes + 1}
    wrong = [k for k in {*given, *wanted} if k not in given or k not in wanted or given[k].shape != wanted[k].shape]
    if wrong:
        raise ValueError(
            f"the model to start from has another network: {len(wrong)} of its weights do not fit, such as"
            f" {min(wrong)}; give [backbone] the values that its config.json lists"
        )
    _check_arguments(denoiser, source)
    denoiser.load_state_dict(given)


def _check_arguments(denoiser: Denoiser, source: Denoiser) -> None:
    """Refuse networks whose weights have the same shapes and which compute something else, such as other heads."""
    given, wanted = (network_arguments(d.config["network"]) for d in (source, denoiser))
    if given.get("fourier_scale") and wanted.get("fourier_scale"):  # the frequencies come with the weights
        given["fourier_scale"] = wanted["fourier_scale"]
    free = {"num_classes", "augment_dim", "dropout", "image_size"}
    other = [name for name in given if name in wanted and name not in free and given[name] != wanted[name]]
    if other:
        raise ValueError(
            f"the model to start from has another network: {other[0]} is"
            f" {given[other[0]]} there and {wanted[other[0]]} here; give [backbone] what its config.json lists"
        )


def misreading(source: Denoiser, denoiser: Denoiser) -> str:
    """Say what the weights of ``source`` mean, what they are taken for, and how to keep that; "" if it is kept.

    Two models of the same weights are compared as functions: by the coefficients of their rows in the coordinates of
    ``Linear`` at noise levels from 0.1 to 1. So EDM's ``Karras`` on ``VE`` is the same on ``Linear``, whatever levels
    the embedding is clipped at, a row is the same as ``Converted``, and ``ConsistencyKarras`` passes for ``Karras``.
    """
    t = Linear().time_at(torch.tensor(_LEVELS, dtype=torch.float64))
    there, here = (
        Converted(schedule=d.schedule, row=d.parameterization).coefficients(Linear(), t) for d in (source, denoiser)
    )
    reasons: list[str] = []
    if not torch.allclose(there.c_noise, here.c_noise, rtol=1e-3, atol=1e-3):
        reasons.append("the network is told another time")
    if not torch.allclose(there.c_in, here.c_in, rtol=5e-3):
        reasons.append("it sees its input at another scale")
    if not all(
        torch.allclose(a, b, rtol=5e-3, atol=5e-3) for a, b in ((there.c_skip, here.c_skip), (there.c_out, here.c_out))
    ):
        reasons.append("its output is read otherwise")
    if not reasons:
        return ""
    taken = _name(denoiser)
    if taken == _name(source):
        taken += " of other values, such as its betas"
    return (
        f"its weights mean {_name(source)}, and this run takes them for {taken}: {', '.join(reasons)}, and"
        f" training begins far from that model; to begin as its equal {_advice(source)}"
    )


def _name(denoiser: Denoiser) -> str:
    return f"{_row_name(denoiser.parameterization)} on {type(denoiser.schedule).__name__}"


def _row_name(row: Parameterization) -> str:
    match row:
        case Karras(sigma_data=sigma_data, conditioning=conditioning):
            return f"Karras (sigma_data {sigma_data:g}, conditioning {conditioning})"
        case Converted(schedule=schedule, row=inner):
            return f"Converted ({_row_name(inner)} on {type(schedule).__name__})"
        case _:
            return type(row).__name__


def _advice(source: Denoiser) -> str:
    """Say by which options a run keeps what the weights mean."""
    match source.schedule, source.parameterization:
        case _, Karras(sigma_data=sigma_data, conditioning=Conditioning.LEVEL):
            return f"give parameterization Karras, with sigma_data {sigma_data:g} and conditioning level"
        case _, Converted():
            return "give the parameterization that its config.json lists"
        case VP() | DiscreteVP() | Cosine() as schedule, PredictNoise() | PredictV() | PredictClean() as row:
            return (
                f"give the schedule {type(schedule).__name__} and parameterization {type(row).__name__} of its"
                " config.json, or on another schedule parameterization Converted with these two as schedule and row"
            )
        case _:
            return "give the schedule and parameterization that its config.json lists"
