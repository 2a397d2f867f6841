"""The parts of a model as its config.json names them, by class and arguments, and the parts again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from genflow.kind.class_lora import class_lora
from genflow.kind.model import Gated, Layout, blank
from genflow.nn.dit import DiT
from genflow.nn.unet import UNet
from genflow.parameterizations import (
    Conditioning,
    ConsistencyKarras,
    Converted,
    Karras,
    Parameterization,
    PredictClean,
    PredictNoise,
    PredictV,
    PredictVelocity,
)
from genflow.schedules import VE, VP, Cosine, DiscreteVP, Linear, Schedule, Trig


def describe(part: Schedule | Parameterization) -> dict[str, Any]:
    """Return the class and the arguments of a schedule or a row."""
    match part:
        case Converted(schedule=schedule, row=row):  # of parts, which asdict would leave without their names
            arguments = {"schedule": describe(schedule), "row": describe(row)}
        case _:
            arguments = dataclasses.asdict(part)  # pyright: ignore[reportArgumentType]
    return {"class": type(part).__name__, "arguments": arguments}


def describe_backbone(backbone: nn.Module) -> dict[str, Any]:
    """Return the class and the arguments of a network; of one with a gate, the network inside and its layout."""
    match backbone:
        case UNet() | DiT():
            return {"class": type(backbone).__name__, "arguments": backbone.arguments}
        case Gated():
            arguments = {"network": describe_backbone(backbone.backbone), "layout": backbone.plain_layout()}
            return {"class": type(backbone).__name__, "arguments": arguments}
        case _:  # somebody else's: named for the reader, rebuilt by whoever loads the folder
            return {"class": f"{type(backbone).__module__}.{type(backbone).__qualname__}", "arguments": {}}


def build_backbone(part: dict[str, Any], given: nn.Module | None = None) -> nn.Module:
    """Return a fresh network of what ``describe_backbone`` says; ``given`` stands in for the innermost one.

    One that has its gate already is returned as it is.
    Raises ``ValueError`` for somebody else's of which none is given, and for one whose gate is another.
    """
    match part["class"]:
        case _ if isinstance(given, Gated):
            if (type(given).__name__, given.plain_layout()) != (part["class"], part["arguments"].get("layout")):
                raise ValueError(
                    "the backbone that was given is gated otherwise than the saved one: give the dense network, around"
                    " which it is built again"
                )
            return given
        case "Decomposed":
            arguments = part["arguments"]
            return blank(build_backbone(arguments["network"], given), Layout.read(arguments["layout"]))
        case "ClassLoRA":
            arguments = part["arguments"]
            return class_lora(build_backbone(arguments["network"], given), **arguments["layout"])
        case _ if given is not None:
            return given
        case "UNet":
            return UNet(**part["arguments"])
        case "DiT":
            return DiT(**part["arguments"])
        case other:
            raise ValueError(f"the network {other} is not genflow's: build it and pass it as backbone=")


def build_schedule(part: dict[str, Any]) -> Schedule:
    """Return the schedule that was described; raises ``ValueError`` for one that is not known."""
    arguments = part["arguments"]
    match part["class"]:
        case "VE":
            return VE(**arguments)
        case "VP":
            return VP(**arguments)
        case "DiscreteVP":
            return DiscreteVP(betas=tuple(arguments["betas"]))
        case "Cosine":
            return Cosine(**arguments)
        case "Linear":
            return Linear(**arguments)
        case "Trig":
            return Trig(**arguments)
        case other:
            raise ValueError(f"unknown schedule {other}: the folder was written by a newer genflow")


def build_parameterization(part: dict[str, Any]) -> Parameterization:
    """Return the row that was described; raises ``ValueError`` for one that is not known."""
    arguments = part["arguments"]
    match part["class"]:
        case "PredictNoise":
            return PredictNoise(**arguments)
        case "PredictClean":
            return PredictClean(**arguments)
        case "PredictV":
            return PredictV(**arguments)
        case "PredictVelocity":
            return PredictVelocity(**arguments)
        case "Karras":  # folders of before there was a choice name none
            chosen = Conditioning(arguments.get("conditioning", Conditioning.LEVEL))
            return Karras(**{**arguments, "conditioning": chosen})
        case "ConsistencyKarras":
            return ConsistencyKarras(**arguments)
        case "Converted":
            schedule, row = arguments["schedule"], arguments["row"]
            return Converted(schedule=build_schedule(schedule), row=build_parameterization(row))
        case other:
            raise ValueError(f"unknown parameterization {other}: the folder was written by a newer genflow")


def network_arguments(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a network was built with, as a model's configuration tells it; of one with a gate, the one inside.

    ``network`` is the configuration's part of that name. A decomposed one has the classes of its own class map.
    """
    arguments = network.get("arguments", {})
    match network.get("class"):
        case "Decomposed":
            count = len(arguments["layout"]["class_to_tailor"])
            return network_arguments(arguments["network"]) | {"num_classes": count}
        case "ClassLoRA":
            return network_arguments(arguments["network"])
        case _:
            return dict(arguments)
