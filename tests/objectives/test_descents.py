"""Steps of a teacher's flow: its solver's, told all that the student is told."""

from collections.abc import Callable

import pytest
import torch
from oracles import Nothing, ToldNetwork
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.objectives import (
    Batch,
    ByTeacher,
    ByTeacherHeun,
    Consistency,
    Constant,
    GridLevels,
    SquaredL2,
    UniformInterval,
    Unweighted,
)
from genflow.parameterizations import ConsistencyKarras, Karras
from genflow.schedules import VE

Slope = Callable[[Tensor, Tensor], Tensor]


def euler(slope: Slope, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """``x + h slope(x, t)``, h = s - t; times are shaped as images."""
    return x_t + (s - t) * slope(x_t, t)


def heun(slope: Slope, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """EDM's algorithm 1 without noise: the slope is the mean of that at t and that at Euler's state at s."""
    return x_t + (s - t) * (slope(x_t, t) + slope(euler(slope, x_t, t, s), s)) / 2


SOLVERS = pytest.mark.parametrize(("kind", "solver"), [(ByTeacher, euler), (ByTeacherHeun, heun)])


def column(times: Tensor) -> Tensor:
    return times.float().view(-1, 1, 1, 1)


@SOLVERS
def test_a_step_on_gaussian_data_is_its_solvers(kind, solver) -> None:
    """On N(0, std^2) the flow is ``dx / dsigma = sigma / (std^2 + sigma^2) x``, which the exact teacher knows."""
    std = 0.4
    teacher = Denoiser(Nothing(), VE(), Karras(sigma_data=std), image_shape=(1, 4, 4))
    t = torch.tensor([0.02, 0.3, 1.0, 5.0, 80.0], dtype=torch.float64)
    s = torch.tensor([0.002, 0.1, 0.4, 3.0, 45.0], dtype=torch.float64)
    batch = Batch.draw(torch.randn(5, 1, 4, 4), None, torch.arange(5))
    x_t = batch.x + column(t) * batch.noise
    state = kind(teacher)(VE(), batch, x_t, t, s, None)
    expected = solver(lambda x, sigma: sigma / (std**2 + sigma**2) * x, x_t, column(t), column(s))
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-6)


@SOLVERS
def test_a_teacher_is_told_the_labels_of_the_student_and_of_augmentation(kind, solver) -> None:
    """Half of the labels are dropped: the state below lies on the flow of those that the student is given."""
    made = {"image_shape": (1, 4, 4), "num_classes": 3}
    teacher = Denoiser(ToldNetwork(classes=3), VE(), Karras(), **made)
    student = Denoiser(ToldNetwork(classes=3), VE(), ConsistencyKarras(), **made)
    descent, levels = kind(teacher), GridLevels(curriculum=Constant(count=11), law=UniformInterval())
    parts = {"metric": SquaredL2(), "weighting": Unweighted(), "descent": descent}
    objective = Consistency(student, levels, label_dropout=0.5, **parts)
    x, y, augment = torch.rand(64, 1, 4, 4) * 2 - 1, torch.randint(3, (64,)), torch.randn(64, 9)
    batch = Batch.draw(x, y, torch.arange(64), augment)
    states: list[Tensor] = []
    labels: list[Tensor] = []
    descent.register_forward_hook(lambda module, given, state: states.append(state))
    student.backbone.register_forward_pre_hook(lambda module, given: labels.append(given[2]))
    objective(batch, 0)
    (state,), y = states, labels[-1]
    assert 10 < int((y == 3).sum()) < 54

    def slope(x_t: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - teacher.denoise(x_t, sigma.flatten(), y, augment=augment)) / sigma

    t, s = map(column, levels.pairs(batch.u, 0))
    expected = solver(slope, batch.x + t * batch.noise, t, s)
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)
