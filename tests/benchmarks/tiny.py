"""The quality that every tiny recipe reaches on the embedded digits, over several seeds.

    python tests/benchmarks/tiny.py

Trains each recipe with seeds 0, 1 and 2 on one thread each (four to eight CPU-minutes), samples five ranges of 599
seeds, and measures them as ``genflow fid`` does. ECT and CD start from tiny-edm of the same seed. Finished runs are
kept in results/tiny.jsonl, so that an interrupted table goes on where it stopped; delete that file to measure anew.
Writes results/tiny.md.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from study import RESULTS, Record, Records, side_by_side

from genflow.build import build_trainer
from genflow.config_files import find_recipe, load_config, override
from genflow.denoiser import Denoiser
from genflow.evaluation.embedded import Embedded
from genflow.sampling.generate import network_calls

RECIPES = ("tiny-edm", "tiny-ddpm", "tiny-rf", "tiny-dit", "tiny-ct", "tiny-ict")
FROM_EDM = ("tiny-ect", "tiny-cd")
SEEDS = (0, 1, 2)


def model_of(out: str, key: Record) -> Path:
    """Return the folder of a run's model."""
    return Path(out) / f"{key['recipe']}-{key['seed']}" / "model"


def run(out: str, key: Record) -> Record:
    """Train and measure one recipe with one seed."""
    chosen = ["--out", out, "--name", f"{key['recipe']}-{key['seed']}", "--seed", str(key["seed"])]
    if key["recipe"] in FROM_EDM:
        chosen += ["--init", str(model_of(out, key | {"recipe": "tiny-edm"}))]
    if key["recipe"] == "tiny-cd":
        chosen += ["--objective.descent.teacher", chosen[-1]]
    config = override(load_config(find_recipe(key["recipe"])), chosen, prog="tiny.py", about="")
    started = time.process_time()
    denoiser = Denoiser.from_pretrained(build_trainer(config).fit())
    trained = time.process_time() - started
    result = Embedded.load("digits").measure(denoiser)
    return {
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "images": config.train.steps * config.train.batch_size,
        "cpu_seconds": trained,
        "sampler": config.sample.sampler,
        "steps": config.sample.steps,
        "distances": result.distances,
        "floor": result.figures["floor"].value,
        "memorising": result.figures["memorising"].value,
        "accuracy": result.figures["accuracy"].value,
    }


def table(records: list[Record]) -> str:
    """Return the Markdown table of all finished runs."""
    lines = [
        "# Tiny recipes on 8x8 digits",
        "",
        "Fréchet distance over 599 samples against the 599 held-out images (mean of five ranges of seeds), as a"
        f" multiple of the floor {records[0]['floor']:.3f}, which real training images score; the three figures of a"
        " cell are three training seeds. Memorising ratio and share of samples read as the class asked for: mean over"
        " seeds. ECT's and CD's minutes and images are those after tiny-edm's. Made by"
        " `python tests/benchmarks/tiny.py`, one thread.",
        "",
        "| recipe | parameters | images | CPU-minutes | sampler, steps (calls) | distance over floor | mean |"
        " memorising | asked class |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for recipe in (*RECIPES, *FROM_EDM):
        rows = [r for r in records if r["recipe"] == recipe]
        if not rows:
            continue
        over = [statistics.fmean(r["distances"]) / r["floor"] for r in rows]
        first = rows[0]
        mean = {key: statistics.fmean(r[key] for r in rows) for key in ("cpu_seconds", "memorising", "accuracy")}
        calls = network_calls(first["sampler"], first["steps"])
        lines.append(
            f"| {recipe} | {first['parameters']:,} | {first['images']:,} | {mean['cpu_seconds'] / 60:.1f}"
            f" | {first['sampler']}, {first['steps']} ({calls}) | {', '.join(f'{v:.2f}' for v in over)}"
            f" | **{statistics.fmean(over):.2f}** | {mean['memorising']:.3f} | {mean['accuracy']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=tempfile.gettempdir() + "/genflow-tiny", help="folder for the runs")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, of one thread each")
    options = parser.parse_args()
    records = Records(RESULTS / "tiny.jsonl")
    late = [{"recipe": recipe, "seed": seed} for seed, recipe in itertools.product(SEEDS, FROM_EDM)]
    wanted = {key["seed"] for key in late if records.find(key) is None}  # whose EDM's model is to be there, too
    jobs: list[tuple[Record, bool]] = []
    for seed, recipe in itertools.product(SEEDS, RECIPES):
        key = {"recipe": recipe, "seed": seed}
        jobs.append((key, recipe == "tiny-edm" and seed in wanted and not model_of(options.out, key).is_dir()))
    side_by_side(records, jobs, run, options.out, options.processes)
    side_by_side(records, [(key, False) for key in late], run, options.out, options.processes)
    (RESULTS / "tiny.md").write_text(table(records.all()))
    print(table(records.all()))


if __name__ == "__main__":
    main()
