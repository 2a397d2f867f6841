"""Whose class a sample is of, the gate's or the label's: how far training has diverted classes into their tailors."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.evaluation.extraction import Progress
from genflow.evaluation.protocol import Figure
from genflow.kind import Decomposed, with_gate_of
from genflow.sampling.generate import generate


@dataclass(frozen=True, kw_only=True)
class GateSwap:
    """What samples of every gate and every label are read as, all from the same N seeds.

    A gate is the tailor of some classes; G of them, and L labels that were asked for. `alone` is without any tailor.
    Shapes: read (G, L, N) and alone (L, N), int64, classes of the reader's own.
    """

    labels: tuple[int, ...]
    gates: tuple[tuple[int, ...], ...]
    """The classes of each tailor."""
    meant: Mapping[int, int]
    """What the reader calls each class of the model."""
    read: Tensor
    alone: Tensor

    @property
    def swapped(self) -> Tensor:
        """Where a label is asked for that is not of the gate: (G, L) bool."""
        return torch.tensor([[label not in gate for label in self.labels] for gate in self.gates])

    @property
    def by_gate(self) -> Tensor:
        """Share of samples that are read as a class of the gate: (G, L) float64."""
        return self._of_gate().double().mean(dim=2)

    @property
    def by_label(self) -> Tensor:
        """Share of samples that are read as the label: (G, L) float64."""
        return self._of_label(self.read).double().mean(dim=2)

    @property
    def alone_by_label(self) -> Tensor:
        """Share of samples without any tailor that are read as the label: (L,) float64."""
        return self._of_label(self.alone).double().mean(dim=1)

    @property
    def follows_gate(self) -> Figure:
        """Share of samples asked for another label that are read as a class of the gate."""
        return _over_seeds(self._of_gate()[self.swapped])

    @property
    def follows_label(self) -> Figure:
        """Share of samples asked for another label that are read as that label."""
        return _over_seeds(self._of_label(self.read)[self.swapped])

    @property
    def own(self) -> Figure:
        """Share of samples asked for a label under its own gate that are read as that label."""
        return _over_seeds(self._of_label(self.read)[~self.swapped])

    @property
    def learngenes_alone(self) -> Figure:
        """Share of samples without any tailor that are read as the label; 1 / L at most if labels say nothing."""
        return _over_seeds(self._of_label(self.alone))

    def plain(self) -> dict[str, Any]:
        """Return all of it as lists and numbers, for JSON."""
        named = {
            "follows_gate": self.follows_gate,
            "follows_label": self.follows_label,
            "own_gate": self.own,
            "learngenes_alone": self.learngenes_alone,
        }
        return {
            "labels": list(self.labels),
            "gates": [list(gate) for gate in self.gates],
            "read_as_gate": self.by_gate.tolist(),
            "read_as_label": self.by_label.tolist(),
            "learngenes_alone_read_as_label": self.alone_by_label.tolist(),
            **{name: {"value": f.value, "standard_error": f.standard_error} for name, f in named.items()},
        }

    def _of_gate(self) -> Tensor:
        wanted = [torch.tensor([self.meant[c] for c in gate]) for gate in self.gates]
        return torch.stack([torch.isin(read, each) for read, each in zip(self.read, wanted, strict=True)])

    def _of_label(self, read: Tensor) -> Tensor:
        return read == torch.tensor([self.meant[label] for label in self.labels])[:, None]


def gate_swap(
    denoiser: Denoiser,
    seeds: Sequence[int],
    read: Callable[[Tensor], Tensor],
    meant: Mapping[int, int],
    *,
    labels: Sequence[int] | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float = 1.0,
    progress: Progress = iter,
) -> GateSwap:
    """Draw every label under every gate from the same seeds, and read which class each sample is of.

    After KIND's pre-training (arXiv 2408.07337) a sample should be of the gate's class, whatever label is asked for.
    That is a test of ours: whether the paper has one is unconfirmed.

    Args:
        denoiser: around a decomposed backbone.
        seeds: N of them, the same for each pair of gate and label.
        read: from images (B, C, H, W) uint8 to their classes (B,) int64.
        meant: what ``read`` calls each class that the model has.
        labels: those to ask for, whose tailors are the gates; all by default.
        steps: as in ``generate``.
        sampler: as in ``generate``.
        guidance: as in ``generate``.
        progress: wraps the numbers of the gates, learngenes alone being the first.

    Raises:
        ValueError: for a dense model, labels that it does not have or that ``meant`` lacks, and where all classes have
            one tailor, so that there is nothing to swap.
    """
    asked = tuple(denoiser.classes if labels is None else labels)
    gates = gates_of(denoiser, asked)
    if not can_swap(denoiser, asked):
        raise ValueError(
            f"classes {list(asked)} have one gate between them: a swap takes two at least with different tailors"
        )
    if missing := sorted({c for gate in (asked, *gates) for c in gate} - meant.keys()):
        raise ValueError(f"meant names no class for the labels {missing}: it must for all that the model has")
    found: list[Tensor] = []
    for number in progress(range(len(gates) + 1)):
        fixed = under_gate(denoiser, gates[number - 1][0] if number else None)
        images = generate(
            fixed,
            [seed for _ in asked for seed in seeds],
            labels=[label for label in asked for _ in seeds],
            steps=steps,
            sampler=sampler,
            guidance=guidance,
        )
        found.append(torch.cat([read(part).cpu() for part in images.split(256)]).view(len(asked), len(seeds)))
    return GateSwap(labels=asked, gates=gates, meant=dict(meant), read=torch.stack(found[1:]), alone=found[0])


def gates_of(denoiser: Denoiser, labels: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the tailors of some labels, each as the classes that have it, in the order of the labels.

    Raises ``ValueError`` for a dense model, and for labels that it does not have.
    """
    gate = _decomposed(denoiser).gate
    unknown = sorted({*labels} - {*gate.kept})
    if unknown:
        raise ValueError(f"this model has classes {list(gate.kept)}, and was asked for {unknown}")
    tailors = dict.fromkeys(gate.class_to_tailor[label] for label in labels)
    return tuple(tuple(c for c in gate.kept if gate.class_to_tailor[c] == t) for t in tailors if t >= 0)


def can_swap(denoiser: Denoiser, labels: Sequence[int]) -> bool:
    """Tell whether some label can be asked for under another's gate; raises ``ValueError`` for a dense model."""
    gate = _decomposed(denoiser).gate
    return len({gate.class_to_tailor[label] for label in labels}) > 1


def under_gate(denoiser: Denoiser, label: int | None) -> Denoiser:
    """Return the model with the gate of one class for every label; None is learngenes only.

    Raises ``ValueError`` for a dense model, and for a class that it does not have.
    """
    return denoiser.around(with_gate_of(_decomposed(denoiser), label))


def _decomposed(denoiser: Denoiser) -> Decomposed:
    match denoiser.backbone:
        case Decomposed() as model:
            return model
        case _:
            raise ValueError("this is a dense model, which has no gate: give one that KIND decomposed")


def _over_seeds(hits: Tensor) -> Figure:
    """Return the mean of hits (…, N), whose error is told by the spread over the N seeds."""
    shares = hits.flatten(0, -2).double().mean(dim=0).tolist()  # (N,)
    if len(shares) == 1:
        return Figure(value=shares[0])
    return Figure(value=statistics.fmean(shares), standard_error=statistics.stdev(shares) / len(shares) ** 0.5)
