"""The composition root's part for what is done to a network before it is trained: KIND's surgery, and adapters."""

# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from genflow import kind
from genflow.adapters import adapt, merged
from genflow.build_start import describe_named, load_weights, resumes
from genflow.config import ClassLoRAConfig, Config, IntactConfig, KINDConfig, TransferConfig, TruncationConfig
from genflow.data.images import ImageData
from genflow.data.pairs import PairData
from genflow.denoiser import Denoiser, is_saved


def operate(config: Config, fresh: Denoiser, source: Denoiser | None) -> Denoiser:
    """Return the model that a run trains: after the surgery, with the weights of ``source`` if there is one.

    ``fresh`` is a dense model of the run's network, which may be changed. Without a ``source`` what it begins with is
    random, or comes from the run's own checkpoints.
    Raises ``ValueError`` for a source that does not go with the surgery, and for classes that do not.
    """
    match config.surgery:
        case IntactConfig():
            if source is not None:
                _check_dense(config, source)
                load_weights(fresh, source)
            return fresh
        case KINDConfig() as how:
            if source is not None:
                _check_dense(config, source)
                load_weights(fresh, source)
            if not fresh.num_classes:
                raise ValueError(_no_classes(config))
            return fresh.around(kind.decompose(fresh.backbone, _plan(how, fresh.num_classes)))
        case TransferConfig(trains=trains):
            denoiser = fresh.around(_blank(config, fresh))
            if source is not None:
                load_weights(denoiser, source)
            assert isinstance(denoiser.backbone, kind.Decomposed)
            match trains:
                case "tailors":
                    kind.freeze(denoiser.backbone, "learngenes")
                case "learngenes":
                    kind.freeze(denoiser.backbone, "tailors")
                case "all":
                    pass
            return denoiser
        case TruncationConfig() | ClassLoRAConfig() if not fresh.num_classes:
            raise ValueError(_no_classes(config))
        case adapter:  # what KIND is compared with
            if source is not None:
                _check_dense(config, source)
                load_weights(fresh, source)
            return fresh.around(adapt(fresh.backbone, adapter, fresh.num_classes))


def to_save(config: Config, denoiser: Denoiser) -> Denoiser:
    """Return the model to write for others: with what was put around its layers merged into them."""
    match config.surgery:
        case IntactConfig() | KINDConfig() | TransferConfig():
            return denoiser
        case _:
            return denoiser.around(merged(denoiser.backbone))


def numbered(config: Config, data: ImageData | PairData) -> ImageData | PairData:
    """Return data with the labels of the model that a run trains.

    In a transfer the classes of the data are, in their order, those that the model has; of a model that was extracted
    from another these may be 3 and 7. Data that are labelled so already stay as they are.
    Raises ``ValueError`` for data without classes, and for another number of them.
    """
    if not isinstance(config.surgery, TransferConfig):
        return data
    gate = kind.ClassGate(_layout(config).class_to_tailor)
    numbers = np.array([*gate.kept, gate.num_classes])  # the last is "no class", which pairs may have
    if data.labels is None:
        raise ValueError(_no_classes(config))
    if data.num_classes not in (len(gate.kept), gate.num_classes):
        raise ValueError(_other_classes(config, gate, data))
    if data.num_classes == gate.num_classes and np.isin(data.labels, numbers).all():
        return data
    if data.num_classes != len(gate.kept):
        raise ValueError(_other_classes(config, gate, data))
    names = [*map(str, range(gate.num_classes))]
    for c, name in zip(gate.kept, data.class_names, strict=True):
        names[c] = name
    return replace(data, labels=numbers[data.labels], class_names=tuple(names))


def make_lazy(config: Config, optimizer: torch.optim.Optimizer, denoiser: Denoiser) -> None:
    """Have an optimizer pass over the tailors of absent classes, if the configuration says so."""
    match config.surgery, denoiser.backbone:
        case KINDConfig(lazy_tailors=True) | TransferConfig(lazy_tailors=True), kind.Decomposed() as model:
            kind.lazy_tailors(optimizer, model)
        case _:
            return


def _plan(how: KINDConfig, num_classes: int) -> kind.KINDConfig:
    chosen = how.class_to_tailor or tuple(range(num_classes))
    if len(chosen) != num_classes:
        raise ValueError(
            f"surgery.class_to_tailor names the tailors of {len(chosen)} classes, and the data have {num_classes}: name"
            " one for each, or leave it out"
        )
    return kind.KINDConfig(
        class_to_tailor=chosen,
        learngenes=how.learngenes,
        tailor_rank=how.tailor_rank or None,
        linears=how.linears,
        order=how.order,
        rescale=how.rescale,
        no_class=how.no_class,
    )


def _blank(config: Config, fresh: Denoiser) -> kind.Decomposed:
    """Return the run's network in the structure that a transfer takes over."""
    layout = _layout(config)
    if len(layout.class_to_tailor) != fresh.num_classes:
        gate = kind.ClassGate(layout.class_to_tailor)
        raise ValueError(f"init {config.init} has {_classes(gate)}, and the data {fresh.num_classes}")
    return kind.blank(fresh.backbone, layout)


def _layout(config: Config) -> kind.Layout:
    """Return the structure of init, or where a run goes on, of the model that it has saved: one of the two may be gone.

    Checkpoints hold weights alone, which do not tell whose the tailors are.
    """
    saved = config.folder / "model"
    goes_on = resumes(config) and is_saved(saved)
    place, option = (str(saved), "the model of the run,") if goes_on else (config.init, "init")
    match describe_named(place, option):
        case {"class": "Decomposed", "arguments": {"layout": layout}}:
            return kind.Layout.read(layout)
        case _:
            raise ValueError(
                f"{option} {place} is a dense model, and surgery Transfer goes on with a decomposed one: decompose its"
                ' weights by [surgery] type = "KIND", or give the folder that genflow kind grow writes'
            )


def _check_dense(config: Config, source: Denoiser) -> None:
    start = f"surgery {config.surgery.type} starts from a dense model"
    match source.backbone:
        case kind.Decomposed():
            raise ValueError(
                f"init {config.init} is decomposed already, and {start}: go on with it by [surgery] type ="
                ' "Transfer", or make it dense for one class by genflow kind merge'
            )
        case kind.ClassLoRA():
            raise ValueError(
                f"init {config.init} has a LoRA for each class, and {start}: give the model that it was made of, or"
                " make it dense for one class by genflow.kind.merge_class"
            )
        case _:
            return


def _no_classes(config: Config) -> str:
    return (
        f"surgery {config.surgery.type} trains a part of the network for each class, and the data have no classes: give"
        " data with labels"
    )


def _other_classes(config: Config, gate: kind.ClassGate, data: ImageData | PairData) -> str:
    return (
        f"init {config.init} has {_classes(gate)}, and {data.name} {data.num_classes}: give the model tailors for new"
        " classes by genflow kind grow (--drop removes the old ones), or take images of as many classes by data.keep"
    )


def _classes(gate: kind.ClassGate) -> str:
    if len(gate.kept) == gate.num_classes:
        return f"{gate.num_classes} classes"
    return f"{len(gate.kept)} classes ({', '.join(map(str, gate.kept))})"
