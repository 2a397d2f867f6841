"""Images as a function of seeds."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.pixels import quantize
from genflow.sampling.guidance import guided
from genflow.sampling.noise import SeededNoise
from genflow.sampling.samplers import Sampler, ancestral, dpmpp_2m, euler, heun, multistep, straight, straight_heun
from genflow.schedules import DiscreteVP, Schedule


def generate(
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    labels: int | Sequence[int] | None = None,
    sampler: str | Sampler | None = None,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    x: Tensor | None = None,
    output: Literal["uint8", "float"] = "uint8",
    batch_size: int = 64,
) -> Tensor:
    """Return one image per seed: (N, C, H, W), uint8, or float32 about [-1, 1] with ``output="float"``.

    ``labels`` in [0, num_classes], one for all or one per seed; None means no class. ``steps`` is the number of
    intervals of the time grid; the network is called ``network_calls(sampler, steps)`` times per batch, with guidance
    on a batch twice as large. ``times`` gives the grid itself instead, falling to 0. What is not given is the model's
    default. ``guidance`` is the scale (1 is none), ``guidance_interval`` the noise levels sigma / alpha at which it
    acts. ``x`` (N, C, H, W) gives the states at ``times[0]`` instead of sigma times seeded noise. The noise of a seed
    is bitwise the same whatever ``batch_size``; images agree to one step of uint8, since a network's kernels may
    depend on the batch.

    Raises ``ValueError`` for labels out of range, guidance without labels, a grid that does not fall to 0, states that
    are not finite, unknown samplers and empty seeds.
    """
    _check_request(denoiser, seeds, x, batch_size)
    run = find_sampler(sampler or denoiser.sampler)
    grid = choose_times(denoiser, steps, times, run)

    def begin(part: slice, noise: SeededNoise) -> Tensor:
        return denoiser.schedule.sigma(grid[0]).float() * noise(0) if x is None else x[part]

    return carry(
        denoiser,
        run,
        grid,
        seeds,
        begin=begin,
        finish=lambda images: _finish(images, output),
        labels=list_labels(denoiser, labels, len(seeds)),
        guidance=guidance,
        guidance_interval=guidance_interval,
        batch_size=batch_size,
    )


def carry(
    denoiser: Denoiser,
    run: Sampler,
    times: Tensor,
    seeds: Sequence[int],
    *,
    begin: Callable[[slice, SeededNoise], Tensor],
    finish: Callable[[Tensor], Tensor],
    labels: Sequence[int] | None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    batch_size: int,
) -> Tensor:
    """Carry one state per seed from ``times[0]`` to ``times[-1]``, batch by batch, with the network in evaluation mode.

    ``begin(part, noise)`` gives the states at ``times[0]`` of the seeds in ``part``, and ``finish`` makes what is kept
    of those at ``times[-1]``: (B, C, H, W) both. ``labels`` in [0, num_classes], one per seed, or None.
    """
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
    batches: list[Tensor] = []
    training = denoiser.training
    denoiser.eval()
    try:
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            y = None if labels is None else torch.tensor(labels[part], device=device)
            denoise = guided(denoiser, y, scale=guidance, interval=guidance_interval)
            noise = SeededNoise([operator.index(seed) for seed in seeds[part]], denoiser.image_shape, device)
            with torch.no_grad():
                state = begin(part, noise).to(device, torch.float32)
                batches.append(finish(run(denoise, denoiser.schedule, state, times, noise)))
    finally:
        denoiser.train(training)
    return torch.cat(batches)


def _finish(images: Tensor, output: str) -> Tensor:
    match output:
        case "uint8":
            return quantize(images)
        case "float":
            return images
        case _:
            raise ValueError(f"unknown output {output!r}: choose uint8 or float")


def find_sampler(sampler: str | Sampler) -> Sampler:
    """Return the sampler of this name, or the function given; ``ValueError`` for an unknown name."""
    match sampler:
        case "euler":
            return euler
        case "heun":
            return heun
        case "dpmpp_2m":
            return dpmpp_2m
        case "ancestral":
            return ancestral
        case "multistep":
            return multistep
        case "straight":
            return straight
        case "straight_heun":
            return straight_heun
        case str():
            raise ValueError(
                f"unknown sampler {sampler!r}: choose euler, heun, dpmpp_2m, ancestral, multistep, straight or"
                " straight_heun"
            )
        case _:
            return sampler


def network_calls(sampler: str, steps: int) -> int:
    """Return NFE, network calls in ``steps`` intervals: ``2 steps - 1`` for heun and straight_heun, else ``steps``."""
    return 2 * steps - 1 if find_sampler(sampler) in (heun, straight_heun) else steps


def choose_times(
    denoiser: Denoiser, steps: int | None, times: Sequence[float] | None, sampler: str | Sampler | None = None
) -> Tensor:
    """Return the grid (steps + 1,), float64 on the CPU: as given, as stored with the model, or the schedule's.

    For multistep the schedule's is ``times_above``: at ``t_min`` a consistency model is the identity.
    """
    if times is None:
        steps = denoiser.steps if steps is None else steps
        times = denoiser.times.get(str(steps))
        if times is None:
            multiple = find_sampler(sampler or denoiser.sampler) is multistep
            return times_above(denoiser.schedule, steps) if multiple else denoiser.schedule.times(steps)
    elif steps is not None and steps != len(times) - 1:
        raise ValueError(f"steps is {steps} but times has {len(times) - 1} intervals: give one of the two")
    grid = torch.tensor([float(t) for t in times], dtype=torch.float64)
    falls = (grid.diff() < 0).all()  # asked this way round, what is not a number does not
    if len(grid) < 2 or not falls or grid[-1] != 0 or grid[0] > denoiser.schedule.t_max:
        raise ValueError(f"times must fall from at most {denoiser.schedule.t_max} to 0, got {list(times)}")
    return grid


def times_above(schedule: Schedule, steps: int) -> Tensor:
    """Return a grid (steps + 1,) float64 whose times, but for the 0 at its end, are all above ``t_min``.

    The coarsest of the schedule's own, with what is at ``t_min`` or below left out: on ``VE`` the grid of one step
    more without sigma_min, on ``Linear`` its own grid.

    Raises ``ValueError`` for less than 1 step and for as many as a table of betas has, ``TypeError`` for a number that
    is no integer.
    """
    if isinstance(schedule, DiscreteVP) and steps >= schedule.count:
        raise ValueError(
            f"steps must be at most {schedule.count - 1} from the first to the last entry of the table of betas, got"
            f" {steps}"
        )
    grids = (schedule.times(count) for count in itertools.count(operator.index(steps)))
    above = next(times for grid in grids if len(times := grid[grid > 1.000001 * schedule.t_min]) == steps)
    return torch.cat([above, above.new_zeros(1)])


def _check_request(denoiser: Denoiser, seeds: Sequence[int], x: Tensor | None, batch_size: int) -> None:
    if len(seeds) == 0:
        raise ValueError("no seeds: give at least one, one image is made per seed")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if x is None:
        return
    check_finite("x", x)
    if tuple(x.shape) != (len(seeds), *denoiser.image_shape):
        raise ValueError(f"x must be {(len(seeds), *denoiser.image_shape)}, one state per seed, got {tuple(x.shape)}")


def check_finite(name: str, values: Tensor) -> None:
    """Refuse what is no tensor, such as an array of numpy's, and one with values that are not finite.

    Raises ``ValueError`` that calls it by its name.
    """
    if not isinstance(values, Tensor):
        kind = f"{type(values).__module__}.{type(values).__name__}"
        raise ValueError(  # noqa: TRY004 (what is given wrongly is one kind of error here)
            f"{name} must be a tensor, got {kind}: torch.as_tensor makes one of an array"
        )
    if not values.isfinite().all():
        raise ValueError(f"{name} must be finite: some of its values are infinite or not a number")


def list_labels(denoiser: Denoiser, labels: int | Sequence[int] | None, count: int) -> list[int] | None:
    """Return one label for each of ``count`` seeds, or None.

    Raises ``ValueError`` for labels out of range, another number of them, and a model without classes.
    """
    if labels is None:
        return None
    if denoiser.num_classes == 0:
        raise ValueError("this model has no classes: leave the labels out")
    listed = [labels] * count if isinstance(labels, int) else [operator.index(label) for label in labels]
    if len(listed) != count:
        raise ValueError(f"{len(listed)} labels for {count} seeds: give one label for all, or one per seed")
    offered = {*denoiser.classes, denoiser.num_classes}
    for label in listed:
        if label not in offered:
            raise ValueError(f"label {label} is out of range: this model has {_told(denoiser)}")
    return listed


def _told(denoiser: Denoiser) -> str:
    """Say which classes a model has."""
    classes, none = denoiser.classes, f"({denoiser.num_classes} means none)"
    if len(classes) == denoiser.num_classes:
        return f"the classes 0 to {denoiser.num_classes - 1} {none}"
    return f"the classes {', '.join(map(str, classes))} {none}; others were left out of it"
