"""The search for noise levels: it finds valleys, and never answers with what it has not measured."""

import itertools
import math

import numpy as np
import pytest

from genflow.evaluation.level_search import Trial, search_level, search_times


class Recorded:
    """A function of the level, and what it was asked."""

    def __init__(self, function) -> None:
        self.function = function
        self.seen: dict[float, float] = {}

    def __call__(self, level):
        assert level not in self.seen, "tried twice"
        self.seen[level] = self.function(level)
        return self.seen[level]

    def holds(self, found: Trial) -> None:
        """It was measured, and nothing better was."""
        assert self.seen[found.level] == found.distance
        assert found.distance == min(self.seen.values())


@pytest.mark.parametrize("best", [0.0021, 0.05, 0.821, 1.526, 20.0, 79.0])
@pytest.mark.parametrize(
    "shape",
    [
        lambda d: d * d,
        abs,
        lambda d: 1 - math.exp(-d * d),
        lambda d: math.expm1(3 * d) - 3 * d,
        lambda d: math.sqrt(abs(d)),
    ],
    ids=["parabola", "edge", "valley in a plain", "skew", "cusp"],
)
def test_the_valley_is_found_to_the_tolerance(best, shape) -> None:
    """Of functions of ln sigma with one valley; by golden sections, after nine levels."""
    f = Recorded(lambda level: shape(math.log(level / best)))
    found = search_level(f, 0.002, 80.0, tolerance=0.02)
    f.holds(found)
    assert abs(math.log(found.level / best)) < 0.02
    assert len(f.seen) <= 9 + math.ceil(math.log(0.02 / (2 * math.log(40_000) / 10)) / math.log(0.6180339)) + 2
    assert all(0.002 < level < 80 for level in f.seen)


def test_fewer_trials_for_a_wider_tolerance() -> None:
    def spent(tolerance: float) -> int:
        f = Recorded(lambda level: math.log(level) ** 2)
        search_level(f, 0.002, 80.0, tolerance=tolerance)
        return len(f.seen)

    assert spent(10.0) == 9
    assert 9 < spent(0.5) < spent(0.1) < spent(0.01)


@pytest.mark.parametrize("seed", range(20))
def test_noise_leads_astray_by_no_more_than_it_is_worth(seed: int) -> None:
    """What is returned was measured, is the least of it, and is as good as the valley up to the noise."""
    rng = np.random.default_rng(seed)
    f = Recorded(lambda level: math.log(level / 0.8) ** 2 + rng.normal(0, 0.05))
    found = search_level(f, 0.002, 80.0, tolerance=0.05)
    f.holds(found)
    assert math.log(found.level / 0.8) ** 2 < 0.4


@pytest.mark.parametrize("seed", range(10))
def test_pure_noise_and_two_valleys_still_give_the_best_that_was_seen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for function in (
        lambda level: float(rng.normal()),
        lambda level: min(math.log(level / 0.02) ** 2 + 0.1, math.log(level / 5) ** 2),
        lambda level: 1.0,
        lambda level: math.inf if level < 1 else level,
    ):
        f = Recorded(function)
        f.holds(search_level(f, 0.002, 80.0))


def test_the_deeper_of_two_valleys_is_found_where_the_scan_sees_it() -> None:
    found = search_level(lambda level: min(math.log(level / 0.02) ** 2 + 1, math.log(level / 5) ** 2), 0.002, 80.0)
    assert found.level == pytest.approx(5, rel=0.1)


def test_what_is_no_number_is_the_worst_of_all() -> None:
    f = Recorded(lambda level: math.nan if level < 3 else level)
    found = search_level(f, 0.002, 80.0)
    assert found.distance == min(value for value in f.seen.values() if not math.isnan(value))


def test_levels_are_told_by_four_digits() -> None:
    f = Recorded(lambda level: math.log(level) ** 2)
    search_level(f, 0.002, 80.0, tolerance=1e-6)  # ends, though digits do not
    assert all(level == float(f"{level:.4g}") for level in f.seen)


@pytest.mark.parametrize(
    ("low", "high", "options"),
    [(0, 80, {}), (2, 1, {}), (1, math.inf, {}), (1, 2, {"tolerance": 0}), (1, 2, {"scan": 0})],
)
def test_brackets_that_are_none_are_refused(low, high, options) -> None:
    with pytest.raises(ValueError, match="0 < low < high"):
        search_level(abs, low, high, **options)


# Several levels


def valley(*best: float):
    """A distance of grids that falls with every level at its place, by a tenth each time less."""

    def distance(times: tuple[float, ...]) -> float:
        assert times[0] == 80
        assert times[-1] == 0
        assert all(a > b for a, b in itertools.pairwise(times))
        inner = times[1:-1]
        misses = [min(1.0, *((math.log(t / b)) ** 2 for t in inner)) for b in best]
        return 1 + sum(miss / 10**k for k, miss in enumerate(misses))

    return distance


def test_times_are_found_one_by_one_and_stay_where_they_were() -> None:
    two, three, four = search_times(valley(0.8, 6.0, 0.1), 4, low=0.002, high=80.0, tolerance=0.01)
    assert two.times == (80.0, pytest.approx(0.8, rel=0.02), 0.0)
    assert three.times == (80.0, pytest.approx(6.0, rel=0.02), two.times[1], 0.0)
    assert four.times == (*three.times[:3], pytest.approx(0.1, rel=0.02), 0.0)
    assert two.distance > three.distance > four.distance


def test_grids_that_are_known_are_tried_first_and_kept_where_nothing_is_better() -> None:
    seen: list[tuple[float, ...]] = []

    def distance(times: tuple[float, ...]) -> float:
        seen.append(times)
        return 0.0 if times == (80.0, 33.3, 0.0) else abs(math.log(times[1])) + 1

    known = [(80.0, 33.3, 0.0), (80.0, 2.5, 0.0), (80.0, 33.3, 0.0), (80.0, 5.0, 2.0, 0.0)]
    two, three = search_times(distance, 3, low=0.002, high=80.0, known=known)
    assert seen[:2] == known[:2]
    assert (two.times, two.distance) == ((80.0, 33.3, 0.0), 0.0)
    assert seen.count((80.0, 33.3, 0.0)) == 1  # once is enough, and of three steps it is none
    assert three.distance == min(abs(math.log(times[1])) + 1 for times in seen if len(times) == 4)


def test_a_search_for_nothing_and_a_distance_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="a grid of 1 steps has no time between"):
        next(search_times(valley(1.0), 1, low=0.002, high=80.0))
    with pytest.raises(ValueError, match="no grid of 2 steps has a distance that is a number"):
        next(search_times(lambda times: math.nan, 2, low=0.002, high=80.0))
