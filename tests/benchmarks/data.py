"""Image folders: from files to batches, against torchvision's ImageFolder and torch's DataLoader.

    python tests/benchmarks/data.py

3,000 PNGs of 64x64 RGB in ten sub-folders (a sum of waves and noise; they take 60 % of their pixels' bytes), batches of
64 in random order. Ours gives uint8, from the decoded cache; theirs is ImageFolder with ToTensor, which gives float32.
The first epoch includes listing the folder and building the cache. Theirs runs with 0 and with 2 workers, which stay
alive between epochs, and the better of the two counts, in each column. All alternate in one process, one thread each
for torch; figures are medians. CPU time includes that of workers. Memory is the peak of a process that builds the
cache, minus what it was before, for sets of several sizes (Linux). Writes results/data.md.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from genflow.data.images import load_images
from genflow.data.loader import ImageLoader

RESULTS = Path(__file__).parent / "results"
COUNT, CLASSES, SIDE, BATCH = 3000, 10, 64, 64
BATCHES = -(-COUNT // BATCH)
REPEATS = 11
PEAK = """
import sys
from pathlib import Path
from genflow.data.folder import image_folder
def peak():  # of this process alone; getrusage remembers the one that it was forked from
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
image_folder(sys.argv[1], cache=Path(sys.argv[2]))
print(peak() - before)
"""


@dataclass(frozen=True)
class Times:
    """Seconds of wall time and of CPU time."""

    wall: float
    cpu: float


class Clock:
    """Both times since the last look."""

    def __init__(self) -> None:
        self.last = self._now()

    def look(self) -> Times:
        now, last = self._now(), self.last
        self.last = now
        return Times(now.wall - last.wall, now.cpu - last.cpu)

    def _now(self) -> Times:
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return Times(time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in spent))


def make_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    for number in range(COUNT):
        waves = np.zeros((SIDE, SIDE, 3))
        for channel in range(3):
            for along, across, phase, height in rng.normal(0, 3, (6, 4)):
                wave = np.cos(2 * np.pi * (along * xs + across * ys) + phase)
                waves[..., channel] += height / (1 + np.hypot(along, across)) * wave
        span = waves.max() - waves.min()
        pixels = (waves - waves.min()) / span * 235 + 10 + rng.normal(0, 3, waves.shape)
        place = root / f"class{number % CLASSES}" / f"{number:05}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).save(place)


def ours(root: Path, cache: Path) -> tuple[Times, Times, Times]:
    """Return the first epoch, a later one, and the first of a second process (which finds the cache)."""
    shutil.rmtree(cache, ignore_errors=True)
    clock = Clock()
    loader = ImageLoader(load_images(root, cache=cache), batch_size=BATCH, seed=0)
    for number in range(BATCHES):
        loader(number)
    first = clock.look()
    for number in range(BATCHES, 11 * BATCHES):
        loader(number)
    ten = clock.look()
    loader = ImageLoader(load_images(root, cache=cache), batch_size=BATCH, seed=0)
    for number in range(BATCHES):
        loader(number)
    return first, Times(ten.wall / 10, ten.cpu / 10), clock.look()


def theirs(root: Path, workers: int) -> tuple[Times, Times]:
    """Return the first and a later epoch; of workers only the CPU time of their whole life is known, so half of it."""
    clock, whole = Clock(), Clock()
    loader = DataLoader(
        ImageFolder(str(root), ToTensor()), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    for _ in loader:
        pass
    first = clock.look()
    for _ in loader:
        pass
    later = clock.look()
    del loader
    cpu = whole.look().cpu / 2
    return Times(first.wall, cpu), Times(later.wall, cpu)


def median(times: list[Times]) -> Times:
    return Times(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))


def peak(root: Path, cache: Path, count: int) -> float:
    """Return the MiB that building the cache of ``count`` images takes at its height."""
    files = sorted(root.rglob("*.png"))
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        for number in range(count):
            os.link(files[number % COUNT], Path(folder) / f"{number:06}.png")
        shutil.rmtree(cache, ignore_errors=True)
        command = [sys.executable, "-c", PEAK, folder, str(cache)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout) / 1024


def line(name: str, mine: Times, plain: Times, workers: Times) -> str:
    wall, cpu = min(plain.wall, workers.wall), min(plain.cpu, workers.cpu)
    return (
        f"| {name} | {mine.wall:.3f} | {plain.wall:.3f} | {workers.wall:.3f} | **{wall / mine.wall:.2f}** |"
        f" {mine.cpu:.3f} | {plain.cpu:.3f} | {workers.cpu:.3f} | **{cpu / mine.cpu:.2f}** |"
    )


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "set", Path(folder) / "cache"
        make_images(root)
        mine, plain, workers = [], [], []
        for repeat in range(REPEATS + 1):
            mine.append(ours(root, cache))
            plain.append(theirs(root, 0))
            workers.append(theirs(root, 2))
            print(f"{repeat}: ours {mine[-1][0]}, theirs {plain[-1][0]}, 2 workers {workers[-1][0]}", flush=True)
        mine, plain, workers = (
            [median(list(column)) for column in zip(*kept[1:], strict=True)] for kept in (mine, plain, workers)
        )
        memory = [(count, peak(root, cache, count)) for count in (COUNT, 4 * COUNT, 16 * COUNT)]
        lines = [
            "# Image folders: from files to batches",
            "",
            f"Seconds an epoch of {COUNT:,} PNGs of {SIDE}x{SIDE} RGB against torchvision's ImageFolder with torch's"
            f" DataLoader (0 and 2 workers); medians of {REPEATS} alternating runs on {os.cpu_count()} cores. The ratio"
            " is to the better of theirs, above 1 where genflow is faster. Made by `python tests/benchmarks/data.py`.",
            "",
            "| epoch | wall | theirs, 0 | theirs, 2 | ratio | CPU | theirs, 0 | theirs, 2 | ratio |",
            "|---|---|---|---|---|---|---|---|---|",
            line("first, building the cache", mine[0], plain[0], workers[0]),
            line("first of a second start", mine[2], plain[0], workers[0]),
            line("later", mine[1], plain[1], workers[1]),
            "",
            "Memory that building the cache takes at its height: names and digests, pixels in work, and up to 32 MiB of"
            " files, which are not read twice.",
            "",
            "| images | pixels, MiB | peak, MiB |",
            "|---|---|---|",
            *(f"| {count:,} | {count * 3 * SIDE**2 / 2**20:.0f} | {taken:.0f} |" for count, taken in memory),
        ]
    print("\n".join(lines))
    (RESULTS / "data.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
