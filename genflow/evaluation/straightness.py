"""How straight a model's flow is: what there is to gain from reflow, and what reflow has gained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.evaluation.protocol import Figure
from genflow.evaluation.trajectories import Trajectories, trajectories


@dataclass(frozen=True, kw_only=True)
class Straightness:
    """What was found along the paths of some seeds, in the coordinates of the linear path; times fall to 0.

    Args:
        straightness: S, the mean over seeds, values of an image and time of ``(chord - v)^2``, where ``chord`` is the
            velocity of the straight line from noise to image; 0 where all paths are straight.
        one_step_gap: mean square of the difference between the images of one step and of N, per value in [-1, 1].
        times: (N + 1,) linear times of the grid.
        profile: (N,) the mean square in each of its intervals; their mean, weighted by length, is S.
    """

    straightness: Figure
    one_step_gap: Figure
    times: tuple[float, ...]
    profile: tuple[float, ...]

    def thirds(self) -> tuple[float, float, float]:
        """Return the shares of S in the first third of the time, at the noise, in the middle one, and at the images.

        Within an interval the profile is constant; where S is 0 so are the shares.
        """
        end, found = self.times[0], [0.0, 0.0, 0.0]
        for height, high, low in zip(self.profile, self.times, self.times[1:], strict=False):
            for k in range(3):
                top, bottom = end * (3 - k) / 3, end * (2 - k) / 3
                found[k] += height * max(0.0, min(high, top) - max(low, bottom))
        total = math.fsum(found) or 1.0
        return found[0] / total, found[1] / total, found[2] / total


def straightness(denoiser: Denoiser, seeds: Sequence[int], *, steps: int = 32, batch_size: int = 64) -> Straightness:
    """Measure the flow of a model from these seeds by Euler's method with ``steps`` equal steps of linear time.

    Costs ``steps`` network calls a batch; what the batch goes through stays in memory, ``steps`` states in float64.
    Classes are asked for in turn; deterministic, and the same in any batches up to rounding.
    Source: S of "Flow Straight and Fast", arXiv 2209.03003, per value of an image.

    Raises ``ValueError`` for less than 2 steps and for no seeds.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}: in one step every path is straight")
    if len(seeds) == 0 or batch_size < 1:
        raise ValueError(f"give at least one seed and a batch of at least 1, got {len(seeds)} and {batch_size}")
    parts = (seeds[k : k + batch_size] for k in range(0, len(seeds), batch_size))
    return measure(trajectories(denoiser, part, steps=steps) for part in parts)


def measure(followed: Iterable[Trajectories]) -> Straightness:
    """Measure paths that have been followed, batches of them on one grid, which may be of any spacing.

    With ``h_k = tau_k - tau_{k + 1}`` and Euler's velocities v_k the chord is ``sum h_k v_k / tau_0``, so that
    ``S = sum h_k |chord - v_k|^2 / tau_0`` is a weighted variance: 0 in one step, converging from below as steps are
    added, with an error of first order. Where a schedule ends before tau = 1, S is that of the part which it covers.
    """
    profiles: list[Tensor] = []
    gaps: list[Tensor] = []
    times = torch.zeros(0)
    for part in followed:
        times = part.times
        profiles.append(_mean_square(part.velocity - part.chord).cpu())
        gaps.append(_mean_square(part.clean[0] - part.states[-1]).cpu())
    profile = torch.cat(profiles, dim=1)  # (N, seeds)
    weights = (-times.diff() / times[0]).to(profile.dtype)
    return Straightness(
        straightness=mean_of(weights @ profile),
        one_step_gap=mean_of(torch.cat(gaps)),
        times=tuple(times.tolist()),
        profile=tuple(profile.mean(dim=1).tolist()),
    )


def mean_of(values: Tensor) -> Figure:
    """Return the mean of values (M,), one a seed or pair, with its standard error where there are several."""
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    return Figure(value=float(values.mean()), standard_error=error)


def _mean_square(images: Tensor) -> Tensor:
    """Return the mean over the values of each image (..., C, H, W)."""
    return images.square().flatten(-3).mean(dim=-1)
