import numpy as np
import pytest
import torch

from genflow.evaluation import statistics
from genflow.evaluation.statistics import FeatureStats


def rows(count: int = 60, dims: int = 5, seed: int = 0, offset: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=generator, dtype=torch.float64)
    base = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    return base @ mixing + offset


def same(a: FeatureStats, b: FeatureStats, rtol: float = 1e-12) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=rtol, atol=1e-12)


def test_mean_and_covariance_are_the_usual_ones():
    x = rows()
    stats = FeatureStats.of(x)
    np.testing.assert_allclose(stats.mean, x.numpy().mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(stats.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12)
    assert torch.equal(stats.covariance, stats.covariance.T)


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_batch_size_does_not_matter(batch):
    stats = FeatureStats(5)
    for part in rows().split(batch):
        stats.update(part)
    same(stats, FeatureStats.of(rows()))


def test_far_from_zero_loses_no_digits():
    near, far = FeatureStats(5), FeatureStats(5)
    for part in rows(offset=0).split(9):
        near.update(part)
        far.update(part + 1e6)
    torch.testing.assert_close(near.covariance, far.covariance, rtol=1e-8, atol=1e-8)


def test_halves_merged_are_the_whole():
    x = rows()
    whole = FeatureStats.of(x)
    a, b = FeatureStats.of(x[:23]), FeatureStats.of(x[23:])
    before = a.mean.clone()
    same(a.merge(b), whole)
    same(b.merge(a), whole)
    assert torch.equal(a.mean, before)
    assert a.count == 23
    same(FeatureStats(5).merge(whole), whole)
    same(whole.merge(FeatureStats(5)), whole)


def test_what_is_taken_away_leaves_the_rest():
    x = rows()
    whole, part = FeatureStats.of(x), FeatureStats.of(x[40:])
    same(whole.without(part), FeatureStats.of(x[:40]), rtol=1e-11)
    assert (whole.count, part.count) == (60, 20)
    assert whole.without(whole).count == 0
    with pytest.raises(ValueError, match="cannot take 60 features from 20"):
        part.without(whole)


def test_many_rows_and_columns_are_taken_in_parts(monkeypatch):
    x = rows(300, 41)
    monkeypatch.setattr(statistics, "CHUNK", 64)
    monkeypatch.setattr(statistics, "STRIP", 16)
    stats = FeatureStats.of(x)
    np.testing.assert_allclose(stats.mean, x.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-10, atol=1e-12)
    assert torch.equal(stats.covariance, stats.covariance.T)


def test_moments_give_the_statistics_they_are_of():
    stats = FeatureStats.of(rows())
    again = FeatureStats.from_moments(stats.mean, stats.covariance, 60)
    same(stats, again)
    more = FeatureStats.of(rows(seed=1))
    same(again.merge(more), stats.merge(more), rtol=1e-10)


def test_moments_of_nobody_knows_how_many_can_only_be_looked_at(tmp_path):
    stats = FeatureStats.of(rows())
    unknown = FeatureStats.from_moments(stats.mean.float(), stats.covariance.float(), None)
    assert unknown.count is None
    torch.testing.assert_close(unknown.covariance, stats.covariance.float().double(), rtol=1e-6, atol=0)
    for use in (
        lambda: unknown.update(rows()),
        lambda: unknown.merge(stats),
        lambda: stats.merge(unknown),
        lambda: stats.without(unknown),
        lambda: unknown.write_raw(tmp_path / "x"),
    ):
        with pytest.raises(ValueError, match="only be compared"):
            use()


def test_impossible_moments_are_refused():
    eye = torch.eye(3)
    for mean, covariance, count, match in (
        (torch.zeros(3), torch.eye(2), 5, "do not fit"),
        (torch.zeros(3), eye, 1, "at least 2"),
        (torch.tensor([0, torch.nan, 0]), eye, 5, "NaN or infinity"),
        (torch.zeros(3), eye + torch.tensor([0.0, 1.0, 0.0]), 5, "not symmetric"),
    ):
        with pytest.raises(ValueError, match=match):
            FeatureStats.from_moments(mean, covariance, count)


def test_raw_files_keep_every_bit(tmp_path):
    stats = FeatureStats.of(rows())
    stats.write_raw(tmp_path / "x.raw")
    again = FeatureStats.read_raw(tmp_path / "x.raw", 5)
    assert (again.count, again.dims) == (60, 5)
    assert torch.equal(again.mean, stats.mean)
    assert torch.equal(again.covariance, stats.covariance)
    assert (tmp_path / "x.raw").stat().st_size == 8 * (1 + 2 * 5 + 25)
    again.update(rows(seed=1))
    assert again.count == 120


def test_a_refused_batch_leaves_no_trace():
    stats = FeatureStats.of(rows())
    bad = rows(seed=1)
    bad[-1, -1] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        stats.update(bad)
    same(stats, FeatureStats.of(rows()))


def test_single_precision_features_are_summed_in_double():
    x = rows(4000).float()
    np.testing.assert_allclose(FeatureStats.of(x).mean, x.double().mean(dim=0), rtol=1e-14)


def test_refusals():
    stats = FeatureStats(3)
    with pytest.raises(ValueError, match="no features"):
        _ = stats.mean
    stats.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        _ = stats.covariance
    with pytest.raises(ValueError, match=r"must be \(B, 3\)"):
        stats.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        stats.update(torch.tensor([[0.0, 1.0, torch.nan]]))
    with pytest.raises(ValueError, match="3 and 4 dims"):
        stats.merge(FeatureStats(4))
    with pytest.raises(ValueError, match="at least 1"):
        FeatureStats(0)
