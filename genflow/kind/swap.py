"""One gate for all labels: tells what a tailor does from what a label does."""

from __future__ import annotations

import torch

from genflow.kind.gate import DROPPED, LEARNGENES_ONLY, ClassGate
from genflow.kind.linear import Components, KINDLinear
from genflow.kind.model import Decomposed, check_decomposed, rebuilt


def with_gate_of(model: Decomposed, label: int | None) -> Decomposed:
    """Return a copy that has the gate of one class for every label: `W(y) = W(label)`; None is learngenes only.

    A label still chooses its row of the label table, and nothing else. "No class" stays what it is, and classes that
    were dropped stay away.

    Raises:
        ValueError: For a class that the model does not have, and for what is no decomposed backbone.
    """
    check_decomposed(model)
    gate = model.gate
    if label is not None and label not in gate.kept:
        raise ValueError(f"this model has classes {list(gate.kept)}, and was asked for the gate of {label}")
    tailor = LEARNGENES_ONLY if label is None else gate.class_to_tailor[label]
    class_to_tailor = [DROPPED if own == DROPPED else tailor for own in gate.class_to_tailor]
    wanted = ClassGate(class_to_tailor, gate.no_class).tailors
    places = torch.tensor([gate.tailors.index(t) for t in wanted], dtype=torch.int64)

    def recut(_: str, linear: KINDLinear) -> tuple[Components, Components]:
        return linear.learngenes, linear.tailors.select(places)

    return rebuilt(model, class_to_tailor, recut, lambda _, table: table.rows)
