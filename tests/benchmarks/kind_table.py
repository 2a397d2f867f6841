"""The tables of ``kind.py``: arms with paired intervals, diversion, parts, one step, and what was asked beforehand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from kind_arms import ARMS, BASE, NOVEL, ONE_STEP, STARTS
from scipy import stats
from study import Record

SHARES = ("2", "4", "5", "20", "100")
FOLLOWS = 0.9  # share of samples that show the gate's class
BESIDE_DENSE = 1.5  # distance of KIND over that of the dense network, on the base classes
EARLY = "4"  # per cent of the steps after which KIND is to be ahead
AHEAD = {"LoRA": 0.7, "SVD": 0.9}  # its distance there over that of these


def table(records: Sequence[Record], name: str, size: int) -> str:
    """Return the report of all that is finished, as Markdown."""
    title = f"{name} at {size}x{size}" if size else name
    parts = [f"# KIND on {title}\n"]
    parts += [f(records) for f in (_marks, _base, _arms, _intervals, _diversion, _parts, _one_step, _trials, _cost)]
    return "\n".join(part for part in parts if part)


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return a mean of paired differences and the ends of its Student interval, infinite for a single pair.

    ``mean ± t s / √n`` with t the quantile of n - 1 degrees of freedom and s the standard deviation over n pairs.
    """
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * statistics.stdev(differences) / count**0.5
    return mean, mean - half, mean + half


def paired(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """Return the differences, one minus other, of the seeds that both have, by seed."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def ratio(one: dict[int, float], other: dict[int, float]) -> float:
    """Return the geometric mean of the ratios, one over other, of the seeds that both have; NaN if there are none."""
    shared = one.keys() & other.keys()
    return math.exp(statistics.fmean(math.log(one[s] / other[s]) for s in shared)) if shared else math.nan


def _rows(said: str, head: str, rows: Sequence[str]) -> str:
    return "\n".join([said, "", head, "|" + "---|" * (head.count("|") - 1), *rows, ""]) if rows else ""


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _finals(records: Sequence[Record], job: str, arm: str) -> list[Record]:
    found = [r for r in records if (r["job"], r["purpose"], r["arm"]) == (job, "table", arm) and "failed" not in r]
    return sorted(found, key=lambda r: r["seed"])


def _distances(records: Sequence[Record], arm: str, share: str) -> dict[int, float]:
    """Return the distance of each seed's run after a share of the steps."""
    return {r["seed"]: _mean(r["found"][share]["distances"]) for r in _finals(records, "transfer", arm)}


def _accuracies(records: Sequence[Record], arm: str, share: str) -> dict[int, float]:
    return {r["seed"]: r["found"][share]["accuracy"] for r in _finals(records, "transfer", arm)}


def _starts(records: Sequence[Record], arm: str) -> dict[int, float]:
    return {r["seed"]: _mean(r["distances"]) for r in _finals(records, "pretrain", arm)}


def _marks(records: Sequence[Record]) -> str:
    kinds = _finals(records, "pretrain", "kind")
    follows = _mean([r["diversion"]["follows_gate"] for r in kinds])
    beside = ratio(_starts(records, "kind"), _starts(records, "dense"))
    said = f"samples under another's gate show the gate's class, over {FOLLOWS:.0%}"
    rows = [_mark(said, follows, f"{follows:.1%}", FOLLOWS.__lt__)]
    said = f"distance on the base classes at most {BESIDE_DENSE} x the dense network's"
    rows.append(_mark(said, beside, f"{beside:.2f} x", BESIDE_DENSE.__ge__))
    for arm, most in AHEAD.items():
        found = ratio(_distances(records, "KIND", EARLY), _distances(records, arm, EARLY))
        said = f"distance on new classes after {EARLY} % of the steps under {most} x that of {arm}"
        rows.append(_mark(said, found, f"{found:.2f} x", most.__gt__))
    tried = [r for r in records if "lossless" in r]
    whole = _mean([float(r["lossless"]) for r in tried])
    said = "models extracted for every set of classes draw what the whole one draws, bit by bit"
    rows.append(_mark(said, whole, f"{sum(r['lossless'] for r in tried)} of {len(tried)} models", lambda v: v == 1))
    for arm in (arm for arm in ONE_STEP if arm.endswith("KIND")):
        share = _mean([r["diversion"]["follows_gate"] for r in _finals(records, "one step", arm)])
        rows.append(_mark(f"{arm}, one step: the same share over {FOLLOWS:.0%}", share, f"{share:.1%}", FOLLOWS.__lt__))
    return _rows("What was asked, in numbers that were set before:", "| mark | found | |", rows)


def _mark(what: str, value: float, found: str, passed: Callable[[float], bool]) -> str:
    """Return a row, of which the value is NaN if runs are missing."""
    if math.isnan(value):
        return f"| {what} | | not measured yet |"
    return f"| {what} | {found} | {'pass' if passed(value) else '**fail**'} |"


def _floor(runs: Sequence[Record]) -> str:
    return f"{runs[0]['floor']:.3f}" if runs else ""


def _base(records: Sequence[Record]) -> str:
    rows, every = [], []
    for start in STARTS:
        runs = _finals(records, "pretrain", start)
        every += runs
        if runs:
            mean = {k: _mean([r[k] for r in runs]) for k in ("accuracy", "memorising", "loss")}
            rows.append(
                f"| {start} | {STARTS[start].what} | {runs[0]['stored']:,} | {_list(_starts(records, start).values())}"
                f" | {mean['accuracy']:.1%} | {mean['memorising']:.2f} | {mean['loss']:.4f}"
                f" | {_step(runs)} |"
            )
    said = (
        f"Before: Fréchet distance to the held-out digits {_digits(BASE)} by seed; real training images score"
        f" {_floor(every)}. Memorising: distance to the nearest training image over that of held-out ones. Loss: on"
        " held-out images."
    )
    head = "| model | what | parameters | distance | asked class | memorising | loss | s a step |"
    return _rows(said, head, rows)


def _digits(digits: Sequence[int]) -> str:
    return f"{digits[0]} to {digits[-1]}"


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{v:.2f}" for v in values)


def _step(runs: Sequence[Record]) -> str:
    return f"{_mean([r['cpu_seconds'] / r['steps'] for r in runs]):.3f}"


def _arms(records: Sequence[Record]) -> str:
    rows, every = [], []
    for arm, how in ARMS.items():
        runs = _finals(records, "transfer", arm)
        every += runs
        if runs:
            fd = [_mean(list(_distances(records, arm, share).values())) for share in SHARES]
            read = [_mean(list(_accuracies(records, arm, share).values())) for share in SHARES]
            last = {k: _mean([r["found"]["100"][k] for r in runs]) for k in ("memorising", "loss")}
            rows.append(
                f"| {arm} | {how.what} | {len(runs)} | {runs[0]['trained']:,} | {' | '.join(f'{v:.2f}' for v in fd)} |"
                f" {' | '.join(f'{v:.0%}' for v in read)} | {last['memorising']:.2f} | {last['loss']:.4f}"
                f" | {_step(runs)} |"
            )
    said = (
        f"New classes: Fréchet distance to the held-out digits {_digits(NOVEL)}, and share that shows the class asked"
        f" for, after so many per cent of the steps, means over seeds; real training images score {_floor(every)}."
    )
    shares = " | ".join(f"{share} %" for share in SHARES)
    classes = shares.replace(" %", " %, class")
    head = f"| arm | what | seeds | trained | {shares} | {classes} | memorising | loss | s a step |"
    return _rows(said, head, rows)


def _intervals(records: Sequence[Record]) -> str:
    rows = []
    for arm, how in ARMS.items():
        if arm == "KIND" or not how.every_seed:
            continue
        cells = [
            _cell(paired(of(records, arm, share), of(records, "KIND", share)), form)
            for of, form in ((_distances, "{:+.2f}"), (_accuracies, "{:+.1%}"))
            for share in SHARES
        ]
        if any(cells):
            rows.append(f"| {arm} | {' | '.join(cells)} |")
    said = (
        "Arm minus KIND, paired by seed, with 95 % intervals of Student's t over seeds; of distances more is better for"
        " KIND, of classes less. Bold: the interval excludes 0."
    )
    shares = " | ".join(f"{share} %" for share in SHARES)
    return _rows(said, f"| arm | {shares} | {shares.replace(' %', ' %, class')} |", rows)


def _cell(differences: Sequence[float], form: str) -> str:
    if not differences:
        return ""
    mean, low, high = interval(differences)
    if math.isinf(low):
        return form.format(mean)
    shown = f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"
    return f"**{shown}**" if low > 0 or high < 0 else shown


def _diversion(records: Sequence[Record]) -> str:
    runs = _finals(records, "pretrain", "kind")
    if not runs:
        return ""
    each = [r["diversion"] for r in runs]
    rows = []
    for gate in BASE:
        shares = [_mean([d["matrix"][gate][digit] for d in each]) for digit in range(10)]
        rows.append(f"| {gate} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    said = (
        f"Diversion: what is read in samples under the gate of a class and with the labels of the others, mean over"
        f" seeds. The gate's class in {_mean([d['follows_gate'] for d in each]):.1%}, the label's in"
        f" {_mean([d['follows_label'] for d in each]):.1%}. With no gate open, learngenes alone, the label's in"
        f" {_mean([d['learngenes'] for d in each]):.1%} (chance {1 / len(BASE):.0%})."
    )
    return _rows(said, f"| gate | {' | '.join(map(str, range(10)))} |", rows)


def _parts(records: Sequence[Record]) -> str:
    rows = []
    for r in sorted(_finals(records, "part", "kind"), key=lambda r: r["classes"]):
        cells = [
            f"{r[count]:,} | {_mean(r[of]['distances']):.2f} | {r[of]['accuracy']:.1%}"
            for count, of in (("stored", "extracted"), ("dense_stored", "dense"))
        ]
        rows.append(f"| {r['classes']} | {r['floor']:.2f} | {cells[0]} | {r['width']} | {cells[1]} |")
    said = (
        "Parts: the model of the first so many base classes, extracted from the one trained on all, beside a dense"
        " network of about as many parameters trained on these classes alone, in as many steps (first seed)."
    )
    head = (
        "| classes | floor | extracted | distance | asked class | dense width | parameters | distance | asked class |"
    )
    return _rows(said, head, rows)


def _one_step(records: Sequence[Record]) -> str:
    rows, every = [], []
    for arm in ONE_STEP:
        runs = _finals(records, "one step", arm)
        every += runs
        for r in runs:
            turned = r.get("diversion")
            shown = f"{turned['follows_gate']:.1%} | {turned['learngenes']:.1%}" if turned else " | "
            rows.append(f"| {arm} | {ONE_STEP[arm]} | {_mean(r['distances']):.2f} | {r['accuracy']:.1%} | {shown} |")
    said = f"One step, on the base classes (first seed); real training images score {_floor(every)}."
    return _rows(said, "| model | what | distance | asked class | gate's class | learngenes alone |", rows)


def _trials(records: Sequence[Record]) -> str:
    rows = []
    for job, arms in (("pretrain", STARTS), ("transfer", ARMS)):
        for arm in arms:
            tried = [r for r in records if (r["job"], r["purpose"], r["arm"]) == (job, "trial", arm)]
            if tried:
                least = min(r.get("score", math.inf) for r in tried)
                shown = [_trial(r, least) for r in sorted(tried, key=lambda r: r["rate"])]
                rows.append(f"| {arm} | {'; '.join(shown)} |")
    said = "Trials, shorter runs judged by samples of other seeds against the training images; the least is taken:"
    return _rows(said, "| arm | score by learning rate |", rows)


def _trial(record: Record, least: float) -> str:
    score = record.get("score")
    if score is None:
        return f"{record['rate']:g}: failed"
    return f"{record['rate']:g}: **{score:.2f}**" if score == least else f"{record['rate']:g}: {score:.2f}"


def _cost(records: Sequence[Record]) -> str:
    seconds = sum(r.get(key, 0.0) for r in records for key in ("cpu_seconds", "measured_cpu_seconds"))
    return f"All of it took {seconds / 3600:.1f} CPU-hours.\n"
