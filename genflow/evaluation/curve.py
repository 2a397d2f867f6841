"""The Fréchet distance over the number of steps, drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from genflow.evaluation.protocol import Figure, Result
from genflow.evaluation.wording import number, show

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 40, 46, 48
WIDE = 8.0  # a range over which only a logarithmic axis shows both ends
SIGMAS = 1.96  # half of a 95 % interval in standard errors


@dataclass(frozen=True)
class Series:
    """Results that differ in their number of steps alone: points (steps, distance), by steps."""

    name: str
    points: tuple[tuple[int, Figure], ...]


def series_of(results: Sequence[Result]) -> list[Series]:
    """Return what there is to draw: one series for each model, sampler and guidance."""
    found: dict[str, dict[int, Figure]] = {}
    for result in results:
        sampling = result.protocol.samples.sampling
        if sampling is not None:
            guidance = "" if sampling.guidance == 1 else f", guidance {sampling.guidance:g}"
            name = f"{result.protocol.samples.name}, {sampling.sampler}{guidance}"
            found.setdefault(name, {})[sampling.steps] = result.distance
    return [Series(name, tuple(sorted(points.items(), key=lambda p: p[0]))) for name, points in found.items()]


def curve(results: Sequence[Result]) -> str:
    """Return an SVG, or "" where there are not two numbers of steps to draw.

    Both axes are logarithmic, the vertical one only where distances span a factor of eight. Bars are 95 % intervals,
    1.96 standard errors to each side; a dashed line is what real images score, where that is known.
    """
    drawn = series_of(results)
    if max((len(series.points) for series in drawn), default=0) < 2:
        return ""
    floor = next((result.figures["floor"].value for result in results if "floor" in result.figures), None)
    every = [point for series in drawn for point in series.points]
    counts = sorted({steps for steps, _ in every})
    x = _scale((counts[0], counts[-1]), (LEFT + 24, WIDTH - RIGHT - 24), logarithmic=True)
    values = [figure.value for _, figure in every] + ([floor] if floor is not None else [])
    ends = [figure.value + sign * _half(figure) for _, figure in every for sign in (-1, 1)]
    positive = [value for value in values if value > 0]
    logarithmic = len(positive) == len(values) and max(values) > WIDE * min(values)
    if logarithmic:
        low, high = min(values) / 1.6, max(*values, *ends) * 1.15
    else:
        low, high = 0.0, 1.08 * max(*values, *ends) or 1.0
    y = _scale((low, high), (HEIGHT - BOTTOM, TOP), logarithmic=logarithmic)
    parts = [*_axes(counts, x, y, _ticks(low, high, logarithmic=logarithmic), results[0].label)]
    if floor is not None:
        parts.append(f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(floor):.1f}" y2="{y(floor):.1f}"/>')
        below = 16 if logarithmic else -6
        parts.append(_text(WIDTH - RIGHT, y(floor) + below, f"floor {number(floor)}: real images", "end"))
    for k, series in enumerate(drawn):
        parts += _drawn(series, f"s{k % 4}", x, lambda value: y(max(value, low)))
        if len(drawn) > 1:
            parts.append(f'<circle class="s{k % 4}" cx="{WIDTH - RIGHT - 14}" cy="{TOP + 18 * k + 2}" r="4"/>')
            parts.append(_text(WIDTH - RIGHT - 24, TOP + 18 * k + 7, series.name, "end"))
    label = escape(f"{results[0].label} over steps")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n' + "\n".join(parts) + "\n</svg>"


def _drawn(series: Series, kind: str, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """Return a line with its points, their error bars and their values."""
    places = [(x(steps), y(figure.value), figure) for steps, figure in series.points]
    parts = [f'<polyline class="line {kind}" points="{" ".join(f"{px:.1f},{py:.1f}" for px, py, _ in places)}"/>']
    for px, py, figure in places:
        half = _half(figure)
        if half:
            top, bottom = y(figure.value + half), y(figure.value - half)
            path = f"M{px:.1f} {top:.1f}V{bottom:.1f}M{px - 5:.1f} {top:.1f}h10M{px - 5:.1f} {bottom:.1f}h10"
            parts.append(f'<path class="bars {kind}" d="{path}"/>')
        parts.append(f'<circle class="{kind}" cx="{px:.1f}" cy="{py:.1f}" r="4"/>')
        value = show("fd", Figure(value=figure.value, standard_error=figure.standard_error)).split(" ")[0]
        parts.append(_text(px + 8, min(py, y(figure.value + half)) - 7, value, "start", "told"))
    return parts


def _axes(
    counts: Sequence[int], x: Callable[[float], float], y: Callable[[float], float], ticks: Sequence[float], label: str
) -> list[str]:
    parts = []
    for tick in ticks:
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    last = -math.inf
    for count in counts:
        if x(count) - last > 26:  # numbers of steps that lie close would be drawn over each other
            parts.append(_text(x(count), HEIGHT - BOTTOM + 20, str(count), "middle"))
            last = x(count)
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "steps", "middle"))
    parts.append(_text(4, 14, label, "start"))
    return parts


def _scale(values: tuple[float, float], places: tuple[float, float], *, logarithmic: bool) -> Callable[[float], float]:
    """Return the map of values to places, in the logarithm if so; a single value lies in the middle."""
    f: Callable[[float], float] = math.log if logarithmic else float
    low, high = f(values[0]), f(values[1])
    if low == high:
        return lambda _: sum(places) / 2
    return lambda value: places[0] + (f(value) - low) / (high - low) * (places[1] - places[0])


def _ticks(low: float, high: float, *, logarithmic: bool) -> list[float]:
    """Return round numbers between low and high: 1, 2 and 5 times powers of ten, or about five at equal distances."""
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high < 1000 * low else (1,)
        return [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]
    power = 10.0 ** math.floor(math.log10(high / 4))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= high / 5)
    return [k * step for k in range(math.floor(high / step) + 1)]


def _half(figure: Figure) -> float:
    return SIGMAS * (figure.standard_error or 0.0)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
