"""How much the lines of a coupling cross: what is left for a rectified flow to be uncertain of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genflow.data.pairs import PairData
from genflow.denoiser import Denoiser
from genflow.evaluation.protocol import Figure
from genflow.evaluation.straightness import mean_of
from genflow.evaluation.trajectories import at_linear_time, inference, linear_time
from genflow.pixels import to_unit
from genflow.sampling.guidance import guided
from genflow.sampling.samplers import Denoise
from genflow.schedules import Schedule, expand, time_dtype


def crossing(
    denoiser: Denoiser,
    x: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int = 16,
    batch_size: int = 64,
) -> Figure:
    """Measure the coupling of images ``x`` with ``noise``, both (M, C, H, W), as a model sees it.

    V is the mean over couples, values of an image and time of ``((noise - x) - v(x_t))^2``. With the best velocity,
    ``E[noise - x | x_t]``, that is the variance of the lines that meet in a state: 0 if no two cross, as many as
    independent noise makes meet otherwise. With a model's velocity it is larger by the mean square of the model's
    error, so it is an upper bound (unless the model has learned these very couples by heart). Of one coupling and its
    rectified flow, ``E|noise - x|^2 - E|chord|^2 = S + V``.
    Source: "Flow Straight and Fast", arXiv 2209.03003, theorem on the straightening effect.

    ``labels`` (M,) int64; None means no class. Costs ``steps`` network calls a batch.

    Raises ``ValueError`` for no couples, other noise than one for each image, and less than 1 step.
    """
    if len(x) == 0 or x.shape != noise.shape or steps < 1:
        raise ValueError(
            f"give at least one image, noise of its shape and at least one step, got {tuple(x.shape)},"
            f" {tuple(noise.shape)} and {steps}"
        )
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
    found: list[Tensor] = []
    for k in range(0, len(x), batch_size):
        part = slice(k, k + batch_size)
        y = None if labels is None else labels[part].to(device)
        with inference(denoiser):
            denoise = guided(denoiser, y, scale=1.0, interval=None)
            errors = departures(denoise, denoiser.schedule, x[part].to(device), noise[part].to(device), steps=steps)
        found.append(errors.cpu())
    return mean_of(torch.cat(found))


def departures(denoise: Denoise, schedule: Schedule, x: Tensor, noise: Tensor, *, steps: int) -> Tensor:
    """Return the mean over time of the square error of velocity, per value, for each couple (B,).

    In linear coordinates (``trajectories``) the error is ``(clean - x) / tau``. Time runs through the middles of
    ``steps`` equal intervals of what the schedule covers, so neither end is asked for; float64 keeps all digits of the
    small differences near the images.
    """
    x, noise = (images.to(time_dtype(x.device)) for images in (x, noise))
    end = linear_time(schedule, torch.tensor(schedule.t_max, dtype=torch.float64))
    total = x.new_zeros(len(x))
    for tau in end * (torch.arange(steps, dtype=torch.float64) + 0.5) / steps:
        t = at_linear_time(schedule, tau)
        error = (denoise(schedule.interpolate(x, noise, t), t, t) - x) / expand(tau, x)
        total += error.square().flatten(1).mean(dim=1) / steps
    return total


def crossing_of_pairs(denoiser: Denoiser, pairs: PairData, count: int) -> Figure:
    """Measure the first ``count`` pairs, or all if there are less, each with its own label.

    Raises ``ValueError`` for pairs of another shape or of other classes than the model's.
    """
    if pairs.image_shape != denoiser.image_shape:
        raise ValueError(
            f"the pairs of {pairs.name} are {pairs.image_shape}, and the model's images {denoiser.image_shape}"
        )
    labels = pairs.labels if denoiser.num_classes else None
    if labels is not None and pairs.num_classes != denoiser.num_classes:
        raise ValueError(f"{pairs.name} has {pairs.num_classes} classes, and the model {denoiser.num_classes}")
    index = np.arange(min(count, len(pairs)))
    return crossing(
        denoiser,
        to_unit(torch.from_numpy(pairs.images[index])),
        torch.from_numpy(pairs.noise(index)),
        None if labels is None else torch.from_numpy(labels[index]),
    )
