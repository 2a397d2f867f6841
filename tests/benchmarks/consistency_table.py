"""The table of ``consistency.py``: arms, what each part of iCT is worth, and what was aimed at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from consistency_arms import ARMS
from study import Record

BETTER = 3.07  # CT's FID over iCT's in one step on CIFAR-10: 8.70 (arXiv 2303.01469) over 2.83 (arXiv 2310.14189)
TENTH = 1.3  # what ECT may lose against iCT with a tenth of its steps
POINTS = 5  # of a curve


def table(records: Sequence[Record], name: str, size: int) -> str:
    """Return the report of all that is finished, as Markdown."""
    title = f"{name} at {size}x{size}" if size else name
    parts = [f"# Consistency models on {title}\n"]
    parts += [part(records) for part in (_ends, _arms, _ratios, _targets, _curves, _trials, _cost)]
    return "\n".join(part for part in parts if part)


def _rows(said: str, head: str, rows: Sequence[str]) -> str:
    return "\n".join([said, "", head, "|" + "---|" * (head.count("|") - 1), *rows, ""]) if rows else ""


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _runs(records: Sequence[Record], arm: str) -> list[Record]:
    """Return the final runs of an arm, by seed."""
    found = [r for r in records if r.get("purpose") == "table" and r.get("arm") == arm and "distances" in r]
    return sorted(found, key=lambda r: r["seed"])


def _by_seed(records: Sequence[Record], arm: str, steps: int) -> dict[int, float]:
    """Return the distance of each seed's run, the mean of its ranges."""
    return {r["seed"]: _mean(r["distances"][str(steps)]) for r in _runs(records, arm)}


def _distance(records: Sequence[Record], arm: str, steps: int = 1) -> float:
    """Return the mean distance of an arm, NaN if it has no runs."""
    found = _by_seed(records, arm, steps)
    return _mean(list(found.values())) if found else math.nan


def _whole_edms(records: Sequence[Record]) -> list[Record]:
    found = [r for r in records if r.get("purpose") == "edm" and r.get("arm") == "edm-1" and "distances" in r]
    return sorted(found, key=lambda r: r["seed"])


def _ends(records: Sequence[Record]) -> str:
    edms = _whole_edms(records)
    if not edms:
        return ""
    each = [_mean(r["distances"]) for r in edms]
    return (
        "Fréchet distances to the held-out images, means of five ranges of seeds. Ceiling, an EDM with the whole"
        f" budget by Heun's rule in 18 steps: **{_mean(each):.2f}** (by seed {_list(each)}). Floor, which real training"
        f" images score: {edms[0]['floor']:.3f}.\n"
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.2f}" for v in values)


def _arms(records: Sequence[Record]) -> str:
    rows = []
    for arm in ARMS:
        runs = _runs(records, arm)
        if runs:
            ones = list(_by_seed(records, arm, 1).values())
            rest = {k: _mean([r[k] for r in runs]) for k in ("memorising", "accuracy")}
            rows.append(
                f"| {arm} | {ARMS[arm].what} | {_list(ones)} | **{_mean(ones):.2f}** | {_distance(records, arm, 2):.2f}"
                f" | {rest['memorising']:.2f} | {rest['accuracy']:.1%} |"
            )
    chosen = next((f"{r['level']:g}" for r in records if r.get("purpose") == "middle"), "0.821")
    said = f"Arms, in one step and in two, of which the second begins at noise level {chosen}, iCT's choice:"
    return _rows(said, "| arm | what | 1 step, by seed | mean | 2 steps | memorising | asked class |", rows)


def _ratios(records: Sequence[Record]) -> str:
    edms = _whole_edms(records)
    floor = edms[0]["floor"] if edms else math.nan
    best = {steps: _by_seed(records, "iCT", steps) for steps in (1, 2)}
    rows = []
    for arm in (arm for arm in ARMS if arm != "iCT"):
        own = {steps: _by_seed(records, arm, steps) for steps in (1, 2)}
        seeds = [seed for seed in own[1] if seed in best[1]]
        if seeds:
            one, two = ([own[k][s] / best[k][s] for s in seeds] for k in (1, 2))
            left = [(own[1][s] - floor) / (best[1][s] - floor) for s in seeds]
            above = f"{_mean(left):.2f}" if all(best[1][s] > floor for s in seeds) else ""
            spread = f"{min(one):.2f} to {max(one):.2f}"
            rows.append(f"| {arm} | {ARMS[arm].what} | {_mean(one):.2f} | {spread} | {above} | {_mean(two):.2f} |")
    said = "Distance over iCT's of the same seed, so that above 1 iCT is better:"
    head = "| arm | what | 1 step | over seeds | of what exceeds the floor | 2 steps |"
    return _rows(said, head, rows)


def _targets(records: Sequence[Record]) -> str:
    ict = _distance(records, "iCT")
    tenth, shown = _tenth(records)
    found = {arm: _distance(records, arm) for arm in ("CT", "CT perceptual") if _runs(records, arm)}
    ct = min(found, key=lambda arm: found[arm], default="CT")
    gain = found.get(ct, math.nan) / ict
    second = {arm: _distance(records, arm, 2) / _distance(records, arm) for arm in ARMS if _runs(records, arm)}
    fewer = second.get("iCT", math.nan)
    helped = f"{fewer:.2f} x, and below 1 in {sum(v < 1 for v in second.values())} of {len(second)} arms"
    rows = [
        _target(f"iCT in one step at most the better CT's / {BETTER}", gain, f"/ {gain:.2f} ({ct})", BETTER.__le__),
        _target("iCT better in two steps than in one", fewer, helped, lambda v: v < 1),
        _target(f"ECT in a tenth of the steps at most {TENTH} x iCT", tenth, shown, TENTH.__ge__),
    ]
    return _rows("What was aimed at:", "| aim | found | |", rows)


def _tenth(records: Sequence[Record]) -> tuple[float, str]:
    """Return the distance of ECT in a tenth of the steps over iCT's, and how it is written, with its second row."""
    ict, shown = _by_seed(records, "iCT", 1), []
    for arm in ("ECT tenth", "ECT tenth, again"):
        own = _by_seed(records, arm, 1)
        if each := [own[seed] / ict[seed] for seed in own if seed in ict]:
            shown.append(f"{arm} {_mean(each):.2f} x ({min(each):.2f} to {max(each):.2f} over seeds)")
    return _distance(records, "ECT tenth") / _distance(records, "iCT"), "; ".join(shown)


def _target(what: str, value: float, found: str, reached: Callable[[float], bool]) -> str:
    """Return a row, of which the value is NaN if runs are missing."""
    if math.isnan(value):
        return f"| {what} | | not measured yet |"
    return f"| {what} | {found} | {'met' if reached(value) else 'missed'} |"


def _curves(records: Sequence[Record]) -> str:
    rows = []
    for arm in ARMS:
        curves = [_points(r["curve"]) for r in _runs(records, arm) if r.get("curve")]
        if curves:
            rows.append(f"| {arm} | {' | '.join(f'{_mean(points):.2f}' for points in zip(*curves, strict=True))} |")
    head = f"| arm | {' | '.join(f'{100 * k // POINTS} %' for k in range(1, POINTS + 1))} |"
    said = "One-step distance on the way (one range of other seeds, mean over training seeds), by share of its steps:"
    return _rows(said, head, rows)


def _points(curve: Sequence[float]) -> list[float]:
    """Return the points at even shares of a curve, which very short runs have more or fewer of."""
    return [curve[math.ceil(k * len(curve) / POINTS) - 1] for k in range(1, POINTS + 1)]


def _trials(records: Sequence[Record]) -> str:
    rows = []
    for arm in ARMS:
        tried = [r for r in records if r.get("purpose") == "tuning" and r.get("arm") == arm]
        tried.sort(key=lambda r: r["trial"])
        if tried:
            least = min(r.get("distance", math.inf) for r in tried)
            shown = [_trial(r, least) for r in tried]
            names = [str(ARMS[arm].trials[r["trial"]]) for r in tried]
            found = [f"{trial}: {distance}" for trial, distance in zip(names, shown, strict=True)]
            rows.append(f"| {arm} | {'; '.join(found)} |")
    said = "Trials, shorter runs by learning rate and the last number of levels, judged against the training images:"
    return _rows(said, "| arm | one-step distance by trial; the least is taken |", rows)


def _trial(record: Record, least: float) -> str:
    distance = record.get("distance")
    if distance is None:
        return "failed"
    return f"**{distance:.2f}**" if distance == least else f"{distance:.2f}"


def _cost(records: Sequence[Record]) -> str:
    seconds = (r.get(key, 0.0) for r in records for key in ("cpu_seconds", "measured_cpu_seconds"))
    return f"All of it took {sum(seconds) / 3600:.1f} CPU-hours.\n"
