"""From a dense backbone to a decomposed one, and back for one class."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from genflow.kind.gate import DROPPED, LEARNGENES_ONLY, ClassGate, whole_numbers
from genflow.kind.linear import Components, KINDLinear
from genflow.kind.model import Decomposed, assembled, check_decomposed


@dataclasses.dataclass(frozen=True, kw_only=True)
class KINDConfig:
    """How to decompose: which layers, how many components of each sort, and whose the tailors are.

    A kernel (m, n) gets `floor(learngenes · min(m, n))` learngenes, at least 1, and a tailor of `tailor_rank`
    components for each name in `class_to_tailor`; `tailor_rank = None` shares out evenly what the learngenes leave.
    Where no class has a tailor, those that are added later have `tailor_rank`, or a tenth of min(m, n).

    Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models" (arXiv 2408.07337). The set of
    layers (q, k, v, o and the two of the MLP) is that of the same authors' DivControl (arXiv 2507.23620). Unconfirmed
    in the paper: the number of components of each sort, the order and the rescaling.

    Args:
        class_to_tailor: The tailor of each class, any integers from 0; -1 is learngenes only. Classes may share one.
        learngenes: Share of min(m, n) that are learngenes, in (0, 1].
        tailor_rank: Components of a tailor, or None.
        linears: Regular expression that the whole name of an `nn.Linear` must match.
        order: "descending" gives the learngenes the largest singular values and each tailor the next ones;
            "interleaved" deals them out in turn, so that all have like energy.
        rescale: Multiply σ so that the active kernels have, in the mean square over classes, the Frobenius norm of the
            kernel that was decomposed. Without it a fresh network starts too quiet.
        no_class: "learngenes": images of "no class", for guidance, have no tailor; "tailor": one of their own.

    Raises:
        ValueError: For values out of range.
    """

    class_to_tailor: tuple[int, ...]
    learngenes: float = 0.27
    tailor_rank: int | None = None
    linears: str = r"(.*\.)?(q|k|v|qkv|o|fc1|fc2)"
    order: Literal["descending", "interleaved"] = "descending"
    rescale: bool = True
    no_class: Literal["learngenes", "tailor"] = "learngenes"

    def __post_init__(self) -> None:
        named = whole_numbers(self.class_to_tailor, "the tailors of a class map")
        object.__setattr__(self, "class_to_tailor", named)
        if not 0 < self.learngenes <= 1:
            raise ValueError(f"learngenes must be a share in (0, 1], got {self.learngenes}")
        if self.tailor_rank is not None and self.tailor_rank < 1:
            raise ValueError(f"tailor_rank must be at least 1, or None for what is left; got {self.tailor_rank}")
        if self.order not in ("descending", "interleaved"):
            raise ValueError(f'order must be "descending" or "interleaved", got {self.order!r}')
        if self.no_class not in ("learngenes", "tailor"):
            raise ValueError(f'no_class must be "learngenes" or "tailor", got {self.no_class!r}')
        if DROPPED in self.class_to_tailor:
            raise ValueError("class_to_tailor holds tailors from 0, or -1: a class is dropped later, by extract")

    def gate(self) -> ClassGate:
        """Return the gate; a tailor of "no class" has the name after those of the classes."""
        match self.no_class:
            case "learngenes":
                return ClassGate(self.class_to_tailor)
            case "tailor":
                return ClassGate(self.class_to_tailor, max(self.class_to_tailor, default=LEARNGENES_ONLY) + 1)
            case _:
                assert_never(self.no_class)


def matching_linears(backbone: nn.Module, pattern: str) -> dict[str, nn.Linear]:
    """Return the `nn.Linear`s whose whole name matches a regular expression, by their names.

    Raises:
        ValueError: If none does (the message names those there are), or if the pattern is no regular expression.
    """
    try:
        known = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    dense = {name: part for name, part in backbone.named_modules() if type(part) is nn.Linear}
    chosen = {name: part for name, part in dense.items() if name and known.fullmatch(name)}
    if not chosen:
        raise ValueError(
            f"no nn.Linear has a name that matches {pattern!r}; this backbone has {_some([*filter(None, dense)])}"
        )
    names = {id(part.weight): name for name, part in reversed(chosen.items())}  # of those that share one, the first
    for name, held in backbone.named_parameters(remove_duplicate=False):
        owner = names.get(id(held), "")
        if owner and name != f"{owner}.weight":
            other = name.removesuffix(".weight")
            raise ValueError(f"{owner} and {other} share one kernel, which cannot be taken apart: leave them out")
    return chosen


@torch.no_grad()
def decompose(backbone: nn.Module, config: KINDConfig) -> Decomposed:
    """Return a decomposed copy of a backbone: each chosen kernel becomes its singular components, dealt out to groups.

    `W = U Σ Vᵀ`; learngenes take their share of the components, each tailor its block of the rest, and others are
    left out. All parameters are free from then on. Biases, embeddings, modulation and convolutions stay dense and
    shared. The label table is cut into the rows of the classes and that of "no class".

    Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models" (arXiv 2408.07337); the
    singular value decomposition of random weights before training as in DivMorph (arXiv 2512.09796).

    Raises:
        ValueError: If no layer matches (the message names those there are), if the components do not fit in a
            kernel, if the class map is of another number of classes than the label table, if the backbone is
            decomposed already, or if two of its layers are one.
    """
    _check_dense(backbone)
    gate = config.gate()
    backbone = copy.deepcopy(backbone)
    chosen = matching_linears(backbone, config.linears)
    owned = gate.places[:-1][gate.places[:-1] >= 0]
    share = torch.bincount(owned, minlength=len(gate.tailors)) / max(gate.num_classes, 1)  # (C,)
    for name, linear in chosen.items():
        learngenes, tailors = _factors(linear.weight, name, share, config)
        backbone.set_submodule(name, KINDLinear(learngenes, tailors, linear.bias, gate.switch))
    return assembled(backbone, gate, device=next(iter(chosen.values())).weight.device)


@torch.no_grad()
def merge(model: Decomposed, label: int | None = None) -> nn.Module:
    """Return the dense backbone of one class: the same layers and shapes as before it was decomposed.

    `W(label) = Σ_G u_i σ_i v_i + Σ_{j in tailor(label)} u_j σ_j v_j`, formed in float32 at least. `None` is the label
    `num_classes`, "no class": as a rule learngenes only. The network still wants its label as an input, for its label
    table.

    Raises:
        ValueError: For a label out of range, or of a class that was dropped, and for what is no decomposed backbone.
    """
    check_decomposed(model)
    gate = model.gate
    if label is not None:
        (label,) = whole_numbers([label], "labels")
    if label is not None and not 0 <= label <= gate.num_classes:
        raise ValueError(f"labels run from 0 to {gate.num_classes}, which is no class; got {label}")
    tailor = gate.no_class if label is None or label == gate.num_classes else gate.class_to_tailor[label]
    if tailor == DROPPED:
        raise ValueError(f"this model was extracted without class {label}: it has {list(gate.kept)}")
    active = [gate.tailors.index(tailor)] if tailor >= 0 else []
    backbone = copy.deepcopy(model.backbone)
    for name, linear in model.linears().items():
        backbone.set_submodule(name, _dense(linear, active))
    for name, table in model.tables().items():
        backbone.set_submodule(name, table.whole())
    return backbone.requires_grad_(True).train(model.training)


def _check_dense(backbone: nn.Module) -> None:
    """Refuse what is decomposed, in part or whole."""
    if any(isinstance(part, KINDLinear) for part in backbone.modules()):
        raise ValueError("this backbone is decomposed already: give the dense one, or merge(model, label) of one class")


def _dense(linear: KINDLinear, active: list[int]) -> nn.Linear:
    kernel = linear.kernel(active)
    m, n = kernel.shape
    dense = nn.Linear(n, m, bias=linear.bias is not None, device="meta")  # no draws from the random generator
    dense.weight = nn.Parameter(kernel)
    if linear.bias is not None:
        dense.bias = nn.Parameter(linear.bias.detach().clone())
    return dense


def _factors(kernel: Tensor, name: str, share: Tensor, config: KINDConfig) -> tuple[Components, Components]:
    """Return learngenes and tailors of a kernel; `share` (C,) of the classes have each tailor."""
    (m, n), count = kernel.shape, len(share)
    full = min(m, n)
    fixed = max(1, int(config.learngenes * full + 1e-9))  # 0.29 · 100 is 28.999…
    rank = config.tailor_rank
    if rank is None:
        rank = (full - fixed) // count if count else max(1, full // 10)  # of those that may be added
    if fixed + count * rank > full or rank < 1:
        fits = (full - fixed) // count if count else 0
        room = f"room for {count} tailors of rank {fits} at most, got {rank}" if fits else f"none for {count} tailors"
        raise ValueError(
            f"{name} has min(m, n) = {full} components: {fixed} learngenes leave {room}. Choose fewer learngenes, a "
            "lower rank, or classes that share"
        )
    wide = kernel.detach().to(torch.promote_types(kernel.dtype, torch.float32))
    u, sigma, v = torch.linalg.svd(wide, full_matrices=False)  # (m, full), (full,), (full, n)
    order = _order(fixed, count, rank, config.order).to(sigma.device)  # (fixed + count · rank,)
    u, sigma, v = u[:, order], sigma[order], v[order]
    if config.rescale:
        blocks = sigma[fixed:].view(count, rank).square().sum(dim=1)  # (C,)
        active = sigma[:fixed].square().sum() + (share.to(blocks) * blocks).sum()
        wanted = wide.square().sum()
        sigma = sigma * torch.where(active > 0, wanted / active, 1.0).sqrt()  # a kernel that starts at 0 stays there
    u, sigma, v = u.to(kernel.dtype), sigma.to(kernel.dtype), v.to(kernel.dtype)
    tailors = Components(
        u[:, fixed:].unflatten(1, (count, rank)).transpose(0, 1),
        sigma[fixed:].view(count, rank),
        v[fixed:].view(count, rank, n),
    )
    return Components(u[:, :fixed], sigma[:fixed], v[:fixed]), tailors


def _order(fixed: int, count: int, rank: int, order: Literal["descending", "interleaved"]) -> Tensor:
    """Return which singular component, in falling order, comes at each place: learngenes first, then the tailors."""
    total = fixed + count * rank
    match order:
        case "descending":
            return torch.arange(total)
        case "interleaved":
            # Each group spreads its members evenly over (0, 1); their ranks in the common line are the components.
            line = [(j + 0.5) / fixed for j in range(fixed)]
            line += [(j + 0.5) / rank for _ in range(count) for j in range(rank)]
            return torch.tensor(line, dtype=torch.float64).argsort(stable=True).argsort()
        case _:
            assert_never(order)


def _some(names: list[str], most: int = 12) -> str:
    if not names:
        return "none at all"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
