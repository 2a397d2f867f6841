"""Samplers: plain functions from noise to images.

Each takes ``denoise(x_t, t, s)``, which gives the clean image seen from state ``x_t`` at time ``t`` on the way to
``s``; the schedule; the state ``x`` (B, C, H, W) at ``times[0]``; the grid ``times`` (steps + 1,), decreasing, float64
on the CPU, so that no step waits for a device; and ``noise(k)``, the k-th draw of standard normal noise (draw 0 made
``x``). ``euler`` and ``heun`` follow increasing grids, too, from a time above 0: back to the noise (see ``inversion``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from genflow.schedules import Schedule, expand

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]


class Sampler(Protocol):
    """What a sampler is called as."""

    def __call__(self, denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: Noise) -> Tensor:
        """Return the state at ``times[-1]``."""
        ...


def euler(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """First order: move along the line through the clean image; one call a step.

    EDM's Euler on ``VE``, rectified flow's on ``Linear``, DDIM's on variance-preserving schedules
    (arXiv 2010.02502, eq. 12).
    """
    for t, s in itertools.pairwise(times):
        x = schedule.move(x, denoise(x, t, s), t, s)
    return x


def heun(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    noise: Noise,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Tensor:
    """Second order: the trapezoid rule, two calls a step but one in the step to 0: ``2 steps - 1`` calls.

    Along a path ``dx = clean d(alpha) + noise d(sigma)``; both integrands are averaged over the ends of the step, but
    where one end has no noise or, upwards, no image (alpha = 0), the step is Euler's. On ``VE`` this is EDM's Heun, on
    ``Linear`` rectified flow's. ``churn`` adds and removes fresh noise as EDM does, at
    noise levels in ``[churn_min, churn_max]``: the level is first raised by ``min(churn / steps, sqrt(2) - 1)`` of
    itself with noise of std ``churn_noise``. Source: arXiv 2206.00364, algorithm 2, ``S_churn, S_tmin, S_tmax,
    S_noise``.
    """
    gain = min(churn / (len(times) - 1), math.sqrt(2) - 1)
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        level = float(schedule.sigma(t) / schedule.alpha(t))
        if gain > 0 and churn_min <= level <= churn_max and math.isfinite(level):
            x, t = _raise_noise(schedule, x, t, level * (1 + gain), churn_noise * noise(k + 1))
        clean = denoise(x, t, s)
        x_s = schedule.move(x, clean, t, s)
        if s > 0 and schedule.alpha(s) > 0:
            x_s = schedule.correct(x, clean, t, x_s, denoise(x_s, s, s), s)
        x = x_s
    return x


def _raise_noise(schedule: Schedule, x: Tensor, t: Tensor, level: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state with noise added up to the given level, and the time of that level, at most ``t_max``."""
    end = torch.tensor(schedule.t_max, dtype=t.dtype)
    higher = torch.minimum(schedule.time_at(torch.tensor(level, dtype=t.dtype)), end)
    scale = schedule.alpha(higher) / schedule.alpha(t)
    added = (schedule.sigma(higher) ** 2 - (scale * schedule.sigma(t)) ** 2).clamp(min=0).sqrt()
    return expand(scale, x) * x + expand(added, x) * noise, higher


def dpmpp_2m(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """DPM-Solver++(2M): second order from one call a step, by extrapolating the clean image from the step before.

    With l = ln(alpha / sigma), h = l_s - l_t and r = h_before / h: ``clean + (clean - clean_before) / (2 r)`` takes
    the place of ``clean`` in the Euler step; the step to 0 is first order. Source: "DPM-Solver++: Fast Solver for
    Guided Sampling of Diffusion Probabilistic Models", arXiv 2211.01095, algorithm 2.
    """
    log_ratio = torch.log(schedule.alpha(times) / schedule.sigma(times))
    steps = log_ratio.diff()
    before = x
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        clean = denoise(x, t, s)
        # the first step has nothing before it; an infinite step before (from pure noise) says nothing; to 0, first
        # order
        weight = steps[k] / (2 * steps[k - 1]) if k > 0 and s > 0 else torch.zeros_like(t)
        x = schedule.move(x, clean + expand(weight, x) * (clean - before), t, s)
        before = clean
    return x


def ancestral(
    denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: Noise, *, eta: float = 1.0
) -> Tensor:
    """Stochastic sampling from the posterior of the next state given the clean image; one call a step.

    ``x_s = alpha_s clean + sqrt(sigma_s^2 - d^2) noise_in(x_t) + d fresh`` with
    ``d = eta sigma_s / sigma_t sqrt(sigma_t^2 - (alpha_t sigma_s / alpha_s)^2)`` and ``eta`` in [0, 1]: DDPM's
    posterior at
    1, DDIM at 0. Sources: arXiv 2006.11239, eq. 7; arXiv 2010.02502, eq. 12 and 16.
    """
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        clean = denoise(x, t, s)
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        left = schedule.alpha(t) / schedule.alpha(s) * sigma_s  # what noise of s is worth at t
        fresh = eta * sigma_s / sigma_t * (sigma_t**2 - left**2).clamp(min=0).sqrt()
        kept = (sigma_s**2 - fresh**2).clamp(min=0).sqrt()
        x_s = expand(schedule.alpha(s), x) * clean
        if s > 0:
            x_s = x_s + expand(kept, x) * schedule.noise_in(x, clean, t) + expand(fresh, x) * noise(k + 1)
        x = x_s
    return x


def straight(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """2-RF++'s rule for flows that are nearly straight: always mix with the noise of the start; one call a step.

    ``x_s = alpha_s clean + sigma_s z`` with ``z = x / sigma(times[0])``, where Euler's step would take the noise that
    is left in ``x_t``. The same as ``euler`` in 1 step, and from pure noise in 2; exact in any number of steps where
    paths are straight. Meant for schedules that start from pure noise, alpha = 0 there, as ``Linear`` does.
    **Not a consistent solver**: on a curved flow, such as that of a model not trained on pairs, it moves away from the
    answer as steps are added.
    Source: "Improving the Training of Rectified Flows", arXiv 2405.20320, section 5.3. The authors' grid is
    ``times=[1 - 1e-5, 1 - 1/N, ..., 1/N, 0]``, from the default one by 1e-5 at its start.
    """
    z = x / expand(schedule.sigma(times[0]), x)
    for t, s in itertools.pairwise(times):
        x = expand(schedule.alpha(s), x) * denoise(x, t, s) + expand(schedule.sigma(s), x) * z
    return x


def straight_heun(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """``straight`` with the clean image of the trapezoid rule; two calls a step but one in the last: ``2 steps - 1``.

    The clean images and noises seen at t and, from there by ``straight``'s rule, at s are averaged; going from t to 0
    along both averages gives ``clean = x_t + (1 - alpha_t) mean(clean) - sigma_t mean(noise)``, on ``Linear`` that is
    ``x_t - t mean(v)``. Its warning holds here too: not a consistent solver on curved flows.
    Source: "Improving the Training of Rectified Flows", arXiv 2405.20320, appendix D, algorithm 2.
    """
    z = x / expand(schedule.sigma(times[0]), x)
    for t, s in itertools.pairwise(times):
        alpha_s, sigma_s = expand(schedule.alpha(s), x), expand(schedule.sigma(s), x)
        clean = denoise(x, t, s)
        if s > 0:
            x_s = alpha_s * clean + sigma_s * z
            clean_s = denoise(x_s, s, s)
            noises = schedule.noise_in(x, clean, t) + schedule.noise_in(x_s, clean_s, s)
            turned = expand(1 - schedule.alpha(t), x) * (clean + clean_s) - expand(schedule.sigma(t), x) * noises
            clean = x + turned / 2
        x = alpha_s * clean + sigma_s * z
    return x


def multistep(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """Consistency models' sampling: to the clean image, and back up by fresh noise; one call a step.

    ``x_s = alpha_s clean + sqrt(sigma_s^2 - alpha_s^2 l^2) fresh``, with l the noise level of ``t_min``, which the
    clean image of a consistency model still has (0.002 on ``VE``). In one step it is ``euler``.
    Source: "Consistency Models", arXiv 2303.01469, algorithm 1.
    """
    end = torch.tensor(schedule.t_min, dtype=times.dtype)
    left = schedule.sigma(end) / schedule.alpha(end)
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        x = denoise(x, t, s)
        if s > 0:
            fresh = (schedule.sigma(s) ** 2 - (schedule.alpha(s) * left) ** 2).clamp(min=0).sqrt()
            x = expand(schedule.alpha(s), x) * x + expand(fresh, x) * noise(k + 1)
    return x
