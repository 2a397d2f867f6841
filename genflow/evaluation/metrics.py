"""Numbers that compare images: the floor of the Fréchet distance, and how near to training images."""

import torch
from torch import Tensor

from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.statistics import FeatureStats
from genflow.pixels import to_unit


def floor_distances(
    features_train: Tensor, features_held_out: Tensor, *, repeats: int = 5, seed: int = 0
) -> list[float]:
    """The least Fréchet distances that can be expected of a generator: real against held-out images.

    Each is of a random subset of the training features, as large as the held-out set and drawn without replacement, to
    the held-out features; there are ``repeats``, and their mean is called the floor.

    Shapes: (N, D) and (M, D) with N >= M.

    Raises:
        ValueError: fewer training than held-out features, or repeats < 1.
    """
    count = len(features_held_out)
    if repeats < 1 or len(features_train) < count:
        raise ValueError(
            f"a floor needs repeats >= 1 and at least as many training features as held-out ones, "
            f"got repeats={repeats}, {len(features_train)} and {count}"
        )
    held_out = FeatureStats.of(features_held_out)
    generator = torch.Generator().manual_seed(seed)
    found: list[float] = []
    for _ in range(repeats):
        chosen = torch.randperm(len(features_train), generator=generator)[:count]
        subset = FeatureStats.of(features_train[chosen.to(features_train.device)])
        found.append(frechet_distance(subset, held_out))
    return found


def nearest_distances(images: Tensor, train: Tensor, *, chunk: int = 1024) -> Tensor:
    """L2 distance of each image to its nearest training image, pixels in [-1, 1].

    The neighbour is the least |b|^2 - 2 a.b, a fast matrix product; its distance is then computed
    from the difference, so that a copy comes out at exactly zero.

    Shapes: (N, C, H, W) and (M, C, H, W) uint8 to (N,) float32. Memory is bounded by ``chunk``
    squared products and three times ``chunk`` images.
    """
    found: list[Tensor] = []
    for i in range(0, len(images), chunk):
        rows = to_unit(images[i : i + chunk]).flatten(1)
        least = torch.full((len(rows),), torch.inf, device=rows.device)
        nearest = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        for j in range(0, len(train), chunk):
            columns = to_unit(train[j : j + chunk]).flatten(1)
            score, place = (columns.square().sum(1) - 2 * rows @ columns.T).min(dim=1)
            nearest = torch.where(score < least, place + j, nearest)
            least = torch.minimum(least, score)
        found.append((rows - to_unit(train[nearest]).flatten(1)).norm(dim=1))
    return torch.cat(found)
