"""Batches in parts: the same numbers, and no more than so many images in a CPU's memory."""

import pytest
import torch

from genflow.evaluation.features import Outputs
from genflow.evaluation.networks.parts import AT_ONCE, in_parts

CPU = torch.device("cpu")


def compute(images: torch.Tensor) -> Outputs:
    rows = images.flatten(1).float()
    return Outputs(2 * rows, spatial=rows[:, :2], logits=-rows)


@pytest.mark.parametrize("count", [0, 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE - 1, 64])
def test_parts_are_put_together_in_order(count):
    images = torch.randint(0, 256, (count, 3, 2, 2), dtype=torch.uint8)
    found, expected = in_parts(compute, images, CPU), compute(images)
    for name in ("vectors", "spatial", "logits"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_what_a_network_does_not_give_stays_away():
    images = torch.zeros(20, 1, 2, 2, dtype=torch.uint8)
    found = in_parts(lambda part: Outputs(part.flatten(1).float()), images, CPU)
    assert found.vectors.shape == (20, 4)
    assert found.spatial is None
    assert found.logits is None


@pytest.mark.parametrize(("kind", "expected"), [("cpu", [8, 8, 4]), ("cuda", [20]), ("mps", [20])])
def test_only_a_cpu_takes_few_at_once(kind, expected):
    sizes: list[int] = []

    def seen(images: torch.Tensor) -> Outputs:
        sizes.append(len(images))
        return compute(images)

    in_parts(seen, torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.device(kind))
    assert sizes == expected
