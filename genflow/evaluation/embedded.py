"""The protocol of the embedded digits, for those who measure many models: tables, demonstrations, learning tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from genflow.data.decoding import Decoding
from genflow.data.images import ImageData, load_images
from genflow.denoiser import Denoiser
from genflow.evaluation.extraction import Progress
from genflow.evaluation.features import FeatureNetwork
from genflow.evaluation.measurement import RANGES, Beside, Gathered, Measured, Wanted, gather, measure
from genflow.evaluation.networks.digits import DigitFeatures
from genflow.evaluation.sources import FoundImages, Samples


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Held-out digits, measured once: as many samples, five ranges of seeds, the floor, the memorising ratio."""

    held_out: ImageData
    network: FeatureNetwork
    reference: Gathered
    beside: Beside

    @classmethod
    def load(cls, name: Literal["digits", "mnist5k"], device: torch.device | str = "cpu", *, size: int = 0) -> Embedded:
        """Measure the held-out images of ``digits`` or ``mnist5k``, the latter resized to a side of ``size`` if given.

        Raises ``ValueError`` for a size of ``digits``.
        """
        decoding = Decoding(size=size or None)
        train, held_out = (load_images(name, split, decoding=decoding) for split in ("train", "test"))
        network = DigitFeatures(name, side=size, device=device)
        return cls(
            held_out=held_out,
            network=network,
            reference=gather(FoundImages(held_out), network, Wanted(), None),
            beside=Beside.of(train, held_out, network),
        )

    def measure(
        self,
        denoiser: Denoiser,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float = 1.0,
        ranges: int = RANGES,
        first_seed: int = 0,
        progress: Progress = iter,
    ) -> Measured:
        """Measure a model, seed k asked for the class of held-out image k mod N if the model has classes."""
        labels, count = self.held_out.labels, len(self.held_out)
        label = None if labels is None or denoiser.num_classes == 0 else (lambda seed: int(labels[seed % count]))
        drawn = [
            Samples(
                denoiser=denoiser,
                count=count,
                first_seed=first_seed + k * count,
                label=label,
                classes=() if label is None else self.held_out.class_names,
                steps=steps,
                sampler=sampler,
                guidance=guidance,
            )
            for k in range(ranges)
        ]
        classes = drawn[0].classes
        return measure(
            drawn, self.reference, self.network, Wanted(), beside=self.beside, classes=classes, progress=progress
        )
