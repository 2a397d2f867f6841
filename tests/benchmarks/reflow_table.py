"""The tables of ``reflow.py``: what was measured beside what the paper reports."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

ARMS = {
    "A": "plain 2-RF of the 1-RF: uniform t, squared L2",
    "B": "plain 2-RF of the EDM teacher: uniform t, squared L2",
    "C": "B with U-shaped t",
    "D": "C with pseudo-Huber",
    "F": "C with perceptual-Huber, over t",
    "G": "F, fine-tuned on real pairs",
}
STEPS = {  # from, to: factor of one-step FID on CIFAR-10 in arXiv 2405.20320, Table 1, and what is aimed at
    ("B", "C"): (0.72, None),
    ("C", "D"): (1.01, None),
    ("D", "F"): (0.64, None),
    ("B", "F"): (0.47, 0.47),
    ("A", "F"): (0.28, 0.28),
    ("F", "G"): (0.91, None),
}

Record = dict[str, Any]


def table(records: Sequence[Record], name: str, size: int) -> str:
    """Return the report of all that is finished, as Markdown."""
    title = f"{name} at {size}x{size}" if size else name
    parts = [
        f"# Reflow on {title}\n",
        _teachers(records),
        _arms(records),
        _factors(records),
        _curves(records),
        _inversion(records),
    ]
    parts += [_conditionings(records), _tuning(records), _cost(records)]
    return "\n".join(part for part in parts if part)


def _rows(head: str, rows: Sequence[str]) -> str:
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows, ""])


def _of(records: Sequence[Record], purpose: str) -> list[Record]:
    return [r for r in records if r.get("purpose") == purpose]


def _one(record: Record) -> float:
    return statistics.fmean(record["distances"]["1"])


def _pairs(records: Sequence[Record]) -> tuple[float, float]:
    """Return the distance of the EDM teacher's pairs, and of the 1-RF's, which arm A has."""
    found = {r["model"]: statistics.fmean(r["distances"]["18"]) for r in records if "pairs_cpu_seconds" in r}
    return found["tiny-edm"], found["tiny-rf"]


def _teachers(records: Sequence[Record]) -> str:
    found = [r for r in records if "distances" in r and "model" in r]
    rows = []
    for r in sorted(found, key=lambda r: r["model"]):
        distances = " | ".join(f"{statistics.fmean(r['distances'][k]):.2f}" for k in ("1", "2", "4", "18"))
        minutes = f"{r['cpu_seconds'] / 60:.1f} | {r['pairs_cpu_seconds'] / 60:.1f}"
        rows.append(f"| {r['model']} | {distances} | {r['gap']:.4f} | {minutes} |")
    said = (
        "Teachers: Fréchet distance to the held-out images by steps (Euler in one, else Heun); at 18 it is the pairs'."
        " Gap: mean squared difference of one-step and 32-step images of the same seeds, in [-1, 1]."
    )
    said += f" Floor, which real training images score: {found[0]['floor']:.3f}.\n"
    head = "| teacher | 1 step | 2 | 4 | 18 (pairs) | gap | CPU-minutes | of its pairs |"
    return said + "\n" + _rows(head, rows)


def _arms(records: Sequence[Record]) -> str:
    pairs = _pairs(records)
    rows = []
    for arm, what in ARMS.items():
        runs = sorted((r for r in _of(records, "table") if r["arm"] == arm), key=lambda r: r["seed"])
        if not runs:
            continue
        ones = [_one(r) for r in runs]
        mean = {k: statistics.fmean(statistics.fmean(r["distances"][k]) for r in runs) for k in ("1", "2", "4")}
        own = pairs[arm == "A"]
        rest = {k: statistics.fmean(r[k] for r in runs) for k in ("memorising", "accuracy", "gap")}
        rows.append(
            f"| {arm} | {what} | {', '.join(f'{v:.2f}' for v in ones)} | **{mean['1']:.2f}** | {mean['1'] / own:.2f} x"
            f" | {mean['2']:.2f} | {mean['4']:.2f} | {rest['memorising']:.2f} | {rest['accuracy']:.1%}"
            f" | {rest['gap']:.4f} |"
        )
    head = (
        "| arm | what | 1 step, by seed | mean | over its pairs' | 2 steps | 4 steps | memorising | asked class | gap |"
    )
    said = "Arms, all in equally many steps, but G, which has a twentieth more; sampled by Euler's rule:\n"
    return said + "\n" + _rows(head, rows)


def _factors(records: Sequence[Record]) -> str:
    ones = {(r["arm"], r["seed"]): _one(r) for r in _of(records, "table")}
    pairs = _pairs(records)
    rows = []
    for (first, second), (paper, aim) in STEPS.items():
        seeds = [s for arm, s in sorted(ones) if arm == first and (second, s) in ones]
        found = [ones[second, s] / ones[first, s] for s in seeds]
        left = [(ones[second, s] - pairs[0]) / (ones[first, s] - pairs[first == "A"]) for s in seeds]
        if found:
            met = "" if aim is None else f"{'met' if statistics.fmean(found) <= aim else 'missed'} (at most {aim})"
            spread = f"{min(found):.2f} to {max(found):.2f}"
            factors = f"{statistics.fmean(found):.2f} | {spread} | {statistics.fmean(left):.2f}"
            rows.append(f"| {first} to {second} | {factors} | {paper} | {met} |")
    head = "| step | factor of the one-step distance | over seeds | of what exceeds the pairs' | in the paper | aim |"
    said = (
        "What each step is worth, the same seed on both sides; beside the factors of FID on CIFAR-10 in Table 1 of"
        " arXiv 2405.20320:\n"
    )
    return said + "\n" + _rows(head, rows)


def _curves(records: Sequence[Record]) -> str:
    rows = []
    for arm in ARMS:
        curves = [r["curve"] for r in _of(records, "table") if r["arm"] == arm]
        if curves:
            means = [statistics.fmean(points) for points in zip(*curves, strict=True)]
            rows.append(f"| {arm} | {' | '.join(f'{v:.2f}' for v in means)} |")
    said = "One-step distance on the way (one range of other seeds, mean over training seeds), by share of the steps:\n"
    return said + "\n" + _rows("| arm | 20 % | 40 % | 60 % | 80 % | 100 % |", rows)


def _inversion(records: Sequence[Record]) -> str:
    found = next((r for r in records if r.get("model") == "inversion"), None)
    if found is None:
        return ""
    rows = []
    kinds = [key.removesuffix(" norm") for key in found if key.endswith(" norm")]
    for kind in kinds:
        title = "2-RF++ (F), Euler" if kind == "F" else f"EDM {kind}"
        errors = (", ".join(f"{v:.4f}" for v in found[f"{kind} {calls}"]) for calls in (2, 4, 8))
        norms = ", ".join(f"{v:.3f}" for v in found[f"{kind} norm"])
        rows.append(f"| {title} | {' | '.join(errors)} | {norms} |")
    said = (
        "Mean squared error, in [-1, 1], of 256 held-out images carried to noise and back, at most so many"
        " calls each way (by seed), and mean square of the noise of 8 calls, which is 1 for true noise:\n"
    )
    return said + "\n" + _rows("| model | 2 + 2 | 4 + 4 | 8 + 8 | mean square |", rows)


def _conditionings(records: Sequence[Record]) -> str:
    tried = _of(records, "conditioning")
    names = list(dict.fromkeys(r["conditioning"] for r in tried))
    distance = {(r["conditioning"], r["arm"]): r["distance"] for r in tried}
    rows = [f"| {n} | {' | '.join(f'{distance[n, arm]:.2f}' for arm in 'BF' if (n, arm) in distance)} |" for n in names]
    said = (
        "What the network is told of t: one-step distance to the training images after half as many steps, one seed."
        " Level is ln(noise level) / 4, clipped; unless it says so, students start from the EDM teacher's weights.\n"
    )
    return said + "\n" + _rows("| conditioning | B | F |", rows)


def _tuning(records: Sequence[Record]) -> str:
    tried = _of(records, "tuning")
    rows = []
    for arm in ARMS:
        runs = sorted((r for r in tried if r["arm"] == arm), key=lambda r: r["rate"])
        if runs:
            found = [f"{r['rate']:g}: {r['distance']:.2f}" for r in runs]
            rows.append(f"| {arm} | {', '.join(found)} |")
    said = "Trials of learning rates, judged as conditionings are; the table has the best of each:\n"
    return said + "\n" + _rows("| arm | distance by rate |", rows)


def _cost(records: Sequence[Record]) -> str:
    keys = ("cpu_seconds", "pairs_cpu_seconds", "measured_cpu_seconds")
    hours = sum(r.get(key, 0.0) for r in records for key in keys) / 3600
    return f"All of it took {hours:.1f} CPU-hours.\n"
