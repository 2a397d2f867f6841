import math

import pytest
import torch

from genflow.evaluation.inception_score import InceptionScore


def logits(count: int, classes: int = 20) -> torch.Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(count))


def streamed(x: torch.Tensor, batch: int) -> InceptionScore:
    score = InceptionScore(len(x))
    starts = list(range(0, len(x), batch))
    for start in starts[::-1]:  # the order is free
        score.update(x[start : start + batch], start)
    return score


@pytest.mark.reference
@pytest.mark.parametrize(("count", "batch"), [(10, 3), (137, 64), (1000, 64), (1009, 1009)])
def test_equals_torch_fidelity_to_rounding(count, batch):
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    x = logits(count)
    theirs = metric_isc.isc_features_to_metric(x)
    ours = streamed(x, batch).score()
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert ours.standard_error == pytest.approx(theirs["inception_score_std"] / 10**0.5, rel=1e-9)


def test_alike_images_score_one_and_sure_even_ones_the_number_of_classes():
    alike = streamed(logits(1).expand(100, 20), 64).score()
    assert alike.value == pytest.approx(1)
    assert alike.standard_error == pytest.approx(0, abs=1e-12)
    sure = torch.full((400, 1), 1).expand(400, 2).clone().float()
    sure[::2, 0], sure[1::2, 1] = 1e4, 1e4  # so sure that the other class has probability zero
    found = streamed(sure, 64).score()
    assert math.isfinite(found.value)
    assert 1.9 < found.value <= 2


def test_refusals():
    with pytest.raises(ValueError, match="10 splits"):
        InceptionScore(9)
    score = InceptionScore(20)
    with pytest.raises(ValueError, match="0 of the 20"):
        score.score()
    score.update(logits(15), 0)
    with pytest.raises(ValueError, match="15 to 29 are not among the 20"):
        score.update(logits(15), 15)
    with pytest.raises(ValueError, match="K as before"):
        score.update(logits(5, 7), 15)
    with pytest.raises(ValueError, match="NaN"):
        score.update(logits(5) * math.nan, 15)
    with pytest.raises(ValueError, match="15 of the 20"):
        score.score()
