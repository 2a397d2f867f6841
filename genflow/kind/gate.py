"""Which tailors are on for which image: the class gate, and how it reaches the layers.

A decomposed kernel is `W(y) = Σ_{i in learngenes} u_i σ_i v_i + Σ_{j in tailor(y)} u_j σ_j v_j`. One gate serves all
layers. It is a module beside the backbone; it and the layers share one `Switch`, an ordinary attribute of each, so
that a deep copy (an EMA) gets a switch of its own that all its layers share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, SupportsIndex, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEARNGENES_ONLY = -1  # in a class map: no tailor is on for this class
DROPPED = -2  # in a class map: the class was cut off, with its tailor and its label row
Mode = Literal["auto", "mask", "gather", "segments"]  # how tailors are computed; all are the same function


@dataclasses.dataclass(frozen=True)
class Closed:
    """No tailor is on, for any image."""


@dataclasses.dataclass(frozen=True)
class Assigned:
    """Each image has one tailor on, or none.

    Shapes: tailors (B,) int64, the place of a tailor in the layers' tensors, -1 for none.
    """

    tailors: Tensor
    mode: Mode = "auto"

    def segments(self) -> Segments:
        """Sort the batch by tailor; this waits for the device."""
        order = self.tailors.argsort(stable=True)  # (B,)
        found, counts = torch.unique_consecutive(self.tailors[order], return_counts=True)
        sizes = tuple(zip(found.tolist(), counts.tolist(), strict=True))
        return Segments(order, order.argsort(), sizes)

    def weights(self, count: int) -> Tensor:
        """Return the same gate as weights of all tailors, 0 or 1: (B, count) int64."""
        return F.one_hot(self.tailors + 1, count + 1)[:, 1:]


@dataclasses.dataclass(frozen=True)
class Segments:
    """Each image has one tailor on, or none, and the batch is sorted by tailor: images with one stand together.

    `x[order]` is sorted, `sorted[inverse]` is `x`; layers see the sorted batch, and of this `sizes` alone.

    Shapes: order and inverse (B,). `sizes` holds (tailor, images), rising, of the tailors that occur; -1 is none.
    """

    order: Tensor
    inverse: Tensor
    sizes: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Soft gates: each image has all tailors on, each with a weight.

    Shapes: weights (B, C) float, of the tailors in the order in which the layers hold them.
    Source: softmax gates as in DivControl (arXiv 2507.23620); KIND itself has binary ones.
    """

    weights: Tensor


Gating = Closed | Assigned | Segments | Mixed


class Switch:
    """What the layers of one backbone read in a pass: the gating of the present batch, None between passes."""

    def __init__(self) -> None:
        self.gating: Gating | None = None
        self.mixture: Tensor | None = None  # what stands in for the tailors of classes

    def __deepcopy__(self, _: dict[int, object]) -> Switch:
        return Switch()  # a copy is between passes, and of nobody's mixture


def whole_numbers(values: Iterable[SupportsIndex], what: str) -> tuple[int, ...]:
    """Return numbers of classes or tailors, of any integer type, as plain ones.

    Raises:
        ValueError: For what is none, or no list of any.
    """
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        raise ValueError(f"{what} are a list of whole numbers, got {values!r}") from None


@final
class ClassGate(nn.Module):
    """From labels to the tailors that are on: `g(y) = [1 … 1 | e_tailor(y)]`, binary, the same in all layers.

    `class_to_tailor` names the tailor of each class, by any integers from 0; classes may share one, -1 is "learngenes
    only" and -2 a class that was dropped. `no_class` is the tailor of the label `num_classes`, "no class": -1, or one
    that no class has. `tailors` are the names that occur, rising, which is the order in which the layers hold them. The
    map belongs to the structure: it is saved as the layout of the model, not with the weights.

    `mode` is how layers compute what tailors add, the same function up to rounding: "mask" (all tailors, most of them
    times 0), "gather" (a copy of its tailor for each image) or "segments" (the batch sorted by tailor, which waits for
    a GPU and is not compiled); "auto" chooses by cost, for each batch. With "gather" an extracted model makes the
    same products as the whole one on any device; with it or "mask" there are second derivatives and `torch.func`.

    Shapes: y (B,) int64 in [0, num_classes] or None (no class).
    Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models" (arXiv 2408.07337). Unconfirmed
    there: what the label "no class" does.

    Raises:
        ValueError: For a class map with other negative numbers, for a tailor of "no class" that a class has, and for
            labels of dropped classes on the host; on a device these are out of range in the layers' lookups.
    """

    def __init__(self, class_to_tailor: Sequence[int], no_class: int = LEARNGENES_ONLY) -> None:
        super().__init__()
        class_to_tailor = whole_numbers(class_to_tailor, "the tailors of a class map")
        if any(tailor < DROPPED for tailor in class_to_tailor):
            raise ValueError(
                f"a class map holds tailors from 0, -1 (learngenes only) or -2 (dropped); got {class_to_tailor}"
            )
        if no_class < LEARNGENES_ONLY or (no_class >= 0 and no_class in class_to_tailor):
            raise ValueError(f'the tailor of "no class" is -1, or one that no class has; got {no_class}')
        self.class_to_tailor = class_to_tailor
        self.no_class = no_class
        self.tailors = tuple(sorted({tailor for tailor in (*class_to_tailor, no_class) if tailor >= 0}))
        # A dropped class has a place beyond the last, where every lookup fails like that of a label out of range.
        place = {tailor: i for i, tailor in enumerate((*self.tailors, DROPPED))}
        places = [place.get(tailor, LEARNGENES_ONLY) for tailor in (*class_to_tailor, no_class)]
        self.places: Tensor
        self.register_buffer("places", torch.tensor(places), persistent=False)  # (num_classes + 1,)
        self.switch = Switch()
        self.mode = "auto"

    @property
    def mode(self) -> Mode:
        """How layers compute what tailors add."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"the mode of a gate is one of {', '.join(get_args(Mode))}; got {mode!r}")
        self._mode: Mode = mode

    @property
    def num_classes(self) -> int:
        """The number of classes, dropped ones included."""
        return len(self.class_to_tailor)

    @property
    def kept(self) -> tuple[int, ...]:
        """The classes that have not been dropped, rising."""
        return tuple(c for c, tailor in enumerate(self.class_to_tailor) if tailor != DROPPED)

    def forward(self, y: Tensor | None) -> Gating:
        if y is None:
            if self.no_class >= 0:
                raise ValueError(f'"no class" has a tailor here: give labels, {self.num_classes} for no class')
            return Closed()
        tailors = self.places.index_select(0, y)  # (B,)
        # A look at labels on a device would wait for it in every pass: whoever brings them there looks at them before.
        # Neither does compiled code look, whose graph it would break.
        lacks = len(self.kept) < self.num_classes and y.device.type == "cpu" and not torch.compiler.is_compiling()
        if lacks and bool((dropped := tailors == len(self.tailors)).any()):
            asked = sorted(set(y[dropped].tolist()))
            raise ValueError(
                f"this model was extracted without classes {asked}: it has {list(self.kept)}, and {self.num_classes} "
                "for no class"
            )
        own = Assigned(tailors, self.mode)
        mixture = self.switch.mixture
        if mixture is None:
            return own
        if mixture.ndim == 2 and len(mixture) != len(y):
            raise ValueError(
                f"there are mixtures for {len(mixture)} images, and the network got {len(y)}, which guidance doubles:"
                " give one for each, or (C,) weights for all"
            )
        known = (y < self.num_classes)[:, None]  # (B, 1)
        return Mixed(torch.where(known, mixture, own.weights(len(self.tailors))))

    @contextlib.contextmanager
    def mix(self, weights: Tensor) -> Iterator[None]:
        """Give images of any class this mixture of tailors inside a `with` block, in place of the tailor of the class.

        The model is called as ever, from within a `Denoiser` too; a label still chooses its row of the label table,
        and "no class" stays what it is, so that guidance has the same meaning.

        Shapes: weights (C,), for every image, or (B, C) for the B images that the network gets in each call, of the
        tailors in the order of `tailors`.
        Source: softmax gates as in DivControl (arXiv 2507.23620); KIND itself has binary ones.

        Raises:
            ValueError: For weights of another number of tailors, and in the call of another number of images.
        """
        if weights.shape[-1:] != (len(self.tailors),) or weights.ndim > 2:
            raise ValueError(
                f"there are {len(self.tailors)} tailors to mix, and weights have shape {tuple(weights.shape)}"
            )
        before = self.switch.mixture
        self.switch.mixture = weights
        try:
            yield
        finally:
            self.switch.mixture = before

    @contextlib.contextmanager
    def hold(self, gating: Gating, *, recomputing: bool = False) -> Iterator[None]:
        """Have the layers see this gating inside a `with` block.

        With `recomputing`, blocks that are computed again in the backward pass see it too, whatever passes came
        between: what autograd saves remembers the gating, and a checkpointed block fetches its saved inputs just before
        it runs. Compiled code needs none of this, since there the gating is an input of the block.
        """
        switch = self.switch
        before = switch.gating
        switch.gating = gating

        def pack(saved: Tensor) -> Tensor:
            return saved.detach()  # an output that saved itself would never be freed

        def unpack(saved: Tensor) -> Tensor:
            switch.gating = gating
            return saved

        try:
            if recomputing and not torch.compiler.is_compiling():
                with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                    yield
            else:
                yield
        finally:
            switch.gating = before
