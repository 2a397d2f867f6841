import numpy as np
import pytest

from genflow.evaluation import neighbours
from genflow.evaluation.neighbours import kernel_distance, precision_recall


def features(count: int, seed: int, dims: int = 16, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((count, dims))).astype(np.float32)


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate written out."""
    kernel = lambda a, b: (a.astype(np.float64) @ b.T.astype(np.float64) / a.shape[1] + 1) ** 3
    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    return (
        (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * kernel(x, y).mean()
    )


@pytest.mark.parametrize("count", [2, 3, 50, 300])
def test_subsets_are_about_the_unbiased_estimate_of_all(count):
    x, y = features(count, 1), features(count, 2, scale=1.3)
    found = kernel_distance(x, y)
    if count == 2:  # the only subset there is
        assert found.value == pytest.approx(mmd(x, y), rel=1e-4)
        assert found.standard_error is None
    else:
        assert abs(found.value - mmd(x, y)) < found.standard_error


def test_standard_error_is_not_less_than_the_spread_over_fresh_images(monkeypatch):
    monkeypatch.setattr(neighbours, "SUBSET_SIZE", 100)
    found = [kernel_distance(features(300, 2 * k, 4), features(300, 2 * k + 1, 4, 1.2)) for k in range(30)]
    values = np.array([figure.value for figure in found])
    errors = np.array([figure.standard_error for figure in found], dtype=np.float64)
    assert 0.8 < np.sqrt((errors**2).mean()) / values.std(ddof=1) < 2


def nearest(x: np.ndarray, y: np.ndarray) -> float:
    """Share of x within the distance of some y to its third neighbour."""
    among = np.linalg.norm(y[:, None] - y[None], axis=-1)
    radius = np.sort(among, axis=1)[:, 3]
    return float((np.linalg.norm(x[:, None] - y[None], axis=-1) <= radius).any(axis=1).mean())


@pytest.mark.parametrize(("n", "m"), [(4, 4), (60, 90)])
def test_precision_and_recall_equal_brute_force(n, m):
    x, y = features(n, 1, 3), features(m, 2, 3, 1.5)
    precision, recall = precision_recall(x, y)
    assert precision.value == pytest.approx(nearest(x, y))
    assert recall.value == pytest.approx(nearest(y, x))
    assert precision.standard_error == pytest.approx((precision.value * (1 - precision.value) / n) ** 0.5)


def test_parts_change_nothing(monkeypatch):
    x, y = features(200, 1, 5), features(150, 2, 5, 1.2)
    whole = precision_recall(x, y)
    monkeypatch.setattr(neighbours, "DISTANCES", 2000)
    assert precision_recall(x, y) == whole


def test_read_only_maps_are_taken(tmp_path):
    for seed in (1, 2):
        np.save(tmp_path / f"{seed}.npy", features(60, seed))
    x, y = (np.load(tmp_path / f"{seed}.npy", mmap_mode="r") for seed in (1, 2))
    assert kernel_distance(x, y) == kernel_distance(features(60, 1), features(60, 2))
    assert precision_recall(x, y) == precision_recall(features(60, 1), features(60, 2))


@pytest.mark.reference
def test_agrees_with_clean_fid():
    clean = pytest.importorskip("cleanfid.fid")
    x, y = features(400, 1), features(400, 2, scale=1.2)
    found = kernel_distance(x, y)  # theirs is of all images at once
    assert abs(found.value - clean.kernel_distance(y, x, num_subsets=1)) < found.standard_error / 2


@pytest.mark.reference
def test_agrees_with_torch_fidelity():
    import torch

    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = features(2100, 1), features(2000, 2, scale=1.2)
    left, right = torch.from_numpy(x), torch.from_numpy(y)
    theirs = metric_kid.kid_features_to_metric(left, right, kid_subset_size=1000, verbose=False)
    assert kernel_distance(x, y).value == theirs["kernel_inception_distance_mean"]
    theirs = metric_prc.prc_features_to_metric(left, right, verbose=False)
    assert [each.value for each in precision_recall(x, y)] == [theirs["precision"], theirs["recall"]]


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="1 samples are too few: this metric needs at least 2"):
        kernel_distance(features(1, 1), features(5, 2))
    with pytest.raises(ValueError, match="3 reference images are too few: this metric needs at least 4"):
        precision_recall(features(5, 1), features(3, 2))
    with pytest.raises(ValueError, match="16 and 3 dims"):
        kernel_distance(features(5, 1), features(5, 2, 3))
