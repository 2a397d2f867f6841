"""Take decomposed models apart and put them together: learngenes go anywhere, tailors with their classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genflow.kind.gate import DROPPED, ClassGate, whole_numbers
from genflow.kind.labels import ClassRows
from genflow.kind.linear import Components, KINDLinear, check_rank
from genflow.kind.model import Decomposed, check_decomposed, rebuilt


def extract(model: Decomposed, classes: Iterable[int], *, max_params: int | None = None) -> Decomposed:
    """Return a smaller copy for some classes: all that is shared, and their tailors and label rows.

    Nothing is retrained; labels keep their numbers, and those of other classes are refused from then on. With
    `max_params` learngenes are left out too, those with the smallest part in the energy of their kernel a parameter,
    `(σ_i |u_i| |v_i|)² / Σ_G (…)² / (m + n + 1)`, until the model has no more parameters; the result then differs.

    Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models" (arXiv 2408.07337); whether the
    paper leaves out learngenes is unconfirmed.

    Raises:
        ValueError: For classes that the model does not have or that are not whole numbers, if even one learngene a
            layer is too much, and for what is no decomposed backbone.
    """
    check_decomposed(model)
    gate, classes = model.gate, sorted(set(whole_numbers(classes, "classes")))
    _check_classes(gate, classes)
    class_to_tailor = [t if c in classes else DROPPED for c, t in enumerate(gate.class_to_tailor)]
    chosen = _places(gate, ClassGate(class_to_tailor, gate.no_class).tailors)

    def rows(_: str, table: ClassRows) -> Tensor:
        return table.rows[[gate.kept.index(c) for c in classes]]

    def recut(_: str, linear: KINDLinear) -> tuple[Components, Components]:
        return linear.learngenes, linear.tailors.select(chosen)

    small = rebuilt(model, class_to_tailor, recut, rows)
    if max_params is None:
        return small
    kept = _affordable(small, max_params)

    def truncate(name: str, linear: KINDLinear) -> tuple[Components, Components]:
        g, on = linear.learngenes, kept[name]
        return Components(g.u[:, on], g.sigma[on], g.v[on]), linear.tailors

    return rebuilt(small, class_to_tailor, truncate, lambda _, table: table.rows)


def recombine(parts: Sequence[Decomposed]) -> Decomposed:
    """Return one model with the classes of several that were extracted from the same one.

    Learngenes, and whatever else is shared, must be equal in all parts, and so must tailors that two of them hold.
    `recombine` of the parts of a model, whichever way it was cut, is that model, bit by bit.

    Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models" (arXiv 2408.07337).

    Raises:
        ValueError: If there are no parts, if they differ in what they share (the first tensor that does is named), and
            for what is no decomposed backbone.
    """
    if not parts:
        raise ValueError("there is nothing to recombine: give one decomposed model at least")
    for part in parts:
        check_decomposed(part)
    first = parts[0]
    for one, other in itertools.combinations(parts, 2):  # two may share what the first has not
        _check_same_stock(one, other)
    class_to_tailor = [_joined(c, parts) for c in range(first.gate.num_classes)]
    gate = ClassGate(class_to_tailor, first.gate.no_class)
    tailor_home = [next(p for p in parts if t in p.gate.tailors) for t in gate.tailors]
    class_home = [next(p for p in parts if c in p.gate.kept) for c in gate.kept]

    def recut(name: str, linear: KINDLinear) -> tuple[Components, Components]:
        blocks = [
            home.linears()[name].tailors.select(_places(home.gate, [tailor]))
            for tailor, home in zip(gate.tailors, tailor_home, strict=True)
        ]
        return linear.learngenes, _stacked(blocks) if blocks else linear.tailors

    def rows(name: str, table: ClassRows) -> Tensor:
        taken = [
            home.tables()[name].rows[home.gate.kept.index(c)] for c, home in zip(gate.kept, class_home, strict=True)
        ]
        return torch.stack(taken) if taken else table.rows

    return rebuilt(first, class_to_tailor, recut, rows)


def add_tailors(
    model: Decomposed,
    count: int,
    *,
    rank: int | None = None,
    init: Literal["random", "silent"] = "random",
    scale: float = 0.3,
    generator: torch.Generator | None = None,
) -> Decomposed:
    """Return a copy with so many new classes, each with a tailor of its own and a label row.

    Their labels follow those there are, so that "no class" moves up by `count`. Columns of u and rows of v are Gaussian
    of unit length, `σ = scale · mean |σ_G|` of the same kernel; with "silent" σ is 0, which leaves the function as it
    is, and u and v without a gradient in the first step. A new label row is a copy of that of "no class".

    `rank` is that of the tailors already held; where there are none it may be chosen, and is what it was if left out.
    Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models" (arXiv 2408.07337), which says
    random; the scale, and the start of the rows, are unconfirmed.

    Raises:
        ValueError: For a count below 1, a rank that is not that of the tailors held, and one above min(m, n) of a
            kernel or below 1, another `init` than those two, a scale of random tailors that is not positive, and for
            what is no decomposed backbone.
    """
    check_decomposed(model)
    if count < 1:
        raise ValueError(f"at least one tailor can be added, got {count}")
    if init not in ("random", "silent"):
        raise ValueError(f'new tailors start "random" or "silent", got {init!r}')
    if init == "random" and not 0 < scale < math.inf:
        raise ValueError(f"the scale of random tailors must be positive, got {scale:g}: silent ones start at 0")
    gate = model.gate
    fresh = max(gate.tailors, default=-1) + 1
    size = scale if init == "random" else 0.0
    class_to_tailor = [*gate.class_to_tailor, *range(fresh, fresh + count)]

    def recut(name: str, linear: KINDLinear) -> tuple[Components, Components]:
        held = linear.tailor_sigma.shape[1]
        if gate.tailors and rank not in (None, held):
            raise ValueError(f"the tailors of {name} have rank {held}, and new ones must too; got {rank}")
        wanted = held if rank is None else rank
        check_rank(wanted, name, (linear.learngene_u.shape[0], linear.learngene_v.shape[1]))
        new = _random_tailors(linear, count, wanted, size, generator)
        return linear.learngenes, _stacked([linear.tailors, new]) if gate.tailors else new

    def rows(_: str, table: ClassRows) -> Tensor:
        return torch.cat([table.rows, table.no_class.expand(count, -1)])

    return rebuilt(model, class_to_tailor, recut, rows)


def remove_tailors(model: Decomposed, classes: Collection[int] | None = None) -> Decomposed:
    """Return a copy without these classes (all, if left out), as if they had never been; later labels move down.

    A tailor goes with the last of its classes, and that of "no class" never. Without any class the model is its
    learngenes: add tailors to transfer them. Classes that were dropped before lose their labels too. Label tables are
    ours (`genflow.nn.embeddings.LabelTable`): a network that has one of another make must be told of its classes by
    hand, here and by `add_tailors`.

    Raises:
        ValueError: For classes out of range, and for what is no decomposed backbone.
    """
    check_decomposed(model)
    gate = model.gate
    gone = set(range(gate.num_classes) if classes is None else whole_numbers(classes, "classes"))
    if outside := sorted(gone - set(range(gate.num_classes))):
        raise ValueError(f"this model has classes 0 to {gate.num_classes - 1}, and was asked to remove {outside}")
    class_to_tailor = [t for c, t in enumerate(gate.class_to_tailor) if c not in gone]
    chosen = _places(gate, ClassGate(class_to_tailor, gate.no_class).tailors)
    stay = [i for i, c in enumerate(gate.kept) if c not in gone]

    def recut(_: str, linear: KINDLinear) -> tuple[Components, Components]:
        return linear.learngenes, linear.tailors.select(chosen)

    return rebuilt(model, class_to_tailor, recut, lambda _, table: table.rows[stay])


def freeze(model: Decomposed, part: Literal["learngenes", "tailors"]) -> None:
    """Train only the other part from now on: tailors and label rows of the classes, or all that is shared.

    "learngenes" is the transfer to new classes: what is frozen includes biases, embeddings and the row of "no class".
    Models that are made of this one are trained whole again.

    Raises:
        ValueError: For another part, for a model with a tailor of "no class", which lies among the others and belongs
            to no class, and for what is no decomposed backbone.
    """
    check_decomposed(model)
    if model.gate.no_class >= 0:
        raise ValueError(
            'a model with a tailor of "no class", which is shared and lies among the others, is trained whole: freeze'
            ' nothing (in a recipe, surgery.trains = "all")'
        )
    if part not in ("learngenes", "tailors"):
        raise ValueError(f'what can be frozen is "learngenes" or "tailors", got {part!r}')
    own = {id(p) for p in class_parameters(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.numel() > 0 and (id(parameter) in own) == (part == "learngenes"))


def class_parameters(model: Decomposed) -> list[Tensor]:
    """Return what belongs to classes: the tailors of all layers, and the label rows."""
    tailors = [p for part in model.linears().values() for p in (part.tailor_u, part.tailor_sigma, part.tailor_v)]
    return [*tailors, *(table.rows for table in model.tables().values())]


def _random_tailors(
    linear: KINDLinear, count: int, rank: int, scale: float, generator: torch.Generator | None
) -> Components:
    g = linear.learngenes
    (m, _), n = g.u.shape, g.v.shape[1]
    # Drawn on the host, so that a seed gives the same tailors on any device.
    u = F.normalize(torch.randn(count, m, rank, generator=generator), dim=1).to(g.u)
    v = F.normalize(torch.randn(count, rank, n, generator=generator), dim=2).to(g.v)
    sigma = (scale * g.sigma.abs().mean()).expand(count, rank).clone()
    return Components(u, sigma, v)


def _stacked(blocks: Iterable[Components]) -> Components:
    blocks = list(blocks)
    return Components(
        torch.cat([b.u for b in blocks]), torch.cat([b.sigma for b in blocks]), torch.cat([b.v for b in blocks])
    )


def _places(gate: ClassGate, tailors: Iterable[int]) -> Tensor:
    return torch.tensor([gate.tailors.index(t) for t in tailors], dtype=torch.int64)


def _joined(c: int, parts: Sequence[Decomposed]) -> int:
    """Return the tailor of a class in the joint model: that of the part which has the class."""
    return next((p.gate.class_to_tailor[c] for p in parts if c in p.gate.kept), DROPPED)


def _check_classes(gate: ClassGate, classes: Collection[int]) -> None:
    unknown = sorted(set(classes) - set(gate.kept))
    if unknown:
        raise ValueError(f"this model has classes {list(gate.kept)}, and was asked for {unknown}")


def _check_same_stock(one: Decomposed, other: Decomposed) -> None:
    """Refuse models that are not parts of one: what both hold must be equal."""
    if one.gate.num_classes != other.gate.num_classes:
        raise ValueError(
            f"parts of one model have as many labels, and these have {one.gate.num_classes} and"
            f" {other.gate.num_classes}: to have new classes beside the old ones, grow the whole model without dropping"
            " any, and train what is extracted of it"
        )
    if one.gate.no_class != other.gate.no_class:
        raise ValueError('these are not parts of one model: "no class" has another tailor')
    for c in set(one.gate.kept) & set(other.gate.kept):
        if one.gate.class_to_tailor[c] != other.gate.class_to_tailor[c]:
            raise ValueError(f"these are not parts of one model: class {c} has another tailor")
    here, there = _held(one), _held(other)
    for name in here.keys() & there.keys():
        if not torch.equal(here[name], there[name]):
            raise ValueError(f"these are not parts of one model: {name} differs")
    lacking = {n for n in here.keys() ^ there.keys() if "@" not in n}
    if lacking:
        raise ValueError(f"these are not parts of one model: {min(lacking)} is in one only")


def _held(model: Decomposed) -> dict[str, Tensor]:
    """Return all tensors by name; those of a tailor or a class one by one, as `name@tailor`."""
    held = model.state_dict()
    for name in model.linears():
        for part in ("tailor_u", "tailor_sigma", "tailor_v"):
            key = f"backbone.{name}.{part}"
            stacked = held.pop(key)
            held |= {f"{key}@{t}": stacked[i] for i, t in enumerate(model.gate.tailors)}
    for name in model.tables():
        key = f"backbone.{name}.rows"
        stacked = held.pop(key)
        held |= {f"{key}@{c}": stacked[i] for i, c in enumerate(model.gate.kept)}
    return held


def _affordable(model: Decomposed, max_params: int) -> dict[str, Tensor]:
    """Choose the learngenes of each layer that stay, rising, so that the model has at most `max_params` parameters."""
    ranked: list[tuple[float, str, int, int]] = []
    room = max_params - sum(p.numel() for p in model.parameters())
    kept: dict[str, list[int]] = {}
    for name, linear in model.linears().items():
        g = linear.learngenes
        size = g.u.shape[0] + g.v.shape[1] + 1
        energy = (g.sigma * g.u.norm(dim=0) * g.v.norm(dim=1)).double().square()  # (r,)
        worth = (energy / energy.sum().clamp(min=torch.finfo(torch.float64).tiny)).tolist()
        best = max(range(len(worth)), key=worth.__getitem__)
        kept[name] = [best]  # or the layer would be nothing but its bias
        room += size * (len(worth) - 1)
        ranked += [(share / size, name, i, size) for i, share in enumerate(worth) if i != best]
    if room < 0:
        raise ValueError(f"max_params = {max_params} is too few: {max_params - room} hold one learngene a layer")
    for _, name, i, size in sorted(ranked, key=lambda row: -row[0]):
        if size <= room:
            kept[name].append(i)
            room -= size
    return {name: torch.tensor(sorted(places)) for name, places in kept.items()}
