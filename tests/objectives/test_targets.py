"""How the average that teaches a consistency model follows its student."""

import pytest
import torch
from torch import Tensor, nn

from genflow.denoiser import Denoiser
from genflow.objectives import (
    AveragedWeights,
    Consistency,
    GridLevels,
    SquaredL2,
    SquareRoot,
    UniformInterval,
    Unweighted,
)
from genflow.parameterizations import ConsistencyKarras
from genflow.schedules import VE


class Counted(nn.Module):
    """A weight, and a buffer such as normalisations keep."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        return self.weight * x


def test_step_k_moves_the_average_by_mu_of_k_and_copies_buffers() -> None:
    """``w <- mu(k) w + (1 - mu(k)) student``, with ``mu(k) = rate^(N(0) / N(k))`` and another N at every step."""
    growth = SquareRoot(total=6, first=2, last=12)
    points = [growth.points(step) for step in range(7)]
    assert len(set(points)) == 7
    student = Denoiser(Counted(), VE(), ConsistencyKarras(), image_shape=(1, 4, 4))
    target = AveragedWeights(student, rate=0.7, curriculum=growth)
    levels = GridLevels(curriculum=growth, law=UniformInterval())
    objective = Consistency(student, levels, metric=SquaredL2(), weighting=Unweighted(), target=target)
    ours, taught = student.backbone, target.average.backbone
    average = ours.weight.item()
    for step in range(6):
        with torch.no_grad():
            ours.weight.normal_()
            ours.seen.add_(1)
        objective.after_step(step)
        mu = 0.7 ** (points[0] / points[step])
        average = mu * average + (1 - mu) * ours.weight.item()
        assert taught.weight.item() == pytest.approx(average, rel=1e-5)
        assert int(taught.seen) == int(ours.seen) == step + 1
