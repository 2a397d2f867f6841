"""The tables of ``kind.py``: arms with paired intervals, diversion, parts, one step, and what was asked beforehand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import kind_arms
from kind_arms import ARMS, BASE, FEW, FEW_ARMS, NOVEL, ONE_STEP, STARTS
from scipy import stats
from study import Record

SHARES = [str(share) for share in kind_arms.SHARES]  # as records name them
FEW_SHARES = [str(share) for share in kind_arms.FEW_SHARES]
FOLLOWS = 0.9  # share of samples that show the gate's class
BESIDE_DENSE = 1.5  # distance of KIND over that of the dense network, on the base classes
EARLY = "4"  # per cent of the steps after which KIND is to be ahead
AHEAD = {"LoRA": 0.7, "SVD": 0.9}  # its distance there over that of these


def table(records: Sequence[Record], name: str, size: int) -> str:
    """Return the report of all that is finished, as Markdown."""
    title = f"{name} at {size}x{size}" if size else name
    parts = [f"# KIND on {title}\n"]
    shown = (_marks, _base, _arms, _intervals, _few, _diversion, _parts, _one_step, _trials, _failed, _left_out, _cost)
    parts += [f(records) for f in shown]
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


def ratio(one: dict[int, float], other: dict[int, float]) -> tuple[float, str]:
    """Return the geometric mean of the ratios, one over other, of the seeds that both have, and how it is written.

    With the interval of the mean of their logarithms, and the number of seeds; NaN if there are none.
    """
    logs = paired({s: math.log(v) for s, v in one.items()}, {s: math.log(v) for s, v in other.items()})
    if not logs:
        return math.nan, ""
    mean, low, high = (math.exp(v) if v < math.inf else v for v in interval(logs))
    ends = "" if len(logs) == 1 else f" [{low:.2f}, {high:.2f}]"
    return mean, f"{mean:.2f} x{ends}, {_seeds(len(logs))}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


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
    beside, shown = ratio(_starts(records, "kind"), _starts(records, "dense"))
    said = f"samples under another's gate show the gate's class, over {FOLLOWS:.0%}"
    rows = [_mark(said, follows, f"{follows:.1%}, {_seeds(len(kinds))}", FOLLOWS.__lt__)]
    said = f"distance on the base classes at most {BESIDE_DENSE} x the dense network's"
    rows.append(_mark(said, beside, shown, BESIDE_DENSE.__ge__))
    for arm, most in AHEAD.items():
        found, shown = ratio(_distances(records, "KIND", EARLY), _distances(records, arm, EARLY))
        said = f"distance on new classes after {EARLY} % of the steps under {most} x that of {arm}"
        rows.append(_mark(said, found, shown, most.__gt__))
    tried = [r for r in records if "lossless" in r]
    whole = _mean([float(r["lossless"]) for r in tried])
    said = "models extracted for every set of classes draw what the whole one draws, bit by bit"
    rows.append(_mark(said, whole, f"{sum(r['lossless'] for r in tried)} of {len(tried)} models", lambda v: v == 1))
    for arm in (arm for arm in ONE_STEP if arm.endswith("KIND")):
        share = _mean([r["diversion"]["follows_gate"] for r in _finals(records, "one step", arm)])
        rows.append(_mark(f"{arm}, one step: the same share over {FOLLOWS:.0%}", share, f"{share:.1%}", FOLLOWS.__lt__))
    said = (
        "What was asked, in numbers that were set before; ratios with 95 % intervals over seeds, which decide nothing:"
    )
    return _rows(said, "| mark | found | |", rows)


def _mark(what: str, value: float, found: str, passed: Callable[[float], bool]) -> str:
    """Return a row, of which the value is NaN if runs are missing."""
    if math.isnan(value):
        return f"| {what} | | not measured yet |"
    return f"| {what} | {found} | {'pass' if passed(value) else '**fail**'} |"


def _real(runs: Sequence[Record]) -> str:
    """Say what real images score, and as what they are read."""
    if not runs:
        return ""
    floor, read = runs[0]["floor"], runs[0]["read_right"]
    return f"real training images score {floor:.3f}, and {read:.1%} of the held-out ones are read as what they are"


def _losses(runs: Sequence[Sequence[float]]) -> str:
    """Write the mean over runs of the loss in each third of noise levels."""
    return " / ".join(f"{_mean(third):.3f}" for third in zip(*runs, strict=True))


def _base(records: Sequence[Record]) -> str:
    rows, every = [], []
    for start in STARTS:
        runs = _finals(records, "pretrain", start)
        every += runs
        if runs:
            mean = {k: _mean([r[k] for r in runs]) for k in ("accuracy", "memorising")}
            rows.append(
                f"| {start} | {STARTS[start].what} | {_size(runs[0])} | {_list(_starts(records, start).values())}"
                f" | {mean['accuracy']:.1%} | {mean['memorising']:.2f} | {_losses([r['losses'] for r in runs])}"
                f" | {_step(runs)} |"
            )
    said = (
        f"Before: Fréchet distance to the held-out digits {_digits(BASE)} by seed; {_real(every)}. Products: of one"
        " image and class, in millions, not merged (merged, all have the dense network's). Memorising: distance to the"
        " nearest training image over that of held-out ones. Loss: on held-out images, in thirds from low to high"
        " noise. Seconds of CPU time. Training is equal in steps and images, not in parameters or products."
    )
    head = "| model | what | parameters | products | distance | asked class | memorising | loss | s a step |"
    return _rows(said, head, rows)


def _size(run: Record) -> str:
    return f"{run['stored']:,} | {run['macs'] / 1e6:.2f}"


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
            last = [r["found"]["100"] for r in runs]
            rows.append(
                f"| {arm} | {how.what} | {len(runs)} | {runs[0]['trained']:,} | {_size(runs[0])} |"
                f" {' | '.join(f'{v:.2f}' for v in fd)} | {' | '.join(f'{v:.0%}' for v in read)} |"
                f" {_mean([r['memorising'] for r in last]):.2f} | {_losses([r['losses'] for r in last])}"
                f" | {_step(runs)} |"
            )
    said = (
        f"New classes: Fréchet distance to the held-out digits {_digits(NOVEL)}, and share that shows the class asked"
        f" for, after so many per cent of the steps, means over seeds; {_real(every)}. Parameters: stored, adapters"
        " merged but those of classes. In training a tenth of the images have no class: adapters that all classes share"
        " learn from these too."
    )
    shares = " | ".join(f"{share} %" for share in SHARES)
    classes = shares.replace(" %", " %, class")
    head = f"| arm | what | seeds | trained | parameters | products | {shares} | {classes} | memorising | loss | s |"
    return _rows(said, head, rows)


def _intervals(records: Sequence[Record]) -> str:
    rows = []
    for arm in ARMS:
        if arm == "KIND":
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
        " KIND, of classes less. Bold: the interval excludes 0, as one in twenty does by chance; without one there is a"
        " single seed."
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


def _few(records: Sequence[Record]) -> str:
    rows = []
    for images in FEW:
        runs = {arm: [r for r in _finals(records, "few", arm) if r["images"] == images] for arm in FEW_ARMS}
        for arm, found in runs.items():
            if not found:
                continue
            cells = []
            for share in FEW_SHARES:
                fd, kinds = (
                    {r["seed"]: _mean(r["found"][share]["distances"]) for r in of} for of in (found, runs["KIND"])
                )
                beside = "" if arm == "KIND" else _cell(paired(fd, kinds), "{:+.2f}")
                cells.append(f"{_list(fd.values())} | {beside}")
            last = [r["found"][FEW_SHARES[-1]] for r in found]
            read, near = (_mean([r[k] for r in last]) for k in ("accuracy", "memorising"))
            rows.append(f"| {images} | {arm} | {' | '.join(cells)} | {read:.0%} | {near:.2f} |")
    said = (
        "Few images of each new class: distance by seed after so many per cent of the steps, and how much more than"
        " KIND's, as above; asked class and memorising after the last of these."
    )
    shares = " | ".join(f"{share} % | more" for share in FEW_SHARES)
    return _rows(said, f"| images | arm | {shares} | asked class | memorising |", rows)


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
    rates = ", ".join(f"{r['rate']:g}" for r in every)
    said = f"One step, on the base classes (first seed), at the learning rates {rates}; {_real(every)}."
    return _rows(said, "| model | what | distance | asked class | gate's class | learngenes alone |", rows)


def _trials(records: Sequence[Record]) -> str:
    rows = []
    for job, arms in (("pretrain", STARTS), ("transfer", ARMS), ("one step", ONE_STEP)):
        for arm in arms:
            tried = [r for r in records if (r["job"], r["purpose"], r["arm"]) == (job, "trial", arm)]
            if tried:
                least = min(r.get("score", math.inf) for r in tried)
                shown = [_trial(r, least) for r in sorted(tried, key=lambda r: r["rate"])]
                rows.append(f"| {arm} | {max(r.get('steps', 0) for r in tried):,} | {'; '.join(shown)} |")
    said = (
        "Trials, each of so many steps, judged by samples of other seeds against the training images, so that"
        " those which memorise do well, in all arms; the least is taken:"
    )
    return _rows(said, "| arm | steps | score by learning rate |", rows)


def _trial(record: Record, least: float) -> str:
    score = record.get("score")
    if score is None:
        return f"{record['rate']:g}: failed"
    return f"{record['rate']:g}: **{score:.2f}**" if score == least else f"{record['rate']:g}: {score:.2f}"


def _failed(records: Sequence[Record]) -> str:
    failed = [r for r in records if "failed" in r and r["purpose"] == "table"]
    rows = [f"| {r['job']}, {r['arm']} | {r['seed']} | {r['failed'].replace('|', '/')} |" for r in failed]
    return _rows("Runs that failed, and are missing above:", "| run | seed | what it said |", rows)


def _left_out(_: Sequence[Record]) -> str:
    return (
        "Not run: the classes the other way round, a shift larger than other digits, PiSSA for each class, SVDiff,"
        " TLEG, KID, and how much of the class can be read from activations without tailors.\n"
    )


def _cost(records: Sequence[Record]) -> str:
    seconds = sum(r.get("process_cpu_seconds", 0.0) for r in records)
    return f"All of it took {seconds / 3600:.1f} CPU-hours.\n"
