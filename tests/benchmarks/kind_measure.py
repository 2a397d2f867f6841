"""What ``kind.py`` measures: distances on some of the digits, what a gate diverts, what extraction loses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from genflow import kind
from genflow.data.decoding import Decoding
from genflow.data.images import ImageData, load_images
from genflow.denoiser import Denoiser
from genflow.evaluation.features import FeatureNetwork
from genflow.evaluation.gate_swap import gate_swap
from genflow.evaluation.measurement import RANGES, Beside, Gathered, Measured, Wanted, gather, measure
from genflow.evaluation.networks.digits import DigitFeatures
from genflow.evaluation.sources import FoundImages, Samples, Source
from genflow.pixels import to_unit
from genflow.sampling.generate import generate


class Asked(Source):
    """Samples whose labels are called by their digits again: a model's label 0 is the digit ``first``."""

    def __init__(self, samples: Samples, first: int) -> None:
        self.samples = samples
        self.first = first
        self.count = samples.count
        self.classes = samples.classes

    def unit(self, number: int) -> tuple[Tensor, Tensor | None]:
        images, labels = self.samples.unit(number)
        assert labels is not None
        return images, labels + self.first


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Held-out images of some digits that follow each other, as many samples, and what real ones score."""

    data: ImageData
    first: int
    network: FeatureNetwork
    reference: Gathered
    beside: Beside

    @classmethod
    def load(cls, name: str, size: int, digits: Sequence[int], *, trial: bool = False) -> Judge:
        """Measure these digits; ``trial`` judges by the training images, so that no choice has seen the others."""
        decoding = Decoding(size=size or None)
        train, held_out = (
            data.subset(np.isin(data.labels, digits))  # pyright: ignore[reportArgumentType]
            for data in (load_images(name, split, decoding=decoding) for split in ("train", "test"))
        )
        network = DigitFeatures(name, side=size)  # pyright: ignore[reportArgumentType]
        data = train if trial else held_out
        return cls(
            data=data,
            first=digits[0],
            network=network,
            reference=gather(FoundImages(data), network, Wanted(), None),
            beside=Beside.of(train, held_out, network),
        )

    def measure(self, denoiser: Denoiser, *, ranges: int = RANGES, first_seed: int = 0) -> Measured:
        """Measure a model by its default sampler, asked for the digits as often as there are images of them."""
        labels, count = self.data.labels, len(self.data)
        assert labels is not None
        drawn = [
            Asked(
                Samples(
                    denoiser=denoiser,
                    count=count,
                    first_seed=first_seed + k * count,
                    label=lambda seed: int(labels[seed % count]) - self.first,
                    classes=self.data.class_names,
                ),
                self.first,
            )
            for k in range(ranges)
        ]
        names = self.data.class_names
        return measure(drawn, self.reference, self.network, Wanted(), beside=self.beside, classes=names)

    def read_right(self) -> float:
        """Return the share of the images themselves that the network reads as what they are."""
        assert self.data.labels is not None
        return float((self.read(torch.from_numpy(np.array(self.data.images))).numpy() == self.data.labels).mean())

    def losses(self, denoiser: Denoiser) -> list[float]:
        """Return EDM's loss on the images in each third of its noise levels, from low to high.

        ``E |raw - target|²`` a pixel, ln σ from N(-1.2, 1.2²), of which even ranks are taken, in an order and with
        noise that are always the same.
        """
        x = to_unit(torch.from_numpy(np.array(self.data.images)))
        assert self.data.labels is not None
        y = torch.from_numpy(self.data.labels) - self.first
        law, drawn = NormalDist(-1.2, 1.2), torch.Generator().manual_seed(0)
        ranks = (torch.randperm(len(x), generator=drawn).double() + 0.5) / len(x)
        t = torch.tensor([law.inv_cdf(u) for u in ranks.tolist()], dtype=torch.float64).exp()  # (B,)
        noise = torch.randn(x.shape, generator=drawn)
        found: list[Tensor] = []
        with torch.no_grad():
            for part in torch.arange(len(x)).split(64):
                level = t[part].view(-1, 1, 1, 1).float()
                raw = denoiser(x[part] + level * noise[part], t[part], y[part])
                target = denoiser.parameterization.target(denoiser.schedule, x[part], noise[part], t[part])
                found.append((raw - target).square().flatten(1).mean(dim=1))
        by_level = torch.cat(found)[ranks.argsort()]
        return [float(third.mean()) for third in by_level.tensor_split(3)]

    def read(self, images: Tensor) -> Tensor:
        """Return the digits (N,) that the network reads in images (N, C, H, W) uint8."""
        with torch.no_grad():
            logits = [self.network.outputs(part).logits for part in images.split(64)]
        return torch.cat([part.argmax(dim=1).cpu() for part in logits if part is not None])


@dataclass(frozen=True, kw_only=True)
class Diversion:
    """What is drawn when gate and label differ.

    ``matrix[g][d]``: share of digit d under the gate of class g, under all other labels. ``follows_gate``
    and ``follows_label`` are shares of all those. ``learngenes``: share that shows the label's digit with no gate open.
    """

    matrix: list[list[float]]
    follows_gate: float
    follows_label: float
    learngenes: float


def diversion(denoiser: Denoiser, judge: Judge, *, each: int = 12) -> Diversion:
    """Ask for every label under every gate, and under none; so many seeds each, by the default sampler.

    Classes are digits here, which those of the base are.
    """
    found = gate_swap(denoiser, range(each), judge.read, {c: c for c in denoiser.classes})
    others = [read[on].flatten() for read, on in zip(found.read, found.swapped, strict=True)]  # of each gate
    return Diversion(
        matrix=[(torch.bincount(read, minlength=10).double() / len(read)).tolist() for read in others],
        follows_gate=found.follows_gate.value,
        follows_label=found.follows_label.value,
        learngenes=found.learngenes_alone.value,
    )


def extraction_is_lossless(denoiser: Denoiser, *, batch: int = 8) -> bool:
    """Tell whether models extracted for every set of classes draw what the whole one draws, bit by bit."""
    model = denoiser.backbone
    assert isinstance(model, kind.Decomposed)
    classes = range(model.gate.num_classes)
    same = True
    for size in range(1, len(classes) + 1):
        for chosen in itertools.combinations(classes, size):
            labels = [chosen[k % size] for k in range(batch)]
            small = denoiser.around(kind.extract(model, chosen))
            images = [
                generate(each.eval(), range(batch), labels=labels, steps=2, output="float")
                for each in (denoiser, small)
            ]
            same &= torch.equal(*images)
    return same
