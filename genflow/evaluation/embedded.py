"""The protocol of the embedded digits, for those who measure many models: tables, demonstrations, learning tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from genflow.data.images import ImageData, load_images
from genflow.denoiser import Denoiser
from genflow.evaluation.extraction import Progress
from genflow.evaluation.features import FeatureNetwork, load_features
from genflow.evaluation.measurement import RANGES, Beside, Gathered, Measured, Wanted, gather, measure
from genflow.evaluation.sources import FoundImages, Samples


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Held-out digits, measured once: as many samples, five ranges of seeds, the floor, the memorising ratio."""

    held_out: ImageData
    network: FeatureNetwork
    reference: Gathered
    beside: Beside

    @classmethod
    def load(cls, name: Literal["digits", "mnist5k"], device: torch.device | str = "cpu") -> Embedded:
        """Measure the held-out images of ``digits`` or ``mnist5k``."""
        network = load_features(name, device=device)
        train, held_out = load_images(name, "train"), load_images(name, "test")
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
        progress: Progress = iter,
    ) -> Measured:
        """Measure a model, seed k asked for the class of held-out image k mod N if the model has classes."""
        labels, count = self.held_out.labels, len(self.held_out)
        label = None if labels is None or denoiser.num_classes == 0 else (lambda seed: int(labels[seed % count]))
        drawn = [
            Samples(
                denoiser=denoiser,
                count=count,
                first_seed=k * count,
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
