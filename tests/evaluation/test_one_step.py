"""What the log says of one-step samples, and when it raises the alarm."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genflow.data.images import ImageData
from genflow.denoiser import Denoiser
from genflow.evaluation.one_step import OneStep, spread
from genflow.parameterizations import ConsistencyKarras, PredictClean
from genflow.schedules import VE

SHAPE = (1, 8, 8)


class Spread(nn.Module):
    """From sigma_max z to ``mean + std z``, and for label 1 to its opposite."""

    def __init__(self, std: float, mean: float = 0.0) -> None:
        super().__init__()
        self.std, self.mean = std, mean
        self.calls: list[Tensor | None] = []

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        self.calls.append(y)
        return self.mean + self.std * x / 80


def images(std: float = 0.25, count: int = 64, classes: int = 0) -> ImageData:
    values = np.random.default_rng(1).normal(0, std, (count, *SHAPE))
    pixels = np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8)
    labels = np.arange(count) % classes if classes else None
    return ImageData(pixels, labels, tuple(map(str, range(classes))), "synthetic")


def model(std: float, mean: float = 0.0, classes: int = 0) -> Denoiser:
    return Denoiser(Spread(std, mean), VE(), PredictClean(), image_shape=SHAPE, num_classes=classes, sampler="heun")


def test_the_numbers_are_those_of_an_oracle() -> None:
    """Unclipped, in one call of the network, for a model of any default sampler."""
    data = images()
    denoiser = model(0.3, 0.9)
    found = OneStep(data, range(64))(denoiser)
    assert found.keys() == {"one_step_mean", "one_step_std", "one_step_std_over_data"}
    of_data = float((data.images / 127.5).var(0, ddof=1).mean() ** 0.5)
    assert found["one_step_mean"] == pytest.approx(0.9, abs=0.03)
    assert found["one_step_std"] == pytest.approx(0.3, rel=0.03)
    assert found["one_step_std_over_data"] == pytest.approx(found["one_step_std"] / of_data)
    assert len(denoiser.backbone.calls) == 1
    assert OneStep(data, range(64))(denoiser) == found


def test_classes_take_turns() -> None:
    denoiser = model(0.25, classes=3)
    OneStep(images(classes=3), range(5, 11))(denoiser)
    (labels,) = denoiser.backbone.calls
    assert labels.tolist() == [2, 0, 1, 2, 0, 1]


def heard(capsys, probe: OneStep, *spreads: float) -> list[str]:
    """What is said at each of these spreads, over that of the data."""
    said = []
    for wanted in spreads:
        probe(model(wanted * probe.std))
        said.append(capsys.readouterr().err)
    return said


def test_nothing_is_said_while_the_spread_rises_to_the_datas(capsys) -> None:
    assert heard(capsys, OneStep(images(), range(32)), 0.0, 0.05, 0.3, 0.7, 1.0, 1.2, 0.8) == [""] * 7


def test_divergence_is_said_every_time(capsys) -> None:
    quiet, *said = heard(capsys, OneStep(images(), range(32)), 1.0, 3.0, 50.0)
    assert quiet == ""
    assert all("training diverges (the loss does not show it;" in line for line in said)
    assert "spread 50" in said[1] or "spread 49" in said[1]
    assert all(line.startswith("genflow: one-step samples") and line.count("\n") == 1 for line in said)


def test_collapse_is_said_after_there_was_something_to_lose(capsys) -> None:
    said = heard(capsys, OneStep(images(), range(32)), 0.2, 0.9, 0.2, 0.1)
    assert said[:2] == ["", ""]
    assert all("of the spread of the data: training collapses" in line for line in said[2:])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_said(broken: float, capsys) -> None:
    probe = OneStep(images(), range(32))
    found = probe(model(broken))
    assert not math.isfinite(found["one_step_std_over_data"])
    assert "one-step samples are not finite: training has diverged" in capsys.readouterr().err


def test_a_set_of_one_colour_is_no_divergence(capsys) -> None:
    """There is nothing to compare a spread with."""
    data = images(std=0.0)
    found = OneStep(data, range(8))(model(0.1))
    assert capsys.readouterr().err == ""
    assert math.isnan(found["one_step_std_over_data"])


def test_a_fresh_consistency_model_has_hardly_any_spread() -> None:
    """Its network starts at 0, and c_skip leaves 0.00004 of the noise."""
    denoiser = Denoiser(Spread(0.0), VE(), ConsistencyKarras(), image_shape=SHAPE)
    assert OneStep(images(), range(8))(denoiser)["one_step_std"] == pytest.approx(80 * 3.906e-5, rel=0.1)
    assert torch.is_grad_enabled()


def test_one_image_for_all_has_no_spread() -> None:
    """However much its own values differ, and those of the mean images of classes."""
    pattern = torch.linspace(-1, 1, 64).view(1, *SHAPE)
    assert spread(pattern.expand(16, -1, -1, -1)) == 0
    classes = np.arange(16) % 2
    each = pattern * torch.from_numpy(1 - 2.0 * classes).view(-1, 1, 1, 1)
    assert spread(each, classes) == 0
    assert spread(each) > 0.5


def test_spread_is_pooled_within_classes_without_bias() -> None:
    noise = torch.randn(6000, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert spread(3 * noise, np.arange(6000) % 3000) == pytest.approx(3, rel=0.01)  # two of each
    assert math.isnan(spread(noise[:4], np.arange(4)))


def test_a_mean_image_is_a_collapse(capsys) -> None:
    """Here images are a strong common pattern and a little of their own."""
    pattern = np.linspace(20, 230, 64).reshape(1, *SHAPE)
    own = np.random.default_rng(2).normal(0, 10, (64, *SHAPE))
    data = ImageData(np.clip(pattern + own, 0, 255).astype(np.uint8), None, (), "patterned")
    said = heard(capsys, OneStep(data, range(32)), 1.0, 0.1)
    assert said[0] == ""
    assert "training collapses" in said[1]


def test_of_more_classes_than_samples_some_take_turns() -> None:
    denoiser = model(0.25, classes=1000)
    found = OneStep(images(), range(8))(denoiser)
    (labels,) = denoiser.backbone.calls
    assert labels.tolist() == [0, 1, 2, 3] * 2
    assert found["one_step_std"] == pytest.approx(0.25, rel=0.2)
