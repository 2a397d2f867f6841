"""2-RF++'s law of times against its closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from genflow.objectives import UShaped


def draw(a: float, count: int = 1_000_000, rim: float = 0.0) -> torch.Tensor:
    return UShaped(a=a, rim=rim).quantile(torch.rand(count, dtype=torch.float64))


def cdf(a: float):
    """The integral of ``a cosh(a (t - 1/2)) / (2 sinh(a / 2))``."""
    return lambda t: 0.5 + np.sinh(a * (t - 0.5)) / (2 * math.sinh(a / 2))


@pytest.mark.parametrize("a", [0.5, 2.0, 4.0, 8.0])
def test_a_million_draws_follow_the_law(a: float) -> None:
    t = draw(a).numpy()
    assert stats.ks_1samp(t, cdf(a)).pvalue > 0.01
    assert stats.ks_2samp(t, 1 - t).pvalue > 0.01  # as likely as its mirror image


@pytest.mark.parametrize("a", [0.5, 4.0, 8.0, 100.0])
def test_the_quantile_inverts_the_cdf(a: float) -> None:
    u = torch.linspace(1e-6, 1 - 1e-6, 10_001, dtype=torch.float64)
    t = UShaped(a=a, rim=0).quantile(u)
    np.testing.assert_allclose(cdf(a)(t.numpy()), u.numpy(), rtol=1e-9)
    assert (t.diff() > 0).all()


def test_moments_and_quantiles_of_the_published_shape() -> None:
    t = draw(4.0)
    assert t.mean() == pytest.approx(0.5, abs=2e-3)  # 0.759 is the density as printed, which is not U-shaped
    assert t.var() == pytest.approx(0.115671, abs=3e-4)
    assert t.square().mean() == pytest.approx(0.365671, abs=2e-3)
    assert (t - 0.5).abs().mean() == pytest.approx(0.309601, abs=5e-4)
    assert ((t < 0.1) | (t > 0.9)).double().mean() == pytest.approx(0.345007, abs=2e-3)
    assert ((t < 0.05) | (t > 0.95)).double().mean() == pytest.approx(0.188782, abs=2e-3)
    assert (1 - t).mean() == pytest.approx(0.5, abs=2e-3)
    assert stats.kurtosis(t.numpy(), fisher=False) == pytest.approx(1.4641, abs=3e-3)
    assert ((t < 0.25) | (t > 0.75)).double().mean() == pytest.approx(0.675973, abs=2e-3)
    u = torch.tensor([0.01, 0.05, 0.10, 0.25, 0.40], dtype=torch.float64)
    expected = [0.0048655, 0.0252919, 0.0532937, 0.1607639, 0.3316679]
    assert UShaped(rim=0).quantile(u).tolist() == pytest.approx(expected, abs=1e-7)
    assert float((1 / draw(4.0, rim=1e-5)).mean()) == pytest.approx(20.536, rel=0.05)


def test_the_density_at_the_middle_and_at_the_ends() -> None:
    """By the slope of the quantile: 0.551441 and 2.07463, whose ratio is cosh 2."""
    h = 1e-6
    u = torch.tensor([0.0, h, 0.5 - h / 2, 0.5 + h / 2, 1 - h, 1.0], dtype=torch.float64)
    low, middle, high = (h / UShaped(rim=0).quantile(u).diff()[::2]).tolist()
    assert (low, middle, high) == pytest.approx((2.07463, 0.551441, 2.07463), rel=1e-4)
    assert low / middle == pytest.approx(math.cosh(2), rel=1e-4)


@pytest.mark.parametrize(
    ("a", "variance"), [(1.0, 0.086047), (2.0, 0.093482), (3.0, 0.103958), (6.0, 0.138061), (8.0, 0.156166)]
)
def test_variances(a: float, variance: float) -> None:
    """Of the midpoints of a million equal shares: 1/4 - coth(a/2) / a + 2 / a^2."""
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    assert UShaped(a=a, rim=0).quantile(u).var() == pytest.approx(variance, abs=1e-6)


def test_the_law_becomes_uniform_as_a_falls_to_0() -> None:
    u = torch.rand(10_000, dtype=torch.float64)
    assert torch.equal(UShaped(a=0.0, rim=0).quantile(u), u)
    for a in (1e-3, 1e-6, 1e-12):
        assert (UShaped(a=a, rim=0).quantile(u) - u).abs().max() < max(a**2, 1e-15) + 1e-15


@pytest.mark.parametrize("a", [0.0, 4.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_times_keep_off_the_ends(a: float, dtype: torch.dtype) -> None:
    t = UShaped(a=a).quantile(torch.tensor([0.0, 1e-9, 0.5, 1 - 1e-7, 1.0], dtype=dtype))
    tiny = torch.finfo(dtype).eps
    assert t.dtype == dtype
    assert t.isfinite().all()
    assert t.min() >= 1e-5 - tiny
    assert t.max() <= 1 - 1e-5 + tiny


def test_the_law_that_published_programs_draw_from() -> None:
    """Half of the draws have density ~ e^(a t), found by another route, and half are their mirror images."""
    u = torch.rand(200_000, dtype=torch.float64)
    rising = (1 + u * math.expm1(4.0)).log() / 4
    mixed = torch.where(torch.rand(200_000) < 0.5, rising, 1 - rising)
    assert stats.ks_2samp(mixed.numpy(), draw(4.0, 200_000).numpy()).pvalue > 0.01


@pytest.mark.parametrize("wrong", [{"a": -1.0}, {"a": math.inf}, {"a": math.nan}, {"rim": 0.5}, {"rim": -1e-9}])
def test_wrong_arguments_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a must be in"):
        UShaped(**wrong)
