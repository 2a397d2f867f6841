"""What two public programs of improved consistency training train on, as objectives on our networks.

Their formulas, defects included, put in our parts, so that network, data, optimiser and budget are ours for all. What
surrounds the losses in those programs (network, optimiser, learning-rate schedule, batch size) is not taken over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.objectives.base import Batch, Objective
from genflow.objectives.consistency import Consistency
from genflow.objectives.curricula import Doubling
from genflow.objectives.levels import GridLevels, LogNormalInterval
from genflow.objectives.metrics import Metric
from genflow.objectives.weightings import InverseGap
from genflow.parameterizations import Coefficients, Parameterization
from genflow.schedules import Schedule

SIGMA_DATA, SIGMA_MIN, SIGMA_MAX, RHO = 0.5, 0.002, 80.0, 7.0  # the same in both programs


def _boundary(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return c_skip and c_out as published (arXiv 2303.01469, appendix C), which is the identity at ``SIGMA_MIN``."""
    c_skip = SIGMA_DATA**2 / ((sigma - SIGMA_MIN) ** 2 + SIGMA_DATA**2)
    return c_skip, SIGMA_DATA * (sigma - SIGMA_MIN) / (sigma**2 + SIGMA_DATA**2).sqrt()


def _clock(sigma: Tensor) -> Tensor:
    """Return diffusers' time, in training and in sampling."""
    return 1000 * 0.25 * torch.log(sigma + 1e-44)


@dataclass(frozen=True, kw_only=True)
class DiffusersTraining(Parameterization):
    """Diffusers' scalings in training, with d = 0.5.

    ``c_in = 1 / (sigma^2 + d^2)``, the square root missing; ``c_skip = d^2 / (sigma^2 + d^2)`` and
    ``c_out = sigma / sqrt(sigma^2 + d^2)``, without sigma_min and, in c_out, without d; ``c_noise = 250 ln sigma``.
    At sigma_min the clean image is not quite the state: c_out is 0.004 there. At 80 the network sees noise of 0.0125.
    """

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        sigma = schedule.sigma(t)
        power = sigma**2 + SIGMA_DATA**2
        return Coefficients(1 / power, SIGMA_DATA**2 / power, sigma / power.sqrt(), _clock(sigma))


@dataclass(frozen=True, kw_only=True)
class DiffusersSampling(Parameterization):
    """Diffusers' scalings in sampling: those of the paper, with ``c_noise = 250 ln sigma``, and clipped images.

    At 80 the network sees 80 times as much as in training, and what it gives counts half.
    """

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        sigma = schedule.sigma(t)
        return Coefficients((sigma**2 + SIGMA_DATA**2).rsqrt(), *_boundary(sigma), _clock(sigma))

    def clean(self, schedule: Schedule, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return super().clean(schedule, raw, x_t, t).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Kinyugo(Parameterization):
    """Kinyugo's scalings: c_skip and c_out of the paper; ``c_in = 1, c_noise = sigma``.

    The network sees images with noise of up to 80, and the noise level itself.
    """

    def coefficients(self, schedule: Schedule, t: Tensor) -> Coefficients:
        sigma = schedule.sigma(t)
        return Coefficients(torch.ones_like(sigma), *_boundary(sigma), sigma)


@dataclass(frozen=True, kw_only=True)
class PseudoHuberOfElements(Metric):
    """Mean over an image's D values of ``sqrt(r^2 + k^2) - k``, with ``k = 0.00054 sqrt(D)``.

    That k is meant for the norm of all values; against one of them it is so large that this is r^2 / (2 k) nearly
    throughout, and the scale of the gradient again depends on that of the residual.
    """

    def __call__(self, residual: Tensor, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        values = residual.flatten(1)
        k = 0.00054 * math.sqrt(values.shape[1])
        return ((values.square() + k**2).sqrt() - k).mean(dim=1)


class UnsharedMasks(Consistency):
    """Consistency training whose student and teacher draw dropout masks of their own."""

    @torch.no_grad()
    def goal(self, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        x_s = self.descent(self.denoiser.schedule, batch, x_t, t, s, y)
        return self.target.network(self.denoiser).denoise(x_s, s, y, augment=batch.augment)


def diffusers_objective(denoiser: Denoiser, total_steps: int) -> Objective:
    """Return what diffusers' example trains on, around the same network.

    huggingface/diffusers, examples/research_projects/consistency_training/train_cm_ct_unconditional.py with its default
    arguments: ``mean(lambda (sqrt((f(x + sigma_{i+1} z) - sg f(x + sigma_i z))^2 + c^2) - c))`` over images and values,
    c = 0.00054 resolution sqrt(channels), lambda = 1 / (sigma_{i+1} - sigma_i), i by the log-normal law of mean -1.1
    and deviation 2, sigma on the grid of rho = 7 from 0.002 to 80 with N = min(10 2^floor(k / K'), 1280) + 1 points,
    K' = floor(K / 8). The teacher has the current weights; for its masks the state of the CPU's generator is saved and
    restored, so that on a CPU both have the same.

    Defects: c_in without the square root, and other scalings in sampling (``as_diffusers_samples``); scalings that miss
    the boundary condition; pseudo-Huber by values with the norm's c; N(k) followed by the main process alone and masks
    shared on a CPU alone, which do no harm here; 250 ln sigma, a thousand times EDM's, as time.
    """
    return _training(Consistency, _reading(denoiser, DiffusersTraining()), total_steps)


def as_diffusers_samples(denoiser: Denoiser) -> Denoiser:
    """Return a trained network as diffusers' pipeline samples it: with scalings that it was not trained with.

    huggingface/diffusers, src/diffusers/schedulers/scheduling_consistency_models.py, CMStochasticIterativeScheduler:
    ``scale_model_input``, ``get_scalings_for_boundary_condition`` and, as ``clip_denoised`` is on, the clamp in
    ``step``. The example saves and validates its models with this scheduler.
    """
    return _reading(denoiser, DiffusersSampling())


def kinyugo_objective(denoiser: Denoiser, total_steps: int) -> Objective:
    """Return what Kinyugo's library trains on, around the same network.

    Kinyugo/consistency_models, consistency_models/consistency_models.py: ``ImprovedConsistencyTraining`` with the
    defaults of its constructor, ``model_forward_wrapper``, ``pseudo_huber_loss``, and the mean over images and values
    that README and notebook take of loss times weight. The law of i, lambda, grid and N(k) are as in
    ``diffusers_objective``. One network is both student and teacher, called in training mode twice, with nothing done
    about masks.

    Defects: no c_in, and sigma itself as time; other masks for the teacher; pseudo-Huber by values with the norm's c.
    Left out, in its favour: the README's mean of +1.1 for the log-normal law, and the notebook's 11 in place of 1280,
    with which N stays at 11.
    """
    return _training(UnsharedMasks, _reading(denoiser, Kinyugo()), total_steps)


def _reading(denoiser: Denoiser, parameterization: Parameterization) -> Denoiser:
    """Return a denoiser with the same network, not a copy, whose output means something else."""
    channels, height, width = denoiser.image_shape
    other = Denoiser(
        denoiser.backbone,
        denoiser.schedule,
        parameterization,
        image_shape=(channels, height, width),
        num_classes=denoiser.num_classes,
        sampler=denoiser.sampler,
        steps=denoiser.steps,
        times=denoiser.times,
    )
    return other.train(denoiser.training)


class AnyModel(GridLevels):
    """Levels for models that change the image at the lowest, too, as diffusers' do."""

    def check(self, denoiser: Denoiser) -> None:
        """Refuse nothing."""


def _training(kind: type[Consistency], denoiser: Denoiser, total_steps: int) -> Consistency:
    """Return what both have in common: the grid, its growth, the law of its intervals, the metric and the weights."""
    curriculum = Doubling(total=total_steps, first=10, last=1280)
    law = LogNormalInterval(mean=-1.1, std=2.0)
    levels = AnyModel(curriculum=curriculum, law=law, low=SIGMA_MIN, high=SIGMA_MAX, rho=RHO)
    return kind(denoiser, levels, metric=PseudoHuberOfElements(), weighting=InverseGap())
