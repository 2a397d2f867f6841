"""Error bars of Fréchet distances: what they are of is known in closed form, or measured."""

import statistics
from dataclasses import replace

import pytest
import torch
from benchmarks.coverage import Case, cover, draw, laws
from scipy.stats import t as scipy_t

from genflow.evaluation.blocks import BlockStats
from genflow.evaluation.frechet import frechet_distance, solve
from genflow.evaluation.statistics import FeatureStats
from genflow.evaluation.uncertainty import (
    Estimate,
    advice,
    combine,
    corrected,
    default_blocks,
    estimate,
    student_t,
    without_means_bias,
)

CASE = Case(dims=8, decay=1.0, apart="small", samples=30, reference=20)


def sets(case: Case = CASE, seed: int = 0) -> tuple[BlockStats, BlockStats, float]:
    generator = torch.Generator().manual_seed(seed)
    a, b = laws(case, generator)
    counts = case.samples * case.dims, (case.reference or 0) * case.dims
    return draw(a, counts[0], generator), draw(b, counts[1], generator), frechet_distance(a, b)


def test_the_correction_takes_away_nearly_all_bias_even_for_few_images():
    case = Case(dims=64, decay=0.5, apart="small", samples=3, reference=2)  # counts of a few times the dims
    found = []
    for seed in range(20):
        samples, reference, truth = sets(case, seed)
        a, b = samples.whole(), reference.whole()
        solution = solve(a, b)
        counts = a.count, b.count
        found.append((solution.distance, without_means_bias(solution, counts), corrected(solution, counts)))
    plain, halfway, best = (statistics.fmean(column) - truth for column in zip(*found, strict=True))
    assert plain > halfway > 0
    assert abs(best) < plain / 20


def test_with_infinitely_many_images_there_is_nothing_to_correct():
    a, b = laws(CASE, torch.Generator().manual_seed(0))
    solution = solve(a, b)
    assert corrected(solution, (None, None)) == pytest.approx(solution.distance, rel=1e-12)
    assert corrected(solution, (10**12, None)) == pytest.approx(solution.distance, rel=1e-9)


def test_in_one_dim_the_integral_is_known():
    # to first order in 1 / (n - 1) it is r (1 + 1 / (8 (n - 1))), since int_0^inf y^1/2 (1 + y)^-3 dy = pi / 8
    n = 10_001
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0)).double()
    solution = solve(FeatureStats.of(x), FeatureStats.from_moments(torch.zeros(1), torch.ones(1, 1), None))
    (root,) = solution.roots.tolist()
    missing = without_means_bias(solution, (n, None)) - corrected(solution, (n, None))
    assert missing == pytest.approx(2 * root / (8 * (n - 1)), rel=1e-3)


@pytest.mark.parametrize("reference_known", [False, True])
def test_an_estimate_is_of_the_plain_distance_and_has_both_variances(reference_known):
    samples, blocks, _ = sets()
    reference = blocks.whole() if reference_known else blocks
    found = estimate(samples, reference)
    assert found.value == frechet_distance(samples.whole(), blocks.whole())
    assert found.samples_variance is not None
    assert found.samples_variance > 0
    assert (found.reference_variance == 0) == reference_known
    assert found.limit is not None
    figure = found.figure
    assert figure.limit == found.limit < figure.value
    assert figure.standard_error == pytest.approx((found.samples_variance + found.reference_variance) ** 0.5)
    assert figure.interval is not None
    assert figure.interval[0] < figure.limit < figure.interval[1]


def test_both_sides_are_treated_alike():
    samples, reference, _ = sets()
    one, two = estimate(samples, reference), estimate(reference, samples)
    assert two.limit == pytest.approx(one.limit, rel=1e-9)
    assert two.reference_variance == pytest.approx(one.samples_variance, rel=1e-9)
    assert two.samples_variance == pytest.approx(one.reference_variance, rel=1e-9)
    assert two.figure.interval == pytest.approx(one.figure.interval, rel=1e-9)


def test_error_bars_scale_as_the_features_do():
    samples, reference, _ = sets()
    half = []
    for blocks in (samples, reference):
        scaled = BlockStats(8, blocks.total, len(blocks))
        for g in range(len(blocks)):
            part = blocks.block(g)
            scaled._store(g, FeatureStats.from_moments(part.mean * 10, part.covariance * 100, part.count))
        scaled._filling = len(blocks)
        half.append(scaled)
    one, two = estimate(samples, reference).figure, estimate(*half).figure
    assert two.limit == pytest.approx(100 * (one.limit or 0), rel=1e-6)
    assert two.standard_error == pytest.approx(100 * (one.standard_error or 0), rel=1e-6)
    assert two.interval == pytest.approx([100 * x for x in one.interval or ()], rel=1e-6)


def test_too_few_blocks_give_the_value_alone():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    samples = BlockStats(4, 50, 1)
    samples.update(x, 0)
    figure = estimate(samples, FeatureStats.of(x + 1)).figure
    assert figure.value == pytest.approx(4)
    assert figure.limit is None
    assert figure.standard_error is None
    assert figure.interval is None


def test_images_that_never_came_are_missed():
    samples = BlockStats(4, 50, 10)
    samples.update(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), 0)
    with pytest.raises(ValueError, match="30 of the 50 images have come"):
        estimate(samples, laws(replace(CASE, dims=4), torch.Generator())[0])


def test_fewer_images_than_dims_give_finite_figures_and_no_interval():
    generator = torch.Generator().manual_seed(0)
    sides = []
    for count in (20, 30):
        blocks = BlockStats(40, count, 10)
        blocks.update(torch.randn(count, 40, generator=generator), 0)
        sides.append(blocks)
    figure = estimate(*sides).figure
    assert torch.tensor([figure.value, figure.standard_error]).isfinite().all()
    assert (figure.limit, figure.interval) == (None, None)


def test_combining_averages_the_samples_but_not_the_reference():
    one = Estimate(value=3.0, limit=2.0, samples_variance=0.4, samples_freedom=10, reference_variance=0.1)
    other = replace(one, value=5.0, limit=4.0, samples_variance=0.8, reference_variance=0.3)
    both = combine([one, other])
    assert (both.value, both.limit) == (4.0, 3.0)
    assert both.samples_variance == pytest.approx(0.3)
    assert both.reference_variance == pytest.approx(0.2)
    assert both.samples_freedom == 20
    assert both.figure.standard_error == pytest.approx(0.5**0.5)
    assert combine([one]) == one
    assert combine([one, Estimate(value=1.0)]) == Estimate(value=2.0)
    with pytest.raises(ValueError, match="no estimates"):
        combine([])


@pytest.mark.parametrize("freedom", [5, 9.5, 22, 94, 1e6])
def test_quantiles_are_those_of_students_t(freedom):
    assert student_t(freedom) == pytest.approx(scipy_t.ppf(0.975, freedom), rel=2e-4)


def test_blocks_are_as_many_as_can_be_afforded():
    assert default_blocks(64, 10_000) > default_blocks(512, 10_000) > default_blocks(2048, 50_000) >= 8
    assert default_blocks(4, 20) == 20
    assert default_blocks(4, 7) == 0


def test_advice_tells_which_side_is_too_small():
    assert advice(50_000, 50_000, 2048) == []
    assert advice(50_000, None, 2048) == []
    (singular,) = advice(2000, 50_000, 2048)
    assert "2000 samples" in singular
    assert "singular" in singular
    (few,) = advice(10_000, 5000, 2048)
    assert "10000 samples and 5000 reference images are few for 2048 dims: below 20480" in few
    assert "KID" in singular
    assert "KID" in few


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "decay", "apart", "samples", "reference"),
    [
        (2, 0.0, "large", 30, 30),
        (8, 0.0, "same", 10, None),
        (8, 1.5, "tiny", 10, 30),
        (8, 0.0, "small", 10, 10),
        (32, 1.5, "large", 10, None),
        (32, 0.0, "small", 10, 30),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(dims, decay, apart, samples, reference):
    found = cover(Case(dims, decay, apart, samples, reference), trials=100, seed=1)
    assert found.share >= 0.88  # of 100 trials: 95 % less 3 standard errors
    assert abs(found.limit - found.truth) < 0.35 * found.deviation
    assert 0.8 < found.standard_error / found.deviation < 1.5
