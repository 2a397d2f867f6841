"""The Fréchet distance: closed forms, singular covariances, rounding, and agreement with other packages."""

import numpy as np
import pytest
import torch

from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.statistics import FeatureStats


def features(count: int, dims: int, seed: int, decay: float = 0.0) -> torch.Tensor:
    """Features whose covariance has about the eigenvalues k^-(2 decay), the same but for a little for all seeds."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64))[0]
    scales = torch.arange(1, dims + 1).double() ** -decay
    generator.manual_seed(seed)
    stretch = 1 + 0.1 * torch.rand(dims, generator=generator, dtype=torch.float64)
    rows = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    return (rows * scales * stretch) @ axes + 0.1 * seed * scales


def by_singular_values(x: torch.Tensor, y: torch.Tensor) -> float:
    """The distance from the features themselves: tr (A B)^1/2 is the nuclear norm of X Y^T for A = X^T X, B = Y^T Y."""
    left, right = ((f.double() - f.double().mean(dim=0)) / (len(f) - 1) ** 0.5 for f in (x, y))
    apart = (x.double().mean(dim=0) - y.double().mean(dim=0)).square().sum()
    cross = torch.linalg.svdvals(left @ right.T).sum()
    return float(apart + left.square().sum() + right.square().sum() - 2 * cross)


def law(mean: torch.Tensor, covariance: torch.Tensor) -> FeatureStats:
    return FeatureStats.from_moments(mean.double(), covariance.double(), None)


def test_commuting_gaussians_have_the_closed_form():
    mean_a, mean_b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.0, 2.0, 5.0]).double()
    var_a, var_b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    a = law(turn @ mean_a, turn @ var_a.diag() @ turn.T)
    b = law(turn @ mean_b, turn @ var_b.diag() @ turn.T)
    expected = (mean_a - mean_b).square().sum() + (var_a.sqrt() - var_b.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_general_gaussians_in_two_dims_have_the_closed_form():
    # For 2x2 matrices tr (AB)^1/2 = (tr AB + 2 (det AB)^1/2)^1/2.
    cov_a = torch.tensor([[2.0, 0.7], [0.7, 1.0]]).double()
    cov_b = torch.tensor([[1.0, -0.4], [-0.4, 3.0]]).double()
    product = cov_a @ cov_b
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = float(cov_a.trace() + cov_b.trace() - 2 * cross)
    zero = torch.zeros(2)
    assert frechet_distance(law(zero, cov_a), law(zero, cov_b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("n", "m", "dims"), [(300, 200, 12), (10, 12, 40), (3, 100, 20), (41, 40, 40), (2, 2, 5)])
def test_equals_an_independent_solution_also_for_few_features(n, m, dims, decay):
    x, y = features(n, dims, 1, decay), features(m, dims, 2, decay)
    a, b = FeatureStats.of(x), FeatureStats.of(y)
    assert frechet_distance(a, b) == pytest.approx(by_singular_values(x, y), rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(200, 300), (30, 500), (20, 25)])
def test_unknown_counts_of_singular_covariances_give_the_same(n, m):
    x, y = features(n, 64, 1), features(m, 64, 2)
    a, b = FeatureStats.of(x), FeatureStats.of(y)
    unknown = [law(s.mean, s.covariance) for s in (a, b)]
    assert frechet_distance(*unknown) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_features_that_never_change_add_only_their_shift():
    x, y = features(200, 10, 1), features(200, 10, 2)
    constant = torch.ones(200, 3).double()
    padded = frechet_distance(
        FeatureStats.of(torch.cat([x, constant], 1)), FeatureStats.of(torch.cat([y, 3 * constant], 1))
    )
    assert padded == pytest.approx(frechet_distance(FeatureStats.of(x), FeatureStats.of(y)) + 12, rel=1e-9)
    nothing = FeatureStats.of(constant)
    assert frechet_distance(nothing, FeatureStats.of(2 * constant)) == pytest.approx(3)


@pytest.mark.parametrize(("count", "dims"), [(200, 8), (5, 30), (2, 3)])
def test_the_same_statistics_are_exactly_zero(count, dims):
    stats = FeatureStats.of(features(count, dims, 1))
    assert frechet_distance(stats, stats) == 0
    assert frechet_distance(stats, FeatureStats.of(features(count, dims, 1))) == 0


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("n", "m"), [(900, 800), (90, 800), (100, 110)])
def test_order_batches_and_shares_change_nothing(n, m, decay):
    x, y = features(n, 128, 1, decay), features(m, 128, 2, decay)
    other = FeatureStats.of(y)
    distance = frechet_distance(FeatureStats.of(x), other)
    shuffled = x[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    batched = FeatureStats(128)
    for part in shuffled.split(37):
        batched.update(part)
    shares = FeatureStats.of(x[::2]).merge(FeatureStats.of(x[1::2]))
    for again in (FeatureStats.of(shuffled), batched, shares):
        assert frechet_distance(again, other) == pytest.approx(distance, rel=1e-9)
        assert frechet_distance(again, FeatureStats.of(x)) < 1e-10 * float(other.covariance.trace())


def test_different_dims_are_refused():
    with pytest.raises(ValueError, match="3 and 4 dims"):
        frechet_distance(FeatureStats.of(torch.rand(5, 3)), FeatureStats.of(torch.rand(5, 4)))


def as_numpy(stats: FeatureStats) -> tuple[np.ndarray, np.ndarray]:
    return stats.mean.numpy(), stats.covariance.numpy()


@pytest.mark.reference
@pytest.mark.parametrize("dims", [16, 2023 // 7])
def test_agrees_with_torch_fidelity(dims):
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = features(3 * dims, dims, 1, 0.5), features(2 * dims, dims, 2, 0.5)
    theirs = metric_fid.fid_statistics_to_metric(
        metric_fid.fid_features_to_statistics(x), metric_fid.fid_features_to_statistics(y), False
    )["frechet_inception_distance"]
    assert frechet_distance(FeatureStats.of(x), FeatureStats.of(y)) == pytest.approx(theirs, rel=1e-8)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of scipy, which they call as it used to be
def test_agrees_with_clean_fid_and_pytorch_fid():
    clean = pytest.importorskip("cleanfid.fid")
    score = pytest.importorskip("pytorch_fid.fid_score")
    x, y = features(500, 64, 1, 0.5), features(400, 64, 2, 0.5)
    a, b = FeatureStats.of(x), FeatureStats.of(y)
    ours = frechet_distance(a, b)
    assert ours == pytest.approx(clean.frechet_distance(*as_numpy(a), *as_numpy(b)), rel=1e-6)
    assert ours == pytest.approx(score.calculate_frechet_distance(*as_numpy(a), *as_numpy(b)), rel=1e-6)


@pytest.mark.slow
@pytest.mark.reference
def test_agrees_at_full_size():
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = (FeatureStats.of(features(5000, 2048, seed, 0.5)) for seed in (1, 2))
    sides = [dict(zip(("mu", "sigma"), as_numpy(s), strict=True)) for s in (a, b)]
    theirs = metric_fid.fid_statistics_to_metric(*sides, False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)
