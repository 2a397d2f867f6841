"""A cache of decoded images that any number of processes may use at once, and that may be killed or damaged.

    CACHE/images/KEY/lock       held while the images of KEY are built
    CACHE/images/KEY/decoded/   images.npy (N, C, H, W) uint8 and meta.json: whole or absent, since it is renamed

The operating system lets go of a lock when its holder dies. What a dead builder leaves is removed by the next one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from genflow.data.provenance import Stored
from genflow.files import atomic_folder, remove_partials

IMAGES = "images.npy"
_META = "meta.json"


class Kept(NamedTuple):
    """Images (N, C, H, W), a read-only memory map, and what they were."""

    images: npt.NDArray[np.uint8]
    stored: Stored


def keep(folder: Path, build: Callable[[Path], None]) -> Kept:
    """Return what is kept in ``folder``; build it first if it is absent, damaged or of a time that kept less.

    Of several processes one builds, the others wait for it. Damage is told by the header and the length of the file,
    not by reading all of it.

    Args:
        folder: the folder of one key.
        build: writes ``IMAGES`` into the folder that it is given, and calls ``write_meta``.

    Raises ``OSError`` if the folder cannot be written, and whatever ``build`` raises; nothing partial stays.
    """
    place = folder / "decoded"
    kept = _whole(place)
    if kept is not None:
        return kept
    try:
        kept = _build(folder, place, build)
    except FileNotFoundError:  # the cache was removed meanwhile
        kept = _build(folder, place, build)
    if kept is None:
        raise OSError(f"what was written to {place} reads differently")
    return kept


def _build(folder: Path, place: Path, build: Callable[[Path], None]) -> Kept | None:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        kept = _whole(place)
        if kept is not None:  # built by another process while this one waited
            return kept
        remove_partials(folder.parent)  # of dead builders, whichever key they were at
        with atomic_folder(place) as partial:
            build(partial)
        return _whole(place)


def write_meta(folder: Path, shape: tuple[int, ...], stored: Stored) -> None:
    """Write down what the images of a folder must be found to be, and what they were."""
    meta = {"shape": shape, "bytes": (folder / IMAGES).stat().st_size, "stored": asdict(stored)}
    (folder / _META).write_text(json.dumps(meta) + "\n", encoding="utf-8")


def _whole(place: Path) -> Kept | None:
    try:
        meta = json.loads((place / _META).read_text(encoding="utf-8"))
        images = np.load(place / IMAGES, mmap_mode="r", allow_pickle=False)
        sound = images.dtype == np.uint8 and [list(images.shape), (place / IMAGES).stat().st_size] == [
            meta["shape"],
            meta["bytes"],
        ]
        stored = Stored.of(meta["stored"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Kept(images, stored) if sound else None
