"""What consistency models trained by the trainer converge to, where that is known in closed form.

On Gaussian data of second moment s^2 with a linear network per noise level, the image seen from ``sigma`` is
``A(sigma) x`` and every training gives A by a recursion over the levels; in one dimension the exact map keeps
quantiles. Images are uint8 on their way in, so s^2 is that of the quantised ones.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import LevelNetwork, Nothing
from small import make_config, make_trainer
from torch import Tensor, nn

from genflow.config import ConsistencyConfig, ConsistencyKarrasConfig, KarrasConfig, OptimConfig, VEConfig
from genflow.data.loader import Loaded
from genflow.denoiser import Denoiser
from genflow.objectives import (
    AveragedWeights,
    ByTeacher,
    ByTeacherHeun,
    Consistency,
    Constant,
    Doubling,
    EasyLevels,
    GridLevels,
    InverseGap,
    LogNormalInterval,
    Norm,
    PseudoHuber,
    SquaredL2,
    UniformInterval,
    Unweighted,
    karras_grid,
)
from genflow.parameterizations import ConsistencyKarras, Karras, Parameterization
from genflow.schedules import VE

SHAPE = (1, 8, 8)


class Drawn:
    """A loader of batches drawn from a pool of images, uint8 as any."""

    def __init__(self, images: np.ndarray, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __call__(self, number: int) -> Loaded:
        chosen = np.random.default_rng([7, number]).integers(0, len(self.images), self.batch_size)
        return Loaded(torch.from_numpy(self.images[chosen]), None, torch.from_numpy(chosen))


def quantised(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8)


def gaussian(std: float, count: int = 5_000) -> tuple[np.ndarray, float]:
    """Images of independent normal values, and their second moment."""
    images = quantised(np.random.default_rng(3).normal(0, std, (count, *SHAPE)))
    return images, float(((images / 127.5 - 1) ** 2).mean())


def fit(objective: Consistency, images: np.ndarray, out: Path, *, steps: int, lr: float, batch_size: int = 256) -> None:
    """Train by the trainer, with RAdam and the rate falling to 0, so that no average of weights is needed."""
    optim = OptimConfig(rule="radam", lr=lr, decay="cosine", ema_halflife=0, beta2=0.99)
    config = make_config(out, optim=optim, steps=steps, batch_size=batch_size, log_every=steps, checkpoint_every=steps)
    row = ConsistencyKarrasConfig() if isinstance(objective.levels, GridLevels) else KarrasConfig()
    config = replace(config, schedule=VEConfig(), parameterization=row, objective=ConsistencyConfig())
    make_trainer(config, objective=objective, loader=Drawn(images, batch_size)).fit()


def model(network: nn.Module, parameterization: Parameterization | None = None, shape=SHAPE) -> Denoiser:
    return Denoiser(network, VE(), parameterization or ConsistencyKarras(), image_shape=shape)


@torch.no_grad()
def answers(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """A of a linear network, at noise levels (N,)."""
    return denoiser.denoise(torch.ones(len(sigma), *SHAPE), sigma)[:, 0, 0, 0].double()


# The recursions, with the lowest level the identity


def contraction(grid: Tensor, square: float) -> Tensor:
    """CT's, and distillation's by Euler: ``A_{i+1} = A_i (s^2 + sigma_i sigma_{i+1}) / (s^2 + sigma_{i+1}^2)``."""
    factors = (square + grid[:-1] * grid[1:]) / (square + grid[1:] ** 2)
    return torch.cat([torch.ones(1, dtype=torch.float64), factors.cumprod(0)])


def heuns_contraction(grid: Tensor, square: float) -> Tensor:
    """Distillation by Heun: with slopes ``g(sigma) x``, ``g = sigma / (s^2 + sigma^2)``, and h = sigma_i - sigma_{i+1},

    a step multiplies x by ``1 + h / 2 (g(sigma_{i+1}) + g(sigma_i) (1 + h g(sigma_{i+1})))``.
    """
    slope = grid / (square + grid**2)
    h = grid[:-1] - grid[1:]
    factors = 1 + h / 2 * (slope[1:] + slope[:-1] * (1 + h * slope[1:]))
    return torch.cat([torch.ones(1, dtype=torch.float64), factors.cumprod(0)])


def exact(sigma: Tensor, square: float) -> Tensor:
    return ((square + 0.002**2) / (square + sigma**2)).sqrt()


def test_the_recursions_have_the_published_numbers_and_the_flows_limit() -> None:
    chain = [1, 0.999017, 0.976425, 0.770129, 0.363083, 0.147867, 0.064309, 0.030382, 0.015418, 0.008306, 0.004705]
    assert contraction(karras_grid(11), 0.25).tolist() == pytest.approx(chain, abs=1e-6)
    table = {2: 0.005125, 3: 0.097658, 11: 0.376384, 21: 0.433775, 41: 0.465706, 81: 0.482545, 161: 0.491192}
    table |= {321: 0.495574, 641: 0.497779, 1281: 0.498885}
    spread = {points: 80 * float(contraction(karras_grid(points), 0.25)[-1]) for points in table}
    assert spread == pytest.approx(table, abs=2e-6)
    grid = karras_grid(200)
    errors = [(f(grid, 0.25)[-1] / exact(grid, 0.25)[-1] - 1).abs() for f in (contraction, heuns_contraction)]
    assert errors[1] < errors[0] / 10


def levels_of(points: int, law=None) -> GridLevels:
    return GridLevels(curriculum=Constant(count=points), law=law or LogNormalInterval())


METHODS = {
    "ict": {"metric": PseudoHuber.ict(), "weighting": InverseGap()},
    "even-ict": {"metric": PseudoHuber.ict(), "weighting": InverseGap(), "law": UniformInterval()},
    "l2-ict": {"metric": SquaredL2(), "weighting": InverseGap(), "law": UniformInterval()},
    "ct": {"metric": SquaredL2(), "weighting": Unweighted(), "law": UniformInterval(), "rate": 0.9},
}


def trained_by_images(method: str, points: int, std: float, out: Path, *, steps: int) -> tuple[Tensor, Tensor]:
    """A at the levels of the grid as trained, and the recursion's."""
    parts = dict(METHODS[method])
    images, square = gaussian(std)
    grid = karras_grid(points)
    denoiser = model(LevelNetwork(grid))
    law, rate = parts.pop("law", LogNormalInterval()), parts.pop("rate", None)
    target = AveragedWeights(denoiser, rate=rate) if rate else None
    objective = Consistency(denoiser, levels_of(points, law), target=target, **parts)
    fit(objective, images, out, steps=steps, lr=0.03)
    return answers(denoiser, grid), contraction(grid, square)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "points", "std", "steps"),
    [
        ("even-ict", 5, 0.08, 1000),
        ("ict", 11, 0.25, 1200),
        ("ict", 5, 0.5, 1000),
        ("even-ict", 11, 0.08, 1500),
        ("even-ict", 21, 0.25, 2000),
        ("l2-ict", 11, 0.5, 1200),
        ("ct", 11, 0.25, 1500),
        ("ct", 5, 0.5, 1000),
    ],
)
def test_training_converges_to_its_closed_form(method: str, points: int, std: float, steps: int, tmp_path) -> None:
    """Within a hundredth at every level; indices, signs, weights and the target all enter it."""
    ours, known = trained_by_images(method, points, std, tmp_path, steps=steps)
    torch.testing.assert_close(ours, known, rtol=0.01, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("rate", [None, 0.5], ids=["current", "average"])
def test_distillation_converges_to_its_solvers_closed_form(solver: str, rate: float | None, tmp_path) -> None:
    """By an exact teacher, Karras with the data's spread and a network that gives 0; no noise is left at the end."""
    images, square = gaussian(0.25)
    grid = karras_grid(11)
    denoiser = model(LevelNetwork(grid))
    teacher = model(Nothing(), Karras(sigma_data=square**0.5))
    descent = ByTeacher(teacher) if solver == "euler" else ByTeacherHeun(teacher)
    target = AveragedWeights(denoiser, rate=rate) if rate else None
    objective = Consistency(
        denoiser,
        levels_of(11, UniformInterval()),
        metric=PseudoHuber.ict(),
        weighting=Unweighted(),
        target=target,
        descent=descent,
    )
    fit(objective, images, tmp_path, steps=800, lr=0.03, batch_size=64)
    known, other = contraction(grid, square), heuns_contraction(grid, square)
    if solver == "heun":
        known, other = other, known
    torch.testing.assert_close(answers(denoiser, grid), known, rtol=2e-3, atol=0)
    assert ((known / other - 1).abs() > 0.05).any()  # which of the two it is shows


# ECT


def easy_answer(levels: EasyLevels, t: Tensor, square: float) -> Tensor:
    """``A(t) = A(r) (s^2 + r t) / (s^2 + t^2)`` with A(0) = 1, down the mapping from t to r."""
    found = torch.ones_like(t)
    while (t > 1e-9).any():
        r = levels.below(t, 0)
        found, t = found * (square + r * t) / (square + t**2), r
    return found


class SmoothLevels(nn.Module):
    """A linear network whose gain is linear between knots of the logarithm of the noise level."""

    def __init__(self, knots: int = 40) -> None:
        super().__init__()
        self.ends = (math.log(0.002) / 4, math.log(100.0) / 4)
        self.gain = nn.Parameter(torch.zeros(knots))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        low, high = self.ends
        place = ((c_noise - low) / (high - low)).clamp(0, 1) * (len(self.gain) - 1)
        k = place.long().clamp(max=len(self.gain) - 2)
        gain = torch.lerp(self.gain[k], self.gain[k + 1], place - k)
        return gain.view(-1, 1, 1, 1) * x


@pytest.mark.slow
@pytest.mark.parametrize(("q", "k", "std", "within"), [(8, 8, 0.25, 0.01), (8, 8, 0.1, 0.015), (2, 0, 0.25, 0.01)])
def test_ect_converges_to_its_closed_form(q: float, k: float, std: float, within: float, tmp_path) -> None:
    """From the exact diffusion model, which the gain 0 is where sigma_data is the data's spread.

    With mappings that are never 0: where one is, the answer has corners that no network of few weights can follow.
    """
    images, square = gaussian(std)
    levels = EasyLevels(total=2000, q=q, k=k, stages=1, mean=0.0, std=1.5)
    denoiser = model(SmoothLevels(), Karras(sigma_data=square**0.5, level_max=100.0))
    objective = Consistency(denoiser, levels, metric=Norm(), weighting=InverseGap())
    fit(objective, images, tmp_path, steps=2000, lr=0.03)
    sigma = torch.logspace(-1.5, 1, 23, dtype=torch.float64)
    known = easy_answer(levels, sigma, square)
    torch.testing.assert_close(answers(denoiser, sigma), known, rtol=within, atol=0)
    diffusion = square / (square + sigma**2)  # what it started from
    assert (known / diffusion - 1).abs().max() > 1


# The exact map in one dimension


class Curve(nn.Module):
    """A small MLP of a value and its noise level, for images of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(7, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
        )
        self.frequencies = torch.tensor([0.5, 1.0, 2.0])

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        phase = 2 * c_noise[:, None] * self.frequencies
        return self.body(torch.cat([x.flatten(1), phase.sin(), phase.cos()], dim=1)).view_as(x)


CENTRES, WEIGHTS, WIDTH = (-0.6, 0.1, 0.7), (0.3, 0.5, 0.2), 0.08


def distribution(x: Tensor, sigma: float) -> Tensor:
    """F of the mixture, with noise of this level added."""
    width = math.hypot(WIDTH, sigma)
    parts = [w * torch.special.ndtr((x - m) / width) for m, w in zip(CENTRES, WEIGHTS, strict=True)]
    return torch.stack(parts).sum(0)


def keeping_quantiles(x: Tensor, sigma: float) -> Tensor:
    """``F_{sigma_min}^{-1}(F_sigma(x))``, where the flow takes x to."""
    fine = torch.linspace(-1.5, 1.5, 20_001, dtype=torch.float64)
    return fine[torch.searchsorted(distribution(fine, 0.002), distribution(x, sigma)).clamp(max=len(fine) - 1)]


def one_step_error(intervals: int, out: Path) -> float:
    """Mean distance of one-step samples from where the flow would end, after a curriculum up to so many intervals."""
    rng = np.random.default_rng(4)
    values = rng.choice(CENTRES, 50_000, p=WEIGHTS) + WIDTH * rng.normal(size=50_000)
    denoiser = model(Curve(), shape=(1, 1, 1))
    steps = 2000
    curriculum = Doubling(total=steps, first=4, last=intervals) if intervals > 4 else Constant(count=5)
    objective = Consistency(
        denoiser,
        GridLevels(curriculum=curriculum, law=LogNormalInterval()),
        metric=PseudoHuber.ict(),
        weighting=InverseGap(),
    )
    torch.manual_seed(1)
    for part in denoiser.backbone.body:
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    fit(objective, quantised(values[:, None, None, None]), out, steps=steps, lr=3e-3, batch_size=512)
    u = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    x = 80 * math.sqrt(2) * torch.erfinv(2 * u - 1)
    with torch.no_grad():
        made = denoiser.denoise(x.float().view(-1, 1, 1, 1), torch.full_like(x, 80.0)).flatten().double()
    return float((made - keeping_quantiles(x, 80.0)).abs().mean())


@pytest.mark.slow
def test_ict_approaches_the_map_that_keeps_quantiles(tmp_path) -> None:
    """In one dimension the flow's map is known for any data; few levels shrink it, more come nearer."""
    errors = [one_step_error(intervals, tmp_path / str(intervals)) for intervals in (4, 16, 64)]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.85 * errors[1]
    assert errors[2] < 0.16  # of a spread of 0.5
