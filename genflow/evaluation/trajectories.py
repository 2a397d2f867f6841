"""The paths along which a model's flow carries noise to images, in coordinates that all schedules share.

A state of any schedule, divided by ``alpha + sigma``, is one of the linear path, ``y = (1 - tau) x + tau noise`` at
``tau = sigma / (alpha + sigma)``: it is at the same noise level, and the flow goes through the same images. There an
EDM teacher, a 1-RF and a 2-RF can be compared; on ``Linear`` itself nothing changes. The flow is
``dy / d tau = v(y, tau) = noise - clean``, both as the model sees them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.sampling.guidance import guided
from genflow.sampling.noise import SeededNoise
from genflow.sampling.samplers import Denoise
from genflow.schedules import Schedule, expand, time_dtype


@dataclass(frozen=True)
class Trajectories:
    """Euler's paths in linear coordinates; everything else about them follows from the states.

    Args:
        times: (N + 1,) linear times, float64 on the CPU, falling to 0.
        states: (N + 1, B, C, H, W), the last of which are the images; float64, so that the differences of close states
            lose nothing that a float32 network has said.
    """

    times: Tensor
    states: Tensor

    @property
    def velocity(self) -> Tensor:
        """(N, B, C, H, W), what the model said at the beginning of each interval, times[:-1]."""
        return self.states.diff(dim=0) / self._spread(self.times.diff())

    @property
    def clean(self) -> Tensor:
        """(N, B, C, H, W), the clean images as seen from the states: the first of noise alone, the last the result."""
        return self.states[:-1] - self._spread(self.times[:-1]) * self.velocity

    @property
    def chord(self) -> Tensor:
        """(B, C, H, W), the velocity of the straight lines between the two ends: the mean of ``velocity`` over time."""
        return (self.states[0] - self.states[-1]) / float(self.times[0])

    @property
    def bends(self) -> Tensor:
        """(N + 1, B, C, H, W), how far the states are off those lines."""
        return self.states - self.states[-1] - self._spread(self.times) * self.chord

    def _spread(self, values: Tensor) -> Tensor:
        return values.to(self.states).view(-1, *[1] * (self.states.ndim - 1))


def linear_time(schedule: Schedule, t: Tensor) -> Tensor:
    """Return ``sigma / (alpha + sigma)``, the time at which the linear path has the noise level of ``t``."""
    return schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))


def at_linear_time(schedule: Schedule, tau: Tensor) -> Tensor:
    """Return the schedule's own times of these linear times in (0, 1]."""
    return schedule.time_at(tau / (1 - tau))


def even_times(schedule: Schedule, steps: int) -> Tensor:
    """Return the schedule's own times (steps + 1,) whose linear times are evenly spaced from that of t_max to 0.

    On ``Linear`` that is its own grid; on ``VE`` up to noise level 80 it begins at tau = 80 / 81.
    """
    start = torch.tensor(schedule.t_max, dtype=torch.float64)
    left = 1 - torch.arange(1, steps, dtype=torch.float64) / steps
    between = at_linear_time(schedule, linear_time(schedule, start) * left)
    return torch.cat([start[None], between, torch.zeros(1, dtype=torch.float64)])


def follow(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Trajectories:
    """Take Euler's steps from states ``x`` (B, C, H, W) at ``times[0]``, on any grid of the schedule's own times.

    A step of Euler's method on any schedule is one on the linear path. One network call a step.
    """
    states = []
    for t, s in itertools.pairwise(times):
        states.append(x / _size(schedule, t, x))
        x = schedule.move(x, denoise(x, t, s), t, s)
    return Trajectories(linear_time(schedule, times), torch.stack([*states, x / _size(schedule, times[-1], x)]))


def trajectories(denoiser: Denoiser, seeds: Sequence[int], *, steps: int) -> Trajectories:
    """Follow seeds, all in one batch, on the grid of ``even_times``; the model's classes are asked for in turn."""
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
    times = even_times(denoiser.schedule, steps)
    noise = SeededNoise(seeds, denoiser.image_shape, device)(0).to(time_dtype(device))
    classes = denoiser.classes
    y = torch.tensor([classes[seed % len(classes)] for seed in seeds], device=device) if classes else None
    with inference(denoiser):
        denoise = guided(denoiser, y, scale=1.0, interval=None)
        return follow(denoise, denoiser.schedule, expand(denoiser.schedule.sigma(times[0]), noise) * noise, times)


@contextmanager
def inference(denoiser: Denoiser) -> Iterator[None]:
    """Evaluate a model: no gradients, no dropout; afterwards it is as it was."""
    training = denoiser.training
    denoiser.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        denoiser.train(training)


def _size(schedule: Schedule, t: Tensor, x: Tensor) -> Tensor:
    return expand(schedule.alpha(t) + schedule.sigma(t), x)
