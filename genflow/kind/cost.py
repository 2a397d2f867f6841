"""What a decomposed backbone costs: parameters, products and stored bytes, by part."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from genflow.kind.gate import Closed
from genflow.kind.linear import KINDLinear
from genflow.kind.model import Decomposed, check_decomposed
from genflow.nn.calling import taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters, multiply-adds for one image, and bytes in a file."""

    parameters: int
    macs: int
    stored: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """The cost of each part.

    `learngenes`: components for every class. `tailors`: of all classes; their products are those of one, which is what
    an image uses. `rows`: the label rows of the classes. `shared`: all the rest, dense. `total`: the sum.
    """

    learngenes: Cost
    tailors: Cost
    rows: Cost
    shared: Cost

    @property
    def total(self) -> Cost:
        """The sum of all parts."""
        parts = (self.learngenes, self.tailors, self.rows, self.shared)
        return Cost(
            parameters=sum(p.parameters for p in parts),
            macs=sum(p.macs for p in parts),
            stored=sum(p.stored for p in parts),
        )


def info(model: Decomposed, image_shape: Sequence[int]) -> Info:
    """Count a model for inputs of a shape, of images (C, H, W): parameters, bytes, and products with one tailor on.

    A component of a kernel (m, n) has `m + n + 1` parameters and costs `m + n` products a token. Whatever else the
    network multiplies, attention included, is counted as torch's counter does; sums, norms and activations are not.
    Nothing is computed for it, whatever the size of the model and wherever it lies, the meta device included.

    Raises:
        ValueError: For what is no decomposed backbone.
    """
    check_decomposed(model)
    linears = model.linears()
    tokens, total = _trace(model, image_shape)
    learngene_macs = tailor_macs = 0
    for name, linear in linears.items():
        widths = linear.learngene_u.shape[0] + linear.learngene_v.shape[1]
        count, rank = linear.tailor_sigma.shape
        learngene_macs += tokens[name] * widths * linear.learngene_sigma.shape[0]
        tailor_macs += tokens[name] * widths * (rank if count else 0)
    learngenes = [p for part in linears.values() for p in (part.learngene_u, part.learngene_sigma, part.learngene_v)]
    tailors = [p for part in linears.values() for p in (part.tailor_u, part.tailor_sigma, part.tailor_v)]
    rows = [table.rows for table in model.tables().values()]
    taken = {id(p) for p in (*learngenes, *tailors, *rows)}
    stored = model.state_dict(keep_vars=True).values()
    rest = [t for t in stored if id(t) not in taken]
    return Info(
        learngenes=_cost(learngenes, learngene_macs),
        tailors=_cost(tailors, tailor_macs),
        rows=_cost(rows, 0),
        shared=_cost(rest, total - learngene_macs),
    )


def _cost(tensors: Iterable[Tensor], macs: int) -> Cost:
    tensors = list(tensors)
    return Cost(
        parameters=sum(t.numel() for t in tensors if isinstance(t, nn.Parameter)),
        macs=macs,
        stored=sum(t.numel() * t.element_size() for t in tensors),
    )


def _trace(model: Decomposed, image_shape: Sequence[int]) -> tuple[dict[str, int], int]:
    """Return the tokens that each decomposed layer sees of one image, and all products with no tailor on."""
    from torch.utils.flop_counter import FlopCounterMode  # which imports triton

    tokens: dict[str, int] = {}
    names = {id(linear): name for name, linear in model.linears().items()}

    def note(linear: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        name = names[id(linear)]
        tokens[name] = tokens.get(name, 0) + inputs[0].numel() // inputs[0].shape[-1]

    hooks = [part.register_forward_hook(note) for part in model.modules() if isinstance(part, KINDLinear)]
    held = {**dict(model.backbone.named_parameters()), **dict(model.backbone.named_buffers())}
    try:
        # Fake tensors, which know their shapes only, rather than meta ones, which autocast does not know. All floats
        # have one width, whatever the model's: then the inputs fit, and the count is the same.
        with torch.no_grad(), model.gate.hold(Closed()), FakeTensorMode(), FlopCounterMode(display=False) as counter:
            ghosts = {
                name: torch.empty(value.shape, dtype=torch.float32 if value.is_floating_point() else value.dtype)
                for name, value in held.items()
            }
            x, c_noise = torch.empty(1, *image_shape), torch.empty(1)
            inputs = taken(model.backbone, x, c_noise, None, None)
            torch.func.functional_call(model.backbone, ghosts, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return tokens, counter.get_total_flops() // 2
