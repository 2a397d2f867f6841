"""What a draw of 2-RF++'s training times costs, beside the numerical inversion that its authors draw by.

    python tests/benchmarks/time_law.py

One process, one thread, CPU time. Theirs is written anew from its description: a continuous distribution of scipy with
the density a e^(a t) / (e^a - 1) on [0, 1] and nothing else, whose draws scipy finds by integrating the density and
searching for the root of every draw; its mirror images are joined, and half of all are kept. Both draw the same law,
which the Kolmogorov-Smirnov distance to its CDF shows. Writes results/time_law.md.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy import stats

from genflow.objectives import UShaped

RESULTS = Path(__file__).parent / "results"
A, BATCH = 4.0, 512


class Exponential(stats.rv_continuous):
    """Density a e^(a t) / (e^a - 1) on [0, 1], as the only thing that scipy is told."""

    def _pdf(self, x, a):
        return a * np.exp(a * x) / np.expm1(a)


def numerical(count: int, law: Exponential, rng: np.random.Generator) -> np.ndarray:
    rising = law.rvs(A, size=count, random_state=rng)
    return rng.permutation(np.concatenate([rising, 1 - rising]))[:count]


def closed(count: int) -> torch.Tensor:
    return UShaped(a=A, rim=0).quantile(torch.rand(count, dtype=torch.float64))


def seconds(action: Callable[[], object], inner: int) -> float:
    started = time.process_time()
    for _ in range(inner):
        action()
    return (time.process_time() - started) / inner


def distance(t: np.ndarray) -> float:
    """The largest gap between the draws' CDF and the law's."""
    return float(stats.ks_1samp(t, lambda x: 0.5 + np.sinh(A * (x - 0.5)) / (2 * math.sinh(A / 2))).statistic)


def main() -> None:
    torch.set_num_threads(1)
    law, rng = Exponential(a=0.0, b=1.0, shapes="a"), np.random.default_rng(0)
    closed(BATCH)
    numerical(2, law, rng)
    ours = statistics.median(seconds(lambda: closed(BATCH), 1000) for _ in range(9))
    only = UShaped(a=A)
    u = torch.rand(BATCH, dtype=torch.float64)
    quantile = statistics.median(seconds(lambda: only.quantile(u), 1000) for _ in range(9))
    theirs = statistics.median(seconds(lambda: numerical(BATCH, law, rng), 1) for _ in range(3))
    lines = [
        "# Training times of 2-RF++",
        "",
        f"CPU time of {BATCH} draws of the U-shaped law (a = {A:g}) on one thread, medians. {platform.machine()}; torch"
        f" {torch.__version__}, scipy {scipy.__version__}. Made by `python tests/benchmarks/time_law.py`.",
        "",
        "| | µs | distance of the draws to the law (Kolmogorov-Smirnov) |",
        "|---|---|---|",
        f"| closed-form quantile | {1e6 * quantile:.0f} | |",
        f"| uniform draws and closed-form quantile | {1e6 * ours:.0f} | {distance(closed(1_000_000).numpy()):.4f}"
        " (1,000,000 draws) |",
        f"| numerical inversion by scipy | {1e6 * theirs:,.0f} | {distance(numerical(2000, law, rng)):.4f}"
        " (2,000 draws) |",
        f"| ratio | {theirs / ours:,.0f} | |",
    ]
    print("\n".join(lines))
    (RESULTS / "time_law.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
