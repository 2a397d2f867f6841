"""A batch in parts, so that what a network holds in between does not fill the memory of a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genflow.evaluation.features import Outputs

AT_ONCE = 8  # images: neither fewer nor more are faster on a CPU, and 64 of 299x299 would take 700 MB


def in_parts(compute: Callable[[Tensor], Outputs], images: Tensor, device: torch.device) -> Outputs:
    """Return ``compute(images)``, put together from ``AT_ONCE`` images at a time on a CPU; at once elsewhere.

    The parts of a batch are always the same ones, so equal batches give equal bits.

    Args:
        compute: what a network does with images (B, C, H, W), for each of them alone.
        images: (B, C, H, W).
        device: where it does so.
    """
    if device.type != "cpu" or len(images) <= AT_ONCE:
        return compute(images)
    parts = [compute(part) for part in images.split(AT_ONCE)]
    return Outputs(
        torch.cat([part.vectors for part in parts]),
        spatial=_joined([part.spatial for part in parts]),
        logits=_joined([part.logits for part in parts]),
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """Return tensors as one; None where a network gives none."""
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None
