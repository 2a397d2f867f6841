"""Make the committed splits of the embedded data: two thirds to train on, one third held out.

Run ``python assets/make_splits.py``; the result is the same every time. In each class a third is
held out, rounded so that the total is exactly round(N / 3): every class gets the floor, and the
classes with the largest remainders (then the smallest labels) one more.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genflow.data.embedded import digits_raw, fingerprint, mnist5k_raw

SEED = 20240601


def held_out(labels: npt.NDArray[np.int64], seed: int = SEED) -> list[int]:
    """Sorted indices of a stratified third: (round(N / 3),) from labels (N,)."""
    classes = np.unique(labels)
    exact = np.array([np.sum(labels == c) for c in classes]) / 3
    take = np.floor(exact).astype(int)
    missing = round(len(labels) / 3) - int(take.sum())
    take[np.argsort(-(exact - take), kind="stable")[:missing]] += 1
    generator = np.random.Generator(np.random.Philox(seed))
    chosen = [generator.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, take, strict=True)]
    return sorted(int(index) for index in np.concatenate(chosen))


def split_record(name: str) -> dict[str, object]:
    """What one split file holds: the data's fingerprint and the held-out indices."""
    images, labels = digits_raw() if name == "digits" else mnist5k_raw()
    return {
        "name": name,
        "count": len(labels),
        "seed": SEED,
        "sha256": fingerprint(images, labels),
        "held_out": held_out(labels),
    }


def main() -> None:
    """Write ``digits.json`` and ``mnist5k.json``."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "splits")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name in ("digits", "mnist5k"):
        (out / f"{name}.json").write_text(json.dumps(split_record(name)) + "\n")


if __name__ == "__main__":
    main()
