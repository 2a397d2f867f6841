import numpy as np
import pytest
import torch

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


def test_single_precision_features_are_summed_in_double():
    x = rows(4000).float()
    np.testing.assert_allclose(FeatureStats.of(x).mean, x.double().mean(dim=0), rtol=1e-14)


def test_saved_and_loaded(tmp_path):
    stats = FeatureStats.of(rows())
    path = tmp_path / "deep" / "x.npz"
    stats.save(path, {"network": "digits:abc", "count": 60})
    loaded, protocol = FeatureStats.load(path)
    same(stats, loaded)
    assert protocol == {"network": "digits:abc", "count": 60}
    assert [file.name for file in path.parent.iterdir()] == ["x.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"mu", "sigma", "n", "protocol"}
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
    more = FeatureStats.of(rows(seed=1))
    same(loaded.merge(more), stats.merge(more), rtol=1e-10)


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    FeatureStats.of(rows()).save(path, {"which": "old"})

    def stop(file, **_arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        FeatureStats.of(rows(seed=1)).save(path, {"which": "new"})
    assert FeatureStats.load(path)[1] == {"which": "old"}
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


def test_refusals(tmp_path):
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
    with pytest.raises(ValueError, match=r"end in \.npz"):
        FeatureStats.load(tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="no feature statistics"):
        FeatureStats.load(tmp_path / "nowhere.npz")
    (tmp_path / "bad.npz").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="no feature statistics"):
        FeatureStats.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)), n=5, protocol="{}")
    with pytest.raises(ValueError, match="do not fit"):
        FeatureStats.load(tmp_path / "odd.npz")
