"""What a rectified flow of independent noise is like before reflow, on the one that comes with genflow."""

import numpy as np
import pytest
import torch

from genflow.assets import asset
from genflow.data.images import load_images
from genflow.denoiser import Denoiser
from genflow.evaluation.embedded import Embedded
from genflow.objectives import Batch, Regression, UShaped
from genflow.pixels import to_unit
from genflow.sampling.generate import generate


@pytest.fixture(scope="module")
def flow() -> Denoiser:
    return Denoiser.from_pretrained(asset("models/digits-rf"))


def test_one_step_draws_little_but_the_mean_of_the_class(flow) -> None:
    """So a low distance in one step would tell that something else was drawn. The spread that is left is the network's,
    which was trained on few images with t = 1 exactly.
    """
    data = load_images("digits", "train")
    assert data.labels is not None
    for label in (0, 4, 8):
        x = to_unit(torch.from_numpy(data.images[np.flatnonzero(data.labels == label)]))
        drawn = generate(flow, range(64), labels=label, steps=1, sampler="euler", output="float")
        off_mean = (drawn.mean(dim=0) - x.mean(dim=0)).square().mean().sqrt()
        assert off_mean < 0.5 * x.mean(dim=0).std()
        assert drawn.std(dim=0).mean() < 0.65 * x.std(dim=0).mean()


def test_on_its_own_pairs_it_errs_most_at_both_ends(flow) -> None:
    """There a pair's line knows what the flow's state does not tell: the image at t = 1, the noise at t = 0."""
    count, labels = 512, torch.arange(512) % 10
    seeds = range(count)
    noise = torch.randn(count, *flow.image_shape)
    x = generate(flow, seeds, labels=labels.tolist(), steps=16, sampler="heun", x=noise, output="float")
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    u = u[torch.randperm(count)]
    objective = Regression(flow, UShaped(a=4.0), label_dropout=0.0).eval()
    with torch.no_grad():
        losses = objective(Batch(x=x, y=labels, noise=noise, index=torch.arange(count), u=u), 0)
    tenths = [float(losses[(u >= k / 10) & (u < (k + 1) / 10)].mean()) for k in range(10)]
    middle = min(tenths)
    assert tenths[0] > 1.5 * middle
    assert tenths[9] > 1.5 * middle
    assert tenths.index(middle) in range(2, 8)


def test_every_step_that_is_added_brings_it_closer(flow) -> None:
    embedded = Embedded.load("digits")
    measured = [embedded.measure(flow, steps=k, sampler="euler", ranges=1) for k in (1, 2, 4, 8)]
    found = [result.figures["fd"].value for result in measured]
    assert found == sorted(found, reverse=True)
    assert found[0] > 5 * found[3]
