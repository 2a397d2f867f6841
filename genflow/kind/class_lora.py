"""LoRA with KIND's gate: a dense kernel for every class, and a low-rank update of each class's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.kind.gate import ClassGate, Switch
from genflow.kind.linear import Components, check_rank, held, parameter, with_tailors
from genflow.kind.model import Gated, placed, split_tables
from genflow.nn.embeddings import LabelTable


@final
class ClassLoRALinear(nn.Module):
    """Linear layer with a low-rank update for each class, `W(y) x + b`, `W(y) = W + scale B_y A_y`.

    B starts at 0 and A uniform in ±1/√n, as LoRA's do. A class sends the updates of others a gradient of exactly 0.

    Shapes: x (B, *, n) to (B, *, m) with B the batch that the gate was told of. `weight` (m, n), `bias` (m,) or None,
    `lora_a` (C, r, n), `lora_b` (C, m, r).
    Source: "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), under the class gate of KIND.

    Raises:
        RuntimeError: If no gate is held, as when the backbone is called rather than the model around it.
        ValueError: If the batch is not the one that the gate was told of.
    """

    def __init__(self, dense: nn.Linear, count: int, rank: int, scale: float, switch: Switch) -> None:
        super().__init__()
        self.weight = parameter(dense.weight)
        self.bias = None if dense.bias is None else parameter(dense.bias)
        m, n = dense.weight.shape
        # Drawn on the host, so that a seed gives the same start on any device.
        drawn = torch.empty(count, rank, n).uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n))
        self.lora_a = parameter(drawn.to(dense.weight))
        self.lora_b = parameter(dense.weight.new_zeros(count, m, rank))
        self.scale = scale
        self.switch = switch

    @property
    def updates(self) -> Components:
        """The update of each class, as what KIND calls its tailor: u = B, σ = scale, v = A."""
        count, rank, _ = self.lora_a.shape
        return Components(self.lora_b, self.lora_a.new_full((count, rank), self.scale), self.lora_a)

    def forward(self, x: Tensor) -> Tensor:
        return with_tailors(F.linear(x, self.weight, self.bias), x, self.updates, held(self.switch, x))

    @torch.no_grad()
    def dense(self, label: int | None) -> nn.Linear:
        """Return the plain layer of one class, or of none."""
        m, n = self.weight.shape
        dense = nn.Linear(n, m, bias=self.bias is not None, device="meta")  # no draws from the random generator
        update = 0.0 if label is None else self.scale * self.lora_b[label] @ self.lora_a[label]
        dense.weight = nn.Parameter(self.weight + update)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone())
        return dense

    def extra_repr(self) -> str:
        (m, n), (count, rank, _) = self.weight.shape, self.lora_a.shape
        return f"in_features={n}, out_features={m}, updates={count} of rank {rank}, scale={self.scale:g}"


@final
class ClassLoRA(Gated):
    """A backbone with a LoRA for each class and the gate that drives them; no class is the dense backbone.

    Source: "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), under the class gate of KIND.
    """

    def linears(self) -> dict[str, ClassLoRALinear]:
        """Return the adapted layers by their names in the backbone."""
        return {name: part for name, part in self.backbone.named_modules() if isinstance(part, ClassLoRALinear)}

    def plain_layout(self) -> dict[str, Any]:
        linears = self.linears()
        first = next(iter(linears.values()))
        return {"linears": list(linears), "rank": first.lora_a.shape[1], "scale": first.scale}

    def own_parameters(self) -> list[Tensor]:
        """Return what belongs to classes: the updates of all layers, and the label rows."""
        updates = [p for part in self.linears().values() for p in (part.lora_a, part.lora_b)]
        return [*updates, *(table.rows for table in self.tables().values())]


def class_lora(backbone: nn.Module, linears: Iterable[str], *, rank: int, scale: float) -> ClassLoRA:
    """Return a copy of a dense backbone with a LoRA for each class of its label table on these layers.

    Raises:
        ValueError: If the backbone has no label table, from which the number of classes is taken, and for a rank above
            min(m, n) of a layer.
    """
    backbone = copy.deepcopy(backbone)
    tables = [part for part in backbone.modules() if isinstance(part, LabelTable)]
    if not tables:
        raise ValueError("a LoRA for each class needs a backbone with classes, and this one has no label table")
    gate = ClassGate(range(tables[0].num_classes))
    for name in linears:
        dense = backbone.get_submodule(name)
        assert isinstance(dense, nn.Linear)
        check_rank(rank, name, (dense.out_features, dense.in_features))
        backbone.set_submodule(name, ClassLoRALinear(dense, gate.num_classes, rank, scale, gate.switch))
    split_tables(backbone, gate.class_to_tailor)
    device = next(backbone.parameters()).device
    return placed(ClassLoRA(backbone, gate), device).train(backbone.training)


@torch.no_grad()
def merge_class(model: ClassLoRA, label: int | None = None) -> nn.Module:
    """Return the dense backbone of one class, `W + scale B_y A_y`; None, like the label `num_classes`, is W alone.

    The network still wants its label as an input, for its label table.

    Raises:
        ValueError: For a label out of range.
    """
    count = model.gate.num_classes
    if label is not None and not 0 <= label <= count:
        raise ValueError(f"labels run from 0 to {count}, which is no class; got {label}")
    backbone = copy.deepcopy(model.backbone)
    for name, linear in model.linears().items():
        backbone.set_submodule(name, linear.dense(None if label == count else label))
    for name, table in model.tables().items():
        backbone.set_submodule(name, table.whole())
    return backbone.train(model.training)
