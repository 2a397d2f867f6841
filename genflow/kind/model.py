"""A decomposed backbone: called like the one inside, it tells the layers the class of each image."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from genflow.kind.gate import LEARNGENES_ONLY, Assigned, ClassGate, Segments
from genflow.kind.labels import ClassRows
from genflow.kind.linear import Components, KINDLinear
from genflow.nn.calling import called
from genflow.nn.dit import DiT
from genflow.nn.embeddings import LabelTable
from genflow.nn.unet import UNet

T = TypeVar("T", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The structure of a decomposed backbone: what must be known beside the weights to build it again.

    `class_to_tailor` and `no_class` as in `ClassGate`; `ranks` holds (learngenes, rank of a tailor) of each decomposed
    layer, by name.
    """

    class_to_tailor: tuple[int, ...]
    ranks: Mapping[str, tuple[int, int]]
    no_class: int = LEARNGENES_ONLY

    def plain(self) -> dict[str, Any]:
        """Return it as lists and dicts, for JSON."""
        ranks = {k: list(v) for k, v in self.ranks.items()}
        return {"class_to_tailor": list(self.class_to_tailor), "no_class": self.no_class, "ranks": ranks}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Layout:
        """Rebuild it from what `plain` returned."""
        ranks = {name: (int(r), int(k)) for name, (r, k) in plain["ranks"].items()}
        no_class = plain.get("no_class", LEARNGENES_ONLY)  # folders of before there was a choice name none
        return cls(class_to_tailor=tuple(plain["class_to_tailor"]), ranks=ranks, no_class=no_class)


class Gated(nn.Module, abc.ABC):
    """A backbone and the gate that drives its layers: `backbone(x, c_noise, y, s)` under `g(y)`.

    Any backbone will do, unchanged: the gate is held for the length of a call, and the layers look it up. A plain
    `nn.Sequential` is given x alone. To run something that is called otherwise, hold the gate by hand,
    `with model.gate.hold(model.gate(y)): model.backbone(…)`; for soft gates call it inside `model.gate.mix(weights)`.

    Set `gradient_checkpointing` here, not on the backbone inside: blocks that are computed again in the backward pass
    then find the gate of their own pass.

    Shapes: as the backbone's; y (B,) int64 in [0, num_classes], one for all, or None, which is no class for all.

    Raises:
        ValueError: For labels of classes that were dropped, on the host; on a device, and compiled, they are out of
            range. For another number of labels than images.
    """

    def __init__(self, backbone: nn.Module, gate: ClassGate) -> None:
        super().__init__()
        self.gate = gate
        self.backbone = backbone
        self.gradient_checkpointing = isinstance(backbone, DiT | UNet) and backbone.gradient_checkpointing

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the backbone is told to compute its blocks again in the backward pass."""
        return self._recomputing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self._recomputing = on
        self.backbone.gradient_checkpointing = on  # pyright: ignore[reportArgumentType]

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        y: Tensor | None = None,
        s: Tensor | None = None,
        *,
        augment: Tensor | None = None,
    ) -> Tensor:
        if y is None and self.gate.no_class != LEARNGENES_ONLY:
            y = torch.full(x.shape[:1], self.gate.num_classes, device=x.device)
        if y is not None:
            if y.shape not in ((), (1,), x.shape[:1]):
                raise ValueError(
                    f"a batch of {len(x)} has one label for all or {len(x)}, got a tensor {tuple(y.shape)}"
                )
            y = y.expand(len(x))
        gating = self.gate(y)
        if isinstance(gating, Assigned) and (gating.mode == "segments" or (gating.mode == "auto" and sorts(x))):
            gating = gating.segments()
            x = x.index_select(0, gating.order)
            c_noise, y, s, augment = (
                None if part is None else part.index_select(0, gating.order) for part in (c_noise, y, s, augment)
            )
        with self.gate.hold(gating, recomputing=self._recomputing):
            out = called(self.backbone, x, c_noise, y, s, augment)
        return out.index_select(0, gating.inverse) if isinstance(gating, Segments) else out

    def tables(self) -> dict[str, ClassRows]:
        """Return the label tables by their names in the backbone."""
        return {name: part for name, part in self.backbone.named_modules() if isinstance(part, ClassRows)}

    @abc.abstractmethod
    def plain_layout(self) -> dict[str, Any]:
        """Return, for JSON, what must be known beside the weights and the dense backbone to build it again."""


def sorts(x: Tensor) -> bool:
    """Tell whether a pass over this batch sorts it by tailor.

    A CPU does: there a product over a few images costs no more than its share. A GPU would wait for the host to know
    the sizes of segments, and compiled code would be compiled anew for each.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


@final
class Decomposed(Gated):
    """A backbone with decomposed kernels and the gate that drives them.

    Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models" (arXiv 2408.07337).
    """

    def linears(self) -> dict[str, KINDLinear]:
        """Return the decomposed layers by their names in the backbone."""
        return {name: part for name, part in self.backbone.named_modules() if isinstance(part, KINDLinear)}

    def layout(self) -> Layout:
        """Return the structure, from which `blank` builds a model that these weights fit."""
        ranks = {n: (p.learngene_sigma.shape[0], p.tailor_sigma.shape[1]) for n, p in self.linears().items()}
        return Layout(class_to_tailor=self.gate.class_to_tailor, ranks=ranks, no_class=self.gate.no_class)

    def plain_layout(self) -> dict[str, Any]:
        return self.layout().plain()


def check_decomposed(model: object) -> None:
    """Refuse what is not a decomposed backbone, such as the `Denoiser` around one.

    Raises:
        ValueError: Saying what to give.
    """
    if not isinstance(model, Decomposed):
        raise ValueError(  # noqa: TRY004  as for every bad input
            f"a Decomposed backbone is wanted, got a {type(model).__name__}: of a Denoiser give the .backbone, and take"
            " what comes back by its .around(...)"
        )


def blank(backbone: nn.Module, layout: Layout) -> Decomposed:
    """Return a decomposed copy of a dense backbone whose components are 0, for weights that are loaded next.

    Raises:
        ValueError: If the layout names a layer that is no `nn.Linear` of the backbone, or another number of classes.
    """
    gate = ClassGate(layout.class_to_tailor, layout.no_class)
    backbone = copy.deepcopy(backbone)
    if gate.num_classes == 0:
        _forget_classes(backbone)
    dense = {name: part for name, part in backbone.named_modules() if type(part) is nn.Linear}
    unknown = sorted(layout.ranks.keys() - dense.keys())
    if unknown:
        raise ValueError(
            f"the layout is of another backbone: {len(unknown)} of its {len(layout.ranks)} layers are no nn.Linear of"
            f" this one, such as {unknown[0]}; give the backbone that it was made for, as its config.json describes it"
        )
    for name, (learngenes, rank) in layout.ranks.items():
        kernel = dense[name].weight
        m, n = kernel.shape
        count = len(gate.tailors)
        fixed = Components(*(kernel.new_zeros(shape) for shape in ((m, learngenes), (learngenes,), (learngenes, n))))
        tailors = Components(
            *(kernel.new_zeros(shape) for shape in ((count, m, rank), (count, rank), (count, rank, n)))
        )
        backbone.set_submodule(name, KINDLinear(fixed, tailors, dense[name].bias, gate.switch))
    return assembled(backbone, gate, device=next(iter(dense.values())).weight.device)


def assembled(backbone: nn.Module, gate: ClassGate, *, device: torch.device) -> Decomposed:
    """Return the model of a backbone whose kernels are decomposed already, after cutting its label tables in place."""
    split_tables(backbone, gate.class_to_tailor)
    return _trainable(placed(Decomposed(backbone, gate), device)).train(backbone.training)


def split_tables(backbone: nn.Module, class_to_tailor: Sequence[int]) -> None:
    """Cut the label tables of a backbone, in place, into the rows of the classes and that of "no class".

    Raises:
        ValueError: If a table is of another number of classes.
    """
    tables = {name: part for name, part in backbone.named_modules() if isinstance(part, LabelTable)}
    for name, table in tables.items():
        backbone.set_submodule(name, ClassRows.split(table, class_to_tailor))


def tell_classes(backbone: nn.Module, num_classes: int) -> None:
    """Have the arguments that rebuild one of our backbones name the number of classes that its label table has now.

    Of none they name one: a backbone built without classes has no table, and the row of "no class" is still there.
    """
    match backbone:
        case DiT() | UNet():
            backbone.arguments = backbone.arguments | {"num_classes": max(num_classes, 1)}
        case _:  # somebody else's is rebuilt by somebody else
            pass


Recut = Callable[[str, KINDLinear], tuple[Components, Components]]
Rows = Callable[[str, ClassRows], Tensor]


@torch.no_grad()
def rebuilt(model: Decomposed, class_to_tailor: Sequence[int], recut: Recut, rows: Rows) -> Decomposed:
    """Return a copy with another class map, the components (learngenes, tailors) and the label rows that are given.

    All of it is trained, whatever was frozen before.
    """
    gate = ClassGate(class_to_tailor, model.gate.no_class)
    backbone = copy.deepcopy(model.backbone)
    for name, linear in model.linears().items():
        learngenes, tailors = recut(name, linear)
        backbone.set_submodule(name, KINDLinear(learngenes, tailors, linear.bias, gate.switch))
    for name, table in model.tables().items():
        backbone.set_submodule(name, ClassRows(rows(name, table), table.no_class, class_to_tailor))
    if model.tables():
        tell_classes(backbone, gate.num_classes)
    copied = placed(Decomposed(backbone, gate), next(model.parameters()).device)
    copied.gradient_checkpointing = model.gradient_checkpointing
    copied.gate.mode = model.gate.mode
    return _trainable(copied).train(model.training)


def _forget_classes(backbone: nn.Module) -> None:
    """Leave label tables nothing but the row of "no class", in place."""
    for name, table in list(backbone.named_modules()):
        if isinstance(table, LabelTable):
            alone = LabelTable(0, table.weight.shape[1])
            alone.weight = nn.Parameter(table.weight.detach()[-1:])
            backbone.set_submodule(name, alone)


def _trainable(model: T) -> T:
    """Let everything be trained, but for parameters without elements, which would go unused."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.numel() > 0)
    return model


def placed(model: T, device: torch.device) -> T:
    """Bring the buffers to the weights, unless those are to be loaded yet: nothing would bring the buffers back."""
    return model if any(p.device.type == "meta" for p in model.parameters()) else model.to(device)
