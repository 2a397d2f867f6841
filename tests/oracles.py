"""Models whose answers are known in closed form, and small networks."""

import torch
from torch import Tensor, nn

from genflow.denoiser import Denoiser
from genflow.parameterizations import PredictClean
from genflow.schedules import Schedule


class GaussianDenoiser:
    """The best denoiser for data N(mean, std^2): mean + alpha std^2 / (alpha^2 std^2 + sigma^2) (x_t - alpha mean)."""

    def __init__(self, schedule: Schedule, std: float, mean: float = 0.0) -> None:
        self.schedule, self.std, self.mean, self.calls = schedule, std, mean, 0

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.calls += 1
        alpha, sigma = self.schedule.alpha(t).to(x_t.dtype), self.schedule.sigma(t).to(x_t.dtype)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)

    def exact(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Where the probability-flow ODE carries ``x_t`` at t to at time 0."""
        alpha, sigma = self.schedule.alpha(t).to(x_t.dtype), self.schedule.sigma(t).to(x_t.dtype)
        return self.mean + self.std / torch.sqrt(alpha**2 * self.std**2 + sigma**2) * (x_t - alpha * self.mean)


class PointNetwork(nn.Module):
    """A small MLP on 2-D points (2 channels, 1 pixel); ``scale`` brings c_noise to about [-1, 1]."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.frequencies = torch.arange(1, 5) * torch.pi / 2
        self.body = nn.Sequential(
            nn.Linear(10, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        phase = self.scale * c_noise[:, None] * self.frequencies
        return self.body(torch.cat([x.flatten(1), phase.sin(), phase.cos()], dim=1)).view_as(x)


class CountingNetwork(nn.Module):
    """A backbone that counts its calls and mixes input, time and label in a way that depends on all of them."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, classes + 1))
        self.calls = 0

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        self.calls += 1
        shift = 0 if y is None else self.table[y].view(-1, 1, 1, 1)
        return 0.3 * x + 0.1 * torch.cos(c_noise).view(-1, 1, 1, 1) + shift


class ToldNetwork(CountingNetwork):
    """Adds to its output the mean of the augmentation labels."""

    def forward(self, x, c_noise, y=None, s=None, *, augment=None):
        out = super().forward(x, c_noise, y, s)
        return out if augment is None else out + augment.mean(dim=1).view(-1, 1, 1, 1)


def counting_denoiser(schedule: Schedule, classes: int = 10) -> Denoiser:
    return Denoiser(
        CountingNetwork(classes), schedule, PredictClean(), image_shape=(1, 4, 4), num_classes=classes, sampler="euler"
    )


class LevelNetwork(nn.Module):
    """A linear network with a gain for each noise level of a grid, found by ``c_noise = ln(sigma) / 4``; the limit of
    what a network of any size can learn on Gaussian data, if its gains are the only weights.
    """

    def __init__(self, grid: Tensor) -> None:
        super().__init__()
        self.seen = grid.log().float() / 4
        self.gain = nn.Parameter(torch.zeros(len(grid)))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        middles = (self.seen[1:] + self.seen[:-1]) / 2
        return self.gain[torch.bucketize(c_noise, middles)].view(-1, 1, 1, 1) * x


class ExactConsistency(nn.Module):
    """The linear network that makes ``ConsistencyKarras`` on N(0, std^2) exact: ``f(x, sigma) = A(sigma) x``."""

    def __init__(self, std: float = 0.5) -> None:
        super().__init__()
        self.std = std

    def answer(self, sigma: Tensor) -> Tensor:
        """A: where the flow takes ``x`` at ``sigma`` to at 0.002, over ``x``."""
        return torch.sqrt((self.std**2 + 0.002**2) / (self.std**2 + sigma**2))

    def gain(self, sigma: Tensor) -> Tensor:
        c_skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
        c_both = 0.5 * (sigma - 0.002) / (sigma**2 + 0.25)
        return torch.where(c_both > 1e-9, (self.answer(sigma) - c_skip) / c_both, 0)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        return self.gain((4 * c_noise.double()).exp()).float().view(-1, 1, 1, 1) * x


class Nothing(nn.Module):
    """A network whose output is 0."""

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)
