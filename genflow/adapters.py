"""Trained networks fitted to new classes by other means than KIND, to compare it with: adapters of ``peft``, and ours.

`adapt` makes of a dense backbone one whose trained parameters are those of a method and the label rows of the new
classes; `merged` makes of that a dense backbone again, which is saved and loaded like any other.
"""

from __future__ import annotations

import copy
import re
import sys
from typing import TYPE_CHECKING, assert_never

import torch
from torch import nn

from genflow.config_adapters import (
    AdapterConfig,
    BitFitConfig,
    ClassLoRAConfig,
    DoRAConfig,
    FineTuningConfig,
    IA3Config,
    LoHaConfig,
    LoRAConfig,
    OFTConfig,
    PiSSAConfig,
    TruncationConfig,
)
from genflow.kind.class_lora import class_lora
from genflow.kind.gate import LEARNGENES_ONLY
from genflow.kind.labels import ClassRows
from genflow.kind.learngenes import add_tailors, freeze, remove_tailors
from genflow.kind.linear import check_rank
from genflow.kind.model import Gated, placed, split_tables, tell_classes
from genflow.kind.surgery import KINDConfig, decompose, matching_linears
from genflow.nn.embeddings import LabelTable

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

PeftConfig = LoRAConfig | PiSSAConfig | DoRAConfig | LoHaConfig | OFTConfig | IA3Config


def adapt(backbone: nn.Module, config: AdapterConfig, new_classes: int) -> nn.Module:
    """Return a copy of a dense backbone for other classes, which trains a method's parameters and the label rows.

    The label rows of the new classes, numbered from 0, take the place of the old ones and start as copies of that of
    "no class", as in KIND's `add_tailors`. Whatever is random is drawn from torch's generator. The forms of the methods
    are those of their configurations; LoRA, PiSSA, DoRA, LoHa, OFT and (IA)³ are computed by `peft`.

    Training from scratch, which methods are compared with too, is a fresh backbone and needs no function.

    Raises:
        ValueError: If no layer has a name that matches, and for ranks and blocks that do not fit the layers.
        RuntimeError: If `peft` is needed and missing.
    """
    backbone = _relabelled(backbone, new_classes)
    match config:
        case FineTuningConfig():
            return backbone.requires_grad_(True)
        case ClassLoRAConfig(rank=rank, alpha=alpha, linears=pattern):
            model = class_lora(backbone, matching_linears(backbone, pattern), rank=rank, scale=alpha / rank)
            model.requires_grad_(False)
            for own in model.own_parameters():
                own.requires_grad_(True)
            return model
        case TruncationConfig(learngenes=learngenes, tailor_rank=rank, linears=pattern):
            chosen = KINDConfig(
                class_to_tailor=(LEARNGENES_ONLY,) * new_classes, learngenes=learngenes, linears=pattern, rescale=False
            )
            model = add_tailors(remove_tailors(decompose(backbone, chosen)), new_classes, rank=rank)
            freeze(model, "learngenes")
            return model
        case BitFitConfig(biases=pattern):
            return _only_rows(_only_biases(backbone, pattern))
        case LoRAConfig() | PiSSAConfig() | DoRAConfig() | LoHaConfig() | OFTConfig() | IA3Config():
            return _only_rows(_injected(backbone, config))
        case _:
            assert_never(config)


@torch.no_grad()
def merged(backbone: nn.Module) -> nn.Module:
    """Return a copy of an adapted backbone as a dense one, of the same layers and shapes as before it was adapted.

    A model with a gate has another kernel for each class. It is returned as it is: saved folders know its layout, and
    `merge` and `merge_class` make it dense for one class.
    """
    if isinstance(backbone, Gated):
        return backbone
    backbone = copy.deepcopy(backbone)
    for name, layer in _tuned(backbone).items():
        layer.merge()
        backbone.set_submodule(name, layer.get_base_layer())
    tables = {name: part for name, part in backbone.named_modules() if isinstance(part, ClassRows)}
    for name, table in tables.items():
        backbone.set_submodule(name, table.whole())
    return backbone.requires_grad_(True)


def _relabelled(backbone: nn.Module, new_classes: int) -> nn.Module:
    """Return a copy whose label tables have other classes, which all start as "no class" does."""
    backbone = copy.deepcopy(backbone)
    tables = {name: part for name, part in backbone.named_modules() if isinstance(part, LabelTable)}
    for name, table in tables.items():
        renewed = LabelTable(new_classes, table.weight.shape[1])
        renewed.weight = nn.Parameter(table.weight.detach()[-1:].repeat(new_classes + 1, 1))
        backbone.set_submodule(name, renewed)
    if tables:
        tell_classes(backbone, new_classes)
    return backbone


def _only_rows(backbone: nn.Module) -> nn.Module:
    """Have the label rows of classes trained, beside what is trained already, and that of "no class" not."""
    counts = [part.num_classes for part in backbone.modules() if isinstance(part, LabelTable)]
    if counts:
        split_tables(backbone, (LEARNGENES_ONLY,) * counts[0])
    for part in backbone.modules():
        if isinstance(part, ClassRows):
            part.no_class.requires_grad_(False)
    return placed(backbone, next(backbone.parameters()).device)


def _only_biases(backbone: nn.Module, pattern: str) -> nn.Module:
    names = [name for name, _ in backbone.named_parameters() if name.rpartition(".")[2] == "bias"]
    chosen = {name for name in names if re.fullmatch(pattern, name)}
    if not chosen:
        raise ValueError(f"no bias has a name that matches {pattern!r}; this backbone has {', '.join(names[:12])} …")
    for name, value in backbone.named_parameters():
        value.requires_grad_(name in chosen)
    return backbone


def _with_room(backbone: nn.Module, pattern: str, rank: int) -> list[str]:
    """Return the names of the chosen layers, whose kernels can all have an update of this rank."""
    chosen = matching_linears(backbone, pattern)
    for name, linear in chosen.items():
        check_rank(rank, name, (linear.out_features, linear.in_features))
    return list(chosen)


def _injected(backbone: nn.Module, config: PeftConfig) -> nn.Module:
    """Put layers of ``peft`` around the chosen ones, in place, and train nothing but what is in them."""
    try:
        import peft
    except ImportError as error:
        raise RuntimeError('this adapter comes with peft: run  pip install "genflow[adapters]"') from error
    match config:
        case IA3Config(outputs=outputs, inputs=inputs):
            names = list(matching_linears(backbone, f"({outputs})|({inputs})"))
            fed = [name for name in names if re.fullmatch(inputs, name)]
            chosen = peft.IA3Config(target_modules=names, feedforward_modules=fed)
        case OFTConfig(block_size=size, linears=pattern):
            linears = matching_linears(backbone, pattern)
            odd = [name for name, linear in linears.items() if linear.in_features % size]
            if odd:
                width = linears[odd[0]].in_features
                raise ValueError(f"{odd[0]} has {width} inputs, which blocks of {size} do not tile: give a divisor")
            chosen = peft.OFTConfig(  # the exact inverse, where peft by itself takes five terms of its series
                r=0, oft_block_size=size, target_modules=list(linears), use_cayley_neumann=False
            )
        case LoHaConfig(rank=rank, alpha=alpha, linears=pattern):
            names = _with_room(backbone, pattern, rank)
            chosen = peft.LoHaConfig(r=rank, alpha=alpha, target_modules=names)
        case LoRAConfig(rank=rank, alpha=alpha, linears=pattern):
            names = _with_room(backbone, pattern, rank)
            chosen = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
        case DoRAConfig(rank=rank, alpha=alpha, linears=pattern):
            names = _with_room(backbone, pattern, rank)
            chosen = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, use_dora=True)
        case PiSSAConfig(rank=rank, linears=pattern):
            names = _with_room(backbone, pattern, rank)
            chosen = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, init_lora_weights="pissa")
        case _:
            assert_never(config)
    backbone = peft.inject_adapter_in_model(chosen, backbone)
    del backbone.peft_config  # a note of peft's, which the layers do not need
    return backbone


def _tuned(backbone: nn.Module) -> dict[str, BaseTunerLayer]:
    """Return the layers of ``peft`` by their names."""
    if "peft" not in sys.modules:  # whoever holds one of its layers has imported it
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: part for name, part in backbone.named_modules() if isinstance(part, BaseTunerLayer)}
