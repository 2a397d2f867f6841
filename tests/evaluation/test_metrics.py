import numpy as np
import pytest
import torch

from genflow.evaluation.metrics import (
    class_accuracy,
    floor,
    floor_distances,
    frechet_distance,
    memorising_ratio,
    nearest_distances,
)
from genflow.evaluation.statistics import FeatureStats


def features(count: int, dims: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=generator)
    return torch.randn(count, dims, generator=generator) @ mixing + seed


def with_moments(mean: torch.Tensor, covariance: torch.Tensor) -> FeatureStats:
    """Statistics with exactly these moments, from 2 D points at the ends of the axes."""
    dims = len(mean)
    values, vectors = torch.linalg.eigh(covariance)
    axes = vectors * (values * (2 * dims - 1) / 2).sqrt()
    return FeatureStats.of(torch.cat([mean + axes.T, mean - axes.T]))


@pytest.mark.parametrize(("count", "dims"), [(200, 8), (5, 30), (2, 3)])
def test_same_set_is_zero(count, dims):
    stats = FeatureStats.of(features(count, dims, 1))
    assert 0 <= frechet_distance(stats, stats) < 1e-8 * max(1, stats.covariance.trace())


def test_commuting_gaussians_have_the_closed_form():
    mean_a, mean_b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.0, 2.0, 5.0]).double()
    var_a, var_b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    turn = torch.linalg.qr(features(3, 3, 0).double())[0]
    a = with_moments(turn @ mean_a, turn @ var_a.diag() @ turn.T)
    b = with_moments(turn @ mean_b, turn @ var_b.diag() @ turn.T)
    expected = (mean_a - mean_b).square().sum() + (var_a.sqrt() - var_b.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)


def test_general_gaussians_in_two_dims_have_the_closed_form():
    # For 2x2 matrices tr (AB)^1/2 = (tr AB + 2 (det AB)^1/2)^1/2.
    cov_a = torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double()
    cov_b = torch.tensor([[1.0, -0.4], [-0.4, 3.0]]).double()
    zero = torch.zeros(2).double()
    product = cov_a @ cov_b
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = float(cov_a.trace() + cov_b.trace() - 2 * cross)
    measured = frechet_distance(with_moments(zero, cov_a), with_moments(zero, cov_b))
    assert measured == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m", "dims"), [(300, 200, 12), (10, 12, 40), (3, 100, 20)])
def test_equals_an_independent_solution_also_for_few_features(n, m, dims):
    x, y = features(n, dims, 1).double().numpy(), features(m, dims, 2).double().numpy()
    a, b = FeatureStats.of(torch.from_numpy(x)), FeatureStats.of(torch.from_numpy(y))
    # tr (AB)^1/2 is the nuclear norm of X^T-factors: A = X'X, B = Y'Y => singular values of X Y'.
    left = (x - x.mean(axis=0)) / np.sqrt(n - 1)
    right = (y - y.mean(axis=0)) / np.sqrt(m - 1)
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    shift = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    expected = shift + np.square(left).sum() + np.square(right).sum() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-7)


@pytest.mark.reference
def test_agrees_with_torch_fidelity():
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = features(500, 16, 1), features(400, 16, 2)
    theirs = metric_fid.fid_statistics_to_metric(
        metric_fid.fid_features_to_statistics(x), metric_fid.fid_features_to_statistics(y), False
    )["frechet_inception_distance"]
    ours = frechet_distance(FeatureStats.of(x), FeatureStats.of(y))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_different_dims_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dims"):
        frechet_distance(FeatureStats.of(torch.rand(5, 3)), FeatureStats.of(torch.rand(5, 4)))


def test_floor_shrinks_with_the_number_of_images_and_repeats_by_seed():
    generator = torch.Generator().manual_seed(0)
    train, held_out = torch.randn(4000, 6, generator=generator), torch.randn(1000, 6, generator=generator)
    small = floor(train, held_out[:100], seed=1)
    large = floor(train, held_out, seed=1)
    assert 0 < large < small / 4
    assert floor(train, held_out, seed=1) == large
    assert floor(train, held_out, seed=2) != large
    distances = floor_distances(train, held_out, repeats=5, seed=1)
    assert len(set(distances)) == 5
    assert large == pytest.approx(sum(distances) / 5)


def test_floor_of_all_training_images_against_themselves_is_zero():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert floor(x, x) < 1e-8
    with pytest.raises(ValueError, match="at least as many"):
        floor(x[:10], x)
    with pytest.raises(ValueError, match="repeats >= 1"):
        floor(x, x, repeats=0)


def images(count: int, seed: int, shape: tuple[int, ...] = (3, 5, 4)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_nearest_distances_equal_brute_force(chunk):
    samples, train = images(20, 1), images(33, 2)
    a, b = samples.double().flatten(1) / 127.5, train.double().flatten(1) / 127.5
    direct = (a[:, None] - b[None]).norm(dim=-1).amin(dim=1)
    found = nearest_distances(samples, train, chunk=chunk)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), direct, rtol=1e-5, atol=0)


def test_memorising_ratio_of_copies_of_real_and_of_far_images():
    train, held_out = images(200, 1) // 4, images(100, 2) // 4
    assert memorising_ratio(train[5:50], train, held_out) == 0
    assert memorising_ratio(held_out, train, held_out) == 1
    assert memorising_ratio(images(100, 3) // 4, train, held_out) == pytest.approx(1, abs=0.05)
    assert memorising_ratio(255 - held_out, train, held_out) > 3


def test_memorising_ratio_refusals():
    train = images(5, 1)
    with pytest.raises(ValueError, match="samples must be uint8"):
        memorising_ratio(train.float(), train, train)
    with pytest.raises(ValueError, match="held_out must be uint8"):
        memorising_ratio(train, train, train[:0])
    with pytest.raises(ValueError, match=r"samples has images \(3, 4, 4\), train \(3, 5, 4\)"):
        memorising_ratio(images(5, 1, (3, 4, 4)), train, train)
    with pytest.raises(ValueError, match="also a training image"):
        memorising_ratio(train, train, train[:2])


def test_class_accuracy():
    logits = torch.tensor([[0.0, 1.0], [3.0, 2.0], [-1.0, -2.0], [0.0, 5.0]])
    assert class_accuracy(logits, torch.tensor([1, 0, 1, 1])) == 0.75
    with pytest.raises(ValueError, match="labels"):
        class_accuracy(logits, torch.tensor([1, 0]))
