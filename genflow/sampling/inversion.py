"""Inversion: from images back to the noise that a model's flow carries to them.

A flow is an ODE, and runs both ways: ``invert`` follows it from an image to noise, ``decode`` from noise to an image
again. Under the same label that returns the image as well as the solver follows the flow, under another it translates
the image, and between the noises of two images lie others (``slerp``). Straight flows need few steps for it.
Source: "Improving the Training of Rectified Flows", arXiv 2405.20320, figures 5 and 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.pixels import to_unit
from genflow.sampling.generate import (
    carry,
    check_finite,
    choose_times,
    find_sampler,
    generate,
    list_labels,
    times_above,
)
from genflow.sampling.noise import SeededNoise
from genflow.sampling.samplers import Sampler, ancestral, euler, heun
from genflow.schedules import Schedule

_MOST = 4.0  # what a picture in [-1, 1] may reach, with room for all that a model overshoots


def invert(
    denoiser: Denoiser,
    images: Tensor,
    *,
    seeds: Sequence[int] | None = None,
    labels: int | Sequence[int] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Return the noise (N, C, H, W) of images, float32 of about unit scale: the state at ``t_max`` over its sigma.

    ``images`` (N, C, H, W) are uint8, or floating point in [-1, 1]. No network knows a state without noise, so that
    the way begins at ``times[0]``, with the image and a little fresh noise, ``alpha x + sigma noise``; on ``Linear``
    that is the blend ``(1 - 1e-3) x + 1e-3 noise``. Image k has the noise of ``seeds[k]``, by default of seed k,
    whatever ``batch_size``. ``labels`` in [0, num_classes] are the images' classes, one for all or one each; None
    means no class.

    ``sampler`` is euler or heun, by default the model's if it is one of the two, else euler; what it costs is
    ``inversion_calls``. ``steps``, by default the model's, is the number of intervals of ``rising_times``; ``times``
    gives the grid itself instead, rising to ``t_max``. The network is never called at ``t_max`` on ``Linear``, where
    nothing is left of the image.
    Source: the code of arXiv 2405.20320, whose grid and blend these are on ``Linear``.

    Raises ``ValueError`` for images of another shape, kind or range, labels out of range, a grid that does not rise
    from above 0 to ``t_max``, and samplers that do not follow the flow both ways.
    """
    _check_images(denoiser, images)
    seeds = range(len(images)) if seeds is None else seeds
    if len(seeds) != len(images):
        raise ValueError(f"{len(seeds)} seeds for {len(images)} images: give one per image")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    schedule, run = denoiser.schedule, _solver(inverting_sampler(denoiser, sampler))
    grid = _choose_rising(denoiser, steps, times)

    def begin(part: slice, noise: SeededNoise) -> Tensor:
        x = images[part].to(noise.device)
        return schedule.interpolate(to_unit(x) if x.dtype == torch.uint8 else x.float(), noise(0), grid[0])

    return carry(
        denoiser,
        run,
        grid,
        seeds,
        begin=begin,
        finish=lambda state: state / schedule.sigma(grid[-1]).float(),
        labels=list_labels(denoiser, labels, len(images)),
        batch_size=batch_size,
    )


def decode(
    denoiser: Denoiser,
    noise: Tensor,
    *,
    labels: int | Sequence[int] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    output: Literal["uint8", "float"] = "uint8",
    batch_size: int = 64,
) -> Tensor:
    """Return the images (N, C, H, W) that the model makes of noise (N, C, H, W) of unit scale.

    What ``generate`` makes of a seed whose noise this is. Raises ``ValueError`` for what it refuses, for noise that is
    not finite, and for the sampler ancestral, which adds noise of its own.
    """
    check_finite("noise", noise)
    if find_sampler(sampler or denoiser.sampler) is ancestral:
        raise ValueError(
            "the sampler ancestral adds noise of its own, which hides what was given: choose another one for the way"
            " to images, such as euler or heun"
        )
    start = denoiser.schedule.sigma(choose_times(denoiser, steps, None, sampler)[0]).float()
    return generate(
        denoiser,
        range(len(noise)),
        labels=labels,
        sampler=sampler,
        steps=steps,
        x=start * noise,
        output=output,
        batch_size=batch_size,
    )


def translate(
    denoiser: Denoiser,
    images: Tensor,
    *,
    labels: int | Sequence[int] | None,
    to: int | Sequence[int] | None,
    sampler: str | None = None,
    steps: int | None = None,
    decode_sampler: str | None = None,
    decode_steps: int | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Return images (N, C, H, W), uint8, carried to noise under ``labels`` and back under the labels ``to``.

    With ``to`` the same as ``labels`` these are reconstructions. Everything else is as in ``invert`` and ``decode``.
    Source: arXiv 2405.20320, figure 6, which takes 4 steps to noise and 2 back.
    """
    noise = invert(denoiser, images, labels=labels, sampler=sampler, steps=steps, batch_size=batch_size)
    return decode(denoiser, noise, labels=to, sampler=decode_sampler, steps=decode_steps, batch_size=batch_size)


def slerp(first: Tensor, second: Tensor, weights: float | Sequence[float] | Tensor) -> Tensor:
    """Return noises (M, *S) on the arc from ``first`` (weight 0) to ``second`` (weight 1), both of one shape S.

    One number for ``weights`` (M,) gives one noise, of shape S.

    ``sin((1 - w) a) / sin(a) first + sin(w a) / sin(a) second``, where a is the angle between the two as vectors; their
    lengths are left as they are. Noises along one line, which have no arc, are mixed linearly.
    Sources: "Animating Rotation with Quaternion Curves", SIGGRAPH 1985; the code of arXiv 2405.20320.

    Raises ``ValueError`` for noises of two shapes, noises and weights that are not finite, and weights in a table.
    """
    check_finite("first", first)
    check_finite("second", second)
    if first.shape != second.shape:
        raise ValueError(f"noises must be of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    w = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    check_finite("weights", w)
    if w.ndim > 1:
        raise ValueError(f"weights must be one number or a list of them, got shape {tuple(w.shape)}")
    a, b = first.flatten().double().cpu(), second.flatten().double().cpu()
    cosine = torch.dot(a, b) / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    left, right = 1 - w, w
    if torch.sin(angle) > 1e-6:  # neither along one line nor zero, whose angle is no number
        left, right = (torch.sin(share * angle) / torch.sin(angle) for share in (left, right))
    mixed = left[..., None] * a + right[..., None] * b
    return mixed.view(*w.shape, *first.shape).to(first)


def rising_times(schedule: Schedule, steps: int) -> Tensor:
    """Return the grid for ``steps`` intervals back to noise: (steps + 1,) float64, from ``t_min`` up to ``t_max``.

    Those above ``t_min`` are those of ``times_above``, which says what it raises. On ``Linear`` the grid is
    [0.001, 1/N, 2/N, ..., 1], on ``VE`` sigma_min and up.
    """
    grid = times_above(schedule, steps)
    grid[-1] = schedule.t_min
    return grid.flip(0)


def inverting_sampler(denoiser: Denoiser, sampler: str | None = None) -> str:
    """Return the name of the sampler to invert with: as given, or the model's if it is euler or heun, else euler.

    Raises ``ValueError`` for another one than these two.
    """
    if sampler is None:
        return denoiser.sampler if denoiser.sampler in ("euler", "heun") else "euler"
    _solver(sampler)
    return sampler


def inversion_calls(schedule: Schedule, sampler: str, steps: int) -> int:
    """Return NFE, network calls in ``steps`` intervals from an image to noise.

    ``steps`` for euler; for heun ``2 steps``, one less where the end is pure noise, as on ``Linear``.
    """
    if _solver(sampler) is euler:
        return steps
    end = torch.tensor(schedule.t_max, dtype=torch.float64)
    return 2 * steps if schedule.alpha(end) > 0 else 2 * steps - 1


def _solver(sampler: str) -> Sampler:
    match sampler:
        case "euler":
            return euler
        case "heun":
            return heun
        case _:
            find_sampler(sampler)
            raise ValueError(f"the sampler {sampler} does not follow a flow from image to noise: choose euler or heun")


def _choose_rising(denoiser: Denoiser, steps: int | None, times: Sequence[float] | None) -> Tensor:
    if times is None:
        return rising_times(denoiser.schedule, denoiser.steps if steps is None else steps)
    if steps is not None and steps != len(times) - 1:
        raise ValueError(f"steps is {steps} but times has {len(times) - 1} intervals: give one of the two")
    grid = torch.tensor([float(t) for t in times], dtype=torch.float64)
    t_max = denoiser.schedule.t_max
    rises = (grid.diff() > 0).all()  # asked this way round, what is not a number does not
    if len(grid) < 2 or not rises or grid[0] <= 0 or grid[-1] != t_max:
        raise ValueError(f"times must rise from above 0 to {t_max}, got {list(times)}")
    return grid


def _check_images(denoiser: Denoiser, images: Tensor) -> None:
    check_finite("images", images)
    if tuple(images.shape[1:]) != denoiser.image_shape or len(images) == 0:
        raise ValueError(
            f"images must be {('N', *denoiser.image_shape)}, as this model draws them, got {tuple(images.shape)}"
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8, or floating point in [-1, 1], got {images.dtype}")
    largest = float(images.abs().max())
    if denoiser.image_shape[0] in (1, 3) and largest > _MOST:  # of latents, who knows
        raise ValueError(
            f"images of floating point must be in [-1, 1], and these reach {largest:g}: give them as uint8,"
            " or x / 127.5 - 1"
        )
