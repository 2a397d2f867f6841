"""How often the 95 % interval of a Fréchet distance holds the true distance of two known Gaussian laws.

    python tests/benchmarks/coverage.py

200 trials a row: samples are drawn of both laws (or of one, the other being known), cut into the default number of
blocks, and the interval is compared with the closed form. Writes results/coverage.md.
"""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from genflow.evaluation.blocks import BlockStats
from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.statistics import FeatureStats
from genflow.evaluation.uncertainty import default_blocks, estimate

RESULTS = Path(__file__).parent / "results"
APART = {  # shift of the mean in standard deviations, change of scale, turn of the axes
    "same": (0.0, 0.0, 0.0),
    "tiny": (0.02, 0.01, 0.01),
    "small": (0.1, 0.05, 0.05),
    "large": (1.0, 0.3, 0.5),
}


@dataclass(frozen=True)
class Case:
    """Two laws of ``dims`` dims with eigenvalues k^-decay, ``samples`` and ``reference`` (None: known) times dims."""

    dims: int
    decay: float
    apart: str
    samples: int
    reference: int | None


@dataclass(frozen=True)
class Coverage:
    """What the trials of a case gave: means and the share of intervals that hold the truth."""

    truth: float
    value: float
    limit: float
    deviation: float
    standard_error: float
    share: float


def laws(case: Case, generator: torch.Generator) -> tuple[FeatureStats, FeatureStats]:
    """Return the laws of samples and reference."""
    shift, scale, turn = APART[case.apart]
    values = torch.arange(1, case.dims + 1).double() ** -case.decay
    noise = torch.randn(case.dims, case.dims, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(torch.eye(case.dims, dtype=torch.float64) + turn * noise)[0]
    if turn == 0:
        axes = torch.eye(case.dims, dtype=torch.float64)
    covariance = axes @ (values * (1 + scale) ** 2).diag() @ axes.T
    samples = FeatureStats.from_moments(shift * values.sqrt(), covariance, None)
    return samples, FeatureStats.from_moments(torch.zeros_like(values), values.diag(), None)


def draw(law: FeatureStats, count: int, generator: torch.Generator) -> BlockStats:
    """Return statistics of features of a law in the default number of blocks."""
    features = torch.randn(count, law.dims, generator=generator, dtype=torch.float64)
    blocks = BlockStats(law.dims, count, default_blocks(law.dims, count))
    blocks.update(features @ torch.linalg.cholesky(law.covariance).T + law.mean, 0)
    return blocks


def cover(case: Case, trials: int, seed: int = 0) -> Coverage:
    """Return what ``trials`` pairs of sets of features give."""
    generator = torch.Generator().manual_seed(seed)
    of_samples, of_reference = laws(case, generator)
    truth = frechet_distance(of_samples, of_reference)
    rows = []
    for _ in range(trials):
        samples = draw(of_samples, case.samples * case.dims, generator)
        reference = of_reference
        if case.reference is not None:
            reference = draw(of_reference, case.reference * case.dims, generator)
        figure = estimate(samples, reference).figure
        assert figure.limit is not None
        assert figure.standard_error is not None
        assert figure.interval is not None
        low, high = figure.interval
        rows.append((figure.value, figure.limit, figure.standard_error, float(low <= truth <= high)))
    value, limit, error, share = torch.tensor(rows, dtype=torch.float64).T
    return Coverage(
        truth,
        float(value.mean()),
        float(limit.mean()),
        float(limit.std()),
        math.sqrt(error.square().mean()),
        float(share.mean()),
    )


def row(case: Case, found: Coverage) -> str:
    return (
        f"| {case.dims} | {'equal' if case.decay == 0 else f'k^-{case.decay}'} | {case.samples * case.dims} |"
        f" {'known' if case.reference is None else case.reference * case.dims} | {case.apart} | {found.truth:.4g} |"
        f" {found.value:.4g} | {found.limit:.4g} | {found.deviation:.3g} | {found.standard_error:.3g} |"
        f" {found.share:.1%} |"
    )


def main() -> None:
    lines = [
        "# Coverage of the 95 % interval of a Fréchet distance",
        "",
        "Gaussian features with a known distance, 200 trials a row. `value` is the plain distance, `limit` the estimate"
        " for infinitely many images, both as means over the trials; `sd` is the standard deviation of the limit,"
        " `se` the root mean square of its estimate. Made by `python tests/benchmarks/coverage.py`.",
        "",
        "| dims | eigenvalues | samples | reference | laws | truth | value | limit | sd | se | coverage |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = [
        Case(dims, decay, apart, samples, reference)
        for dims in (2, 8, 32, 64)
        for decay in (0.0, 1.5)
        for samples, reference in ((10, None), (10, 10), (10, 30), (30, 30))
        for apart in (APART if dims < 64 else ("same", "small", "large"))
    ]
    with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for case, found in zip(cases, pool.map(cover, cases, [200] * len(cases)), strict=True):
            lines.append(row(case, found))
            print(lines[-1], flush=True)
    (RESULTS / "coverage.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
