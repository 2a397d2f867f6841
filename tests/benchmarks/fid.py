"""From image files to FID: ``genflow fid`` against torch-fidelity on the same PNGs with the same weights file.

    python tests/benchmarks/fid.py

Two folders of 32x32 RGB PNGs of the embedded shapes, one with noise on them. Real Inception weights cannot come with
the package: the file holds Kaiming-random convolutions, which take the same time and give features as varied. Each run
is a process of its own, on one thread, from reading files to printing the figure; genflow's includes decoding into an
empty cache, and the standard error. Runs alternate; times are medians. Writes results/fid.md.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from genflow.data.images import load_images

sys.path.insert(0, str(Path(__file__).parent.parent))
from inception import make_inception_weights

RESULTS = Path(__file__).parent / "results"
COUNT, REPEATS = 256, 3
THEIRS = """
import json, sys, torch, torch_fidelity
torch.set_num_threads(1)
found = torch_fidelity.calculate_metrics(
    input1=sys.argv[1], input2=sys.argv[2], fid=True, cuda=False, cache=False, verbose=False, save_cpu_ram=True,
    feature_extractor_weights_path=sys.argv[3],
)
print(json.dumps(found["frechet_inception_distance"]))
"""


def make_images(folder: Path, first: int, noise: float) -> None:
    folder.mkdir()
    rng = np.random.default_rng(first)
    images = load_images("shapes", "train").images[first : first + COUNT].astype(np.float64)
    images += rng.normal(0, noise, images.shape)
    for number, image in enumerate(images.round().clip(0, 255).astype(np.uint8)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:05}.png")


def run(command: list[str], cache: str) -> tuple[str, float, float]:
    """Return what a process prints, its CPU time and its wall time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GENFLOW_CACHE": cache}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def ours(folders: list[str], weights: str, dtype: str) -> tuple[float, float, float, str]:
    with tempfile.TemporaryDirectory() as kept:
        result = Path(kept) / "result.json"
        command = [sys.executable, "-m", "genflow.cli.main", "fid", *folders, "--weights", weights]
        command += ["--dtype", dtype, "--out", str(result)]
        _, cpu, wall = run(command, str(Path(kept) / "cache"))
        found = json.loads(result.read_text())["results"][0]
    said = next((note for note in found["notes"] if "times as fast" in note), "")
    return found["figures"]["fid"]["value"], cpu, wall, said


def main() -> None:
    rows: dict[str, list[tuple[float, float, float]]] = {"torch-fidelity": [], "float32": [], "bfloat16": []}
    said = ""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_images(root / "samples", 0, 12.0)
        make_images(root / "reference", COUNT, 0.0)
        weights = make_inception_weights(root / "weights.pth")
        folders = [str(root / "samples"), str(root / "reference")]
        for repeat in range(REPEATS):
            printed, cpu, wall = run([sys.executable, "-c", THEIRS, *folders, str(weights)], str(root))
            rows["torch-fidelity"].append((json.loads(printed.splitlines()[-1]), cpu, wall))
            for dtype in ("float32", "bfloat16"):
                value, cpu, wall, note = ours(folders, str(weights), dtype)
                rows[dtype].append((value, cpu, wall))
                said = note or said
            print(repeat, {key: kept[-1] for key, kept in rows.items()}, flush=True)
    median = {key: [statistics.median(column) for column in zip(*kept, strict=True)] for key, kept in rows.items()}
    there = median["torch-fidelity"]
    lines = [
        "# From image files to FID",
        "",
        f"{COUNT} against {COUNT} PNGs of 32x32 RGB, one weights file, one thread, whole processes: medians of"
        f" {REPEATS} alternating runs. Ratios above 1 where genflow is faster; its runs include the standard error,"
        " and that of bfloat16 the check against float32 on the first images of each side. Made by"
        " `python tests/benchmarks/fid.py`.",
        "",
        "| evaluator | FID | difference | CPU s | ratio | wall s | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {"torch-fidelity": "torch-fidelity", "float32": "genflow", "bfloat16": "genflow, bfloat16"}
    for key, (value, cpu, wall) in median.items():
        lines.append(
            f"| {names[key]} | {value:.5f} | {value - there[0]:+.1e} | {cpu:.1f} | {there[1] / cpu:.2f} | {wall:.1f} |"
            f" {there[2] / wall:.2f} |"
        )
    lines += ["", f"What `genflow fid --dtype bfloat16` says of itself: {said}."]
    print("\n".join(lines))
    (RESULTS / "fid.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
