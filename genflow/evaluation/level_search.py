"""The search for the noise levels of a time grid: the least of a function that is dear to evaluate, and noisy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_GOLDEN = (3 - math.sqrt(5)) / 2  # share of the larger part at which the next point lies
DIGITS = 4  # of levels that are tried: what is stored is what was measured


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A noise level, and the distance that was measured there."""

    level: float
    distance: float


def search_level(
    distance: Callable[[float], float], low: float, high: float, *, tolerance: float = 0.1, scan: int = 9
) -> Trial:
    """Return the best of the noise levels in (low, high) that were tried, never one that was not.

    ``scan`` levels come first, even in ln sigma, since a distance is flat where a level changes little and may have
    more than one valley. Then golden sections close in on the best of them, a level each, until those about it are
    ``tolerance`` apart in ln sigma. Levels have four digits; none is tried twice.
    Source of the search: "Consistency Models", arXiv 2303.01469, section 3 (there a ternary one).

    Raises ``ValueError`` unless 0 < low < high, tolerance > 0 and scan >= 1.
    """
    if not 0 < low < high < math.inf or not tolerance > 0 or scan < 1:
        raise ValueError(f"need 0 < low < high, tolerance > 0 and scan >= 1, got {low}, {high}, {tolerance}, {scan}")
    tried: dict[float, float] = {}

    def measure(place: float) -> float:
        level = float(f"{math.exp(place):.{DIGITS}g}")
        if level not in tried:
            tried[level] = distance(level)
        found = tried[level]
        return math.inf if math.isnan(found) else found

    start, end = math.log(low), math.log(high)
    places = [start + (end - start) * k / (scan + 1) for k in range(scan + 2)]
    best = min(range(1, scan + 1), key=lambda k: measure(places[k]))
    left, middle, right = places[best - 1 : best + 2]
    while right - left > tolerance:
        upper = right - middle > middle - left
        place = middle + _GOLDEN * (right - middle if upper else left - middle)
        if measure(place) < measure(middle):
            left, middle, right = (middle, place, right) if upper else (left, place, middle)
        else:
            left, right = (left, place) if upper else (place, right)
    level = min(tried, key=lambda each: math.inf if math.isnan(tried[each]) else tried[each])
    return Trial(level=level, distance=tried[level])


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best time grid of a number of steps, and its distance."""

    times: tuple[float, ...]
    distance: float


def search_times(
    distance: Callable[[tuple[float, ...]], float],
    steps: int,
    *,
    low: float,
    high: float,
    known: Sequence[tuple[float, ...]] = (),
    tolerance: float = 0.1,
) -> Iterator[Found]:
    """Yield the best grids of 2 to ``steps`` steps from ``high`` to 0: greedily, one time more each, by its distance.

    The one more is searched by ``search_level`` between ``low`` and ``high``, the others staying where they were found.
    Grids that are ``known``, such as those a model has, are tried first, so that what is yielded is never worse.
    Source: "Consistency Models", arXiv 2303.01469, section 3.

    Raises ``ValueError`` for fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"a grid of {steps} steps has no time between the first and 0 to search for")
    grid: tuple[float, ...] = (high, 0.0)
    for count in range(2, steps + 1):
        candidates = [
            Found(times=each, distance=distance(each)) for each in dict.fromkeys(known) if len(each) == count + 1
        ]
        trial = search_level(_one_more(distance, grid), low, high, tolerance=tolerance)
        candidates.append(Found(times=_sorted_in(grid, trial.level), distance=trial.distance))
        best = min(candidates, key=lambda each: math.inf if math.isnan(each.distance) else each.distance)
        if not math.isfinite(best.distance):
            raise ValueError(f"no grid of {count} steps has a distance that is a number")
        yield best
        grid = best.times


def _one_more(distance: Callable[[tuple[float, ...]], float], grid: tuple[float, ...]) -> Callable[[float], float]:
    """Return the distance of a grid with one level more; a level that it has already is none."""
    return lambda level: math.inf if level in grid else distance(_sorted_in(grid, level))


def _sorted_in(grid: tuple[float, ...], level: float) -> tuple[float, ...]:
    return tuple(sorted((*grid, level), reverse=True))
