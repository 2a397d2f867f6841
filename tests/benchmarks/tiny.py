"""The quality that every tiny recipe reaches on the embedded digits, over several seeds.

    python tests/benchmarks/tiny.py

Trains each recipe with seeds 0, 1 and 2 on one thread (about four CPU-minutes each), samples five ranges of 599 seeds,
and measures them as ``genflow fid`` does. Finished runs are kept in results/tiny.jsonl, so that an interrupted table
goes on where it stopped; delete that file to measure anew. Writes results/tiny.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from genflow.build import build_trainer
from genflow.config_files import find_recipe, load_config, override
from genflow.denoiser import Denoiser
from genflow.evaluation.embedded import Embedded
from genflow.sampling.generate import network_calls

RECIPES = ("tiny-edm", "tiny-ddpm", "tiny-rf", "tiny-dit")
SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent / "results"


def run(recipe: str, seed: int, out: str) -> dict[str, object]:
    """Train and measure one recipe with one seed."""
    chosen = ["--out", out, "--name", f"{recipe}-{seed}", "--seed", str(seed), "--train.threads", "1"]
    config = override(load_config(find_recipe(recipe)), chosen, prog="tiny.py", about="")
    started = time.process_time()
    denoiser = Denoiser.from_pretrained(build_trainer(config).fit())
    trained = time.process_time() - started
    result = Embedded.load("digits").measure(denoiser)
    return {
        "recipe": recipe,
        "seed": seed,
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


def table(records: list[dict[str, object]]) -> str:
    """Return the Markdown table of all finished runs."""
    lines = [
        "# Tiny recipes on 8x8 digits",
        "",
        "Fréchet distance over 599 samples against the 599 held-out images (mean of five ranges of seeds), as a"
        f" multiple of the floor {records[0]['floor']:.3f}, which real training images score; the three figures of a"
        " cell are three training seeds. Memorising ratio and share of samples read as the class asked for: mean over"
        " seeds. Made by `python tests/benchmarks/tiny.py`, one thread.",
        "",
        "| recipe | parameters | images | CPU-minutes | sampler, steps (calls) | distance over floor | mean |"
        " memorising | asked class |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for recipe in RECIPES:
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
    out = parser.parse_args().out
    torch.set_num_threads(1)
    kept = RESULTS / "tiny.jsonl"
    records = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for seed in SEEDS:
        for recipe in RECIPES:
            if not any(r["recipe"] == recipe and r["seed"] == seed for r in records):
                records.append(run(recipe, seed, out))
                kept.write_text("".join(json.dumps(r) + "\n" for r in records))
    (RESULTS / "tiny.md").write_text(table(records))
    print(table(records))


if __name__ == "__main__":
    main()
