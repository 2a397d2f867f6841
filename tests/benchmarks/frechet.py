"""The Fréchet distance beside other packages': CPU time, value, and the memory of a whole evaluation.

    python tests/benchmarks/frechet.py

Needs clean-fid and pytorch-fid. All solve from the same means and covariances, in turn in one process on one
thread; times are medians. Memory is measured in a fresh process that accumulates and solves as an
evaluation of 50,000 images does. Writes results/frechet.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from genflow.evaluation.features import FeatureNetwork, Outputs
from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.measurement import Wanted, figures, gather
from genflow.evaluation.protocol import NetworkIdentity
from genflow.evaluation.sources import Source
from genflow.evaluation.statistics import FeatureStats
from genflow.evaluation.uncertainty import default_blocks
from genflow.units import UNIT

RESULTS = Path(__file__).parent / "results"
DIMS, SPATIAL, CLASSES = 2048, 2023, 1008
COUNT = 50_000
ROUNDS = 3


def features(count: int, seed: int) -> torch.Tensor:
    """Features with eigenvalues about 1/k along axes that are the same for all seeds."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(DIMS, DIMS, generator=generator))[0]
    scales = torch.arange(1, DIMS + 1).float() ** -0.5
    generator.manual_seed(seed)
    stretch = 1 + 0.2 * torch.rand(DIMS, generator=generator)
    return (torch.randn(count, DIMS, generator=generator) * scales * stretch) @ axes


def solvers() -> dict[str, Callable[[FeatureStats, FeatureStats], float]]:
    from cleanfid import fid as clean_fid
    from pytorch_fid import fid_score
    from torch_fidelity import metric_fid

    def numpy(stats: FeatureStats) -> tuple:
        return stats.mean.numpy(), stats.covariance.numpy()

    def torch_fidelity(a: FeatureStats, b: FeatureStats) -> float:
        sides = [dict(zip(("mu", "sigma"), numpy(stats), strict=True)) for stats in (a, b)]
        return metric_fid.fid_statistics_to_metric(*sides, False)[metric_fid.KEY_METRIC_FID]

    return {
        "genflow": frechet_distance,
        "torch-fidelity": torch_fidelity,
        "clean-fid": lambda a, b: clean_fid.frechet_distance(*numpy(a), *numpy(b)),
        "pytorch-fid": lambda a, b: fid_score.calculate_frechet_distance(*numpy(a), *numpy(b)),
    }


def compare(count: int, rounds: int) -> dict[str, tuple[float, float, float, float]]:
    """Return CPU seconds, wall seconds, value and relative error of each package."""
    a, b = (FeatureStats.of(features(count, seed)) for seed in (1, 2))
    packages = solvers()
    cpu, wall = {name: [] for name in packages}, {name: [] for name in packages}
    values = {}
    for _ in range(rounds):
        for name, solver in packages.items():
            started, at = time.process_time(), time.perf_counter()
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                values[name] = float(solver(a, b))
            cpu[name].append(time.process_time() - started)
            wall[name].append(time.perf_counter() - at)
    truth = from_features(count)
    return {
        name: (statistics.median(cpu[name]), statistics.median(wall[name]), values[name], abs(values[name] / truth - 1))
        for name in packages
    }


def from_features(count: int) -> float:
    """Return the distance from the features themselves, by singular values."""
    x, y = (features(count, seed).double() for seed in (1, 2))
    apart = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    left, right = ((f - f.mean(dim=0)) / (count - 1) ** 0.5 for f in (x, y))
    rank = min(DIMS, count - 1)  # the other singular values are rounding
    cross = torch.linalg.svdvals(left @ right.T)[:rank].sum()
    return float(apart + left.square().sum() + right.square().sum() - 2 * cross)


class Made(Source):
    """Images of one pixel, which ``Rows`` does not look at."""

    count, classes = COUNT, ()

    def unit(self, number: int) -> tuple[torch.Tensor, None]:
        return torch.zeros(UNIT, 1, 1, 1, dtype=torch.uint8), None


class Rows(FeatureNetwork):
    """Made-up outputs of all three kinds, as Inception gives them."""

    identity = NetworkIdentity(
        name="inception", weights="", resize="none", quantisation="uint8", dtype="float32", dims=DIMS
    )
    device = torch.device("cpu")

    def outputs(self, images: torch.Tensor) -> Outputs:
        count = len(images)
        return Outputs(torch.randn(count, DIMS), torch.randn(count, SPATIAL), torch.randn(count, CLASSES))


def memory() -> dict[str, float]:
    """Measure 50,000 made-up samples against as many made-up images; return MiB above the start, and seconds."""
    frechet_distance(FeatureStats.of(torch.randn(50, 8)), FeatureStats.of(torch.randn(50, 8)))  # loads libraries
    wanted = Wanted(metrics=frozenset({"fid", "sfid", "is"}))
    with tempfile.TemporaryDirectory() as folder:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = rss("VmRSS")
        started = time.perf_counter()
        reference, samples = (gather(Made(), Rows(), wanted, Path(folder)) for _ in range(2))
        summed = time.perf_counter()
        figures([samples], reference, "inception", wanted)
        ended = time.perf_counter()
        return {"MiB": rss("VmHWM") - before, "sums": summed - started, "solve": ended - summed}


def rss(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def fresh(what: str) -> dict:
    """Run one measurement in a fresh process, on one thread, and return what it prints."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, __file__, what], env=os.environ | one, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(title: str, found: dict[str, list[float]]) -> list[str]:
    lines = ["", f"## {title}", "", "| package | CPU s | wall s | CPU, times ours | distance | off by |"]
    lines.append("|---|---|---|---|---|---|")
    ours = found["genflow"]
    for name, (cpu, wall, value, error) in found.items():
        lines.append(f"| {name} | {cpu:.2f} | {wall:.2f} | {cpu / ours[0]:.1f} | {value:.8f} | {error:.1e} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=("full", "few", "memory"))
    match parser.parse_args().what:
        case "full":
            print(json.dumps(compare(5000, ROUNDS)))
        case "few":
            print(json.dumps(compare(1000, 1)))
        case "memory":
            print(json.dumps(memory()))
        case None:
            report()


def report() -> None:
    lines = [
        "# The Fréchet distance beside other packages'",
        "",
        "2,048 dims, one thread; `off by` is the relative difference from the nuclear norm of the features themselves."
        " Made by `python tests/benchmarks/frechet.py`.",
        "",
        f"{platform.machine()}; torch {torch.__version__}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch-fidelity", "clean-fid", "pytorch-fid", "scipy"))
        + ".",
    ]
    lines += table(f"5,000 features a side, medians of {ROUNDS}", fresh("full"))
    lines += table("1,000 features a side, fewer than dims, once", fresh("few"))
    print("\n".join(lines), flush=True)
    used = fresh("memory")
    lines += [
        "",
        "## Memory",
        "",
        f"FID with its interval ({DIMS} dims, {default_blocks(DIMS, COUNT)} blocks a side on the disk), sFID"
        f" ({SPATIAL}) and Inception score ({CLASSES} logits) of {COUNT:,} made-up samples against as many images, in"
        f" units of {UNIT}: {used['MiB']:.0f} MiB at most above"
        f" what a process takes that has loaded the libraries; {used['sums']:.0f} s to draw and sum up the rows,"
        f" {used['solve']:.0f} s for all solutions, on one thread.",
    ]
    print(lines[-1], flush=True)
    (RESULTS / "frechet.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
