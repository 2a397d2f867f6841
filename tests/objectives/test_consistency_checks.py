"""What cannot be a consistency model is refused where it is built in Python, before a step is taken."""

import copy

import pytest
import torch
from small import Scale

from genflow.denoiser import Denoiser
from genflow.objectives import (
    Batch,
    ByTeacher,
    ByTeacherHeun,
    Consistency,
    Constant,
    EasyLevels,
    GridLevels,
    InverseGap,
    LogNormalInterval,
    Norm,
)
from genflow.parameterizations import ConsistencyKarras, Karras, PredictVelocity
from genflow.schedules import VE, Linear

EASY = EasyLevels(total=10)


def grid(**given) -> GridLevels:
    return GridLevels(curriculum=Constant(count=5), law=LogNormalInterval(), **given)


def model(schedule=None, parameterization=None) -> Denoiser:
    parameterization = parameterization or ConsistencyKarras()
    return Denoiser(Scale(), schedule or VE(), parameterization, image_shape=(1, 8, 8))


def consistency(denoiser: Denoiser, levels, **given) -> Consistency:
    return Consistency(denoiser, levels, metric=Norm(), weighting=InverseGap(), **given)


@pytest.mark.parametrize(
    ("denoiser", "levels", "said"),
    [
        (model(Linear(), PredictVelocity()), grid(), "trained on schedule VE, and this one has Linear"),
        (model(Linear(), PredictVelocity()), EASY, "trained on schedule VE, and this one has Linear"),
        (model(parameterization=Karras()), grid(), "lowest level of the grid, 0.002, .* must give the image alone"),
        (model(), grid(low=0.1), "lowest level of the grid, 0.1, .* must give the image alone"),
        (model(VE(sigma_max=20.0)), grid(), "levels up to 80 are above the schedule's last, 20"),
        (model(), EASY, "ECT goes down to noise level 0, and ConsistencyKarras stops above it: use Karras"),
    ],
)
def test_models_that_levels_do_not_fit_are_refused(denoiser, levels, said) -> None:
    with pytest.raises(ValueError, match=said):
        consistency(denoiser, levels)


def test_a_model_that_teaches_itself_is_refused() -> None:
    """The teacher is frozen, so the student would be, too, and training would change nothing."""
    denoiser = model()
    with pytest.raises(ValueError, match=r"the teacher is the model itself.*copy"):
        consistency(denoiser, grid(), descent=ByTeacher(denoiser))
    student = model()
    consistency(student, grid(), descent=ByTeacher(copy.deepcopy(student)))
    assert all(p.requires_grad for p in student.parameters())


def test_a_law_without_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="deviation of a log-normal law must be above 0, got 0"):
        LogNormalInterval(std=0.0)


def test_heun_goes_down_to_nothing_by_euler() -> None:
    """At s = 0 no noise is left to read; ECT's first stages end there, and its later ones for the smallest t."""
    teacher = model(parameterization=Karras())
    x = torch.randn(4, 1, 8, 8)
    batch = Batch.draw(x, None, torch.arange(4))
    t, s = torch.tensor([2.0, 2.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, 0.001, 0.5])
    x_t = VE().interpolate(batch.x, batch.noise, t)
    heun, euler = ByTeacherHeun(teacher), ByTeacher(teacher)
    got, simple = (step(VE(), batch, x_t, t, s, None) for step in (heun, euler))
    assert got.isfinite().all()
    assert torch.equal(got[[0, 2]], simple[[0, 2]])
    assert not torch.isclose(got[[1, 3]], simple[[1, 3]]).all()
    objective = consistency(model(parameterization=Karras()), EASY, descent=heun)
    assert objective(batch, 0).isfinite().all()
