"""What files hold, by digest, without reading again those that have not changed since the last time.

A digest is BLAKE2b of 16 bytes over a file's bytes. A memo in the cache folder keeps, for each file of a root, its
size, times of modification and of change, inode and digest. A file is read again when any of these four differs, or
was younger than two seconds when it was read, since a second change within the clock's grain could hide there. So a
change goes unseen if it keeps all four values: a clock set back, a file system that does not keep times, or a write
through a memory map, which may be noted in them late. Who reads a file that is not what its digest says raises
``Changed``, drops the memo (``forget``) and begins again; deleting the memo or the cache folder does the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genflow.data.npz import DAMAGED_NPZ
from genflow.files import atomic_file, remove_partials

DIGEST_BYTES = 16
HELD_BYTES = 2**25
_SETTLED_NS = 2 * 10**9
_BLOCK = 2**20
_GROUP = 64  # files a task

_NO_STATS, _NO_DIGESTS = np.zeros((0, 4), np.int64), np.zeros((0, DIGEST_BYTES), np.uint8)
_Memo = tuple[dict[str, int], npt.NDArray[np.int64], npt.NDArray[np.uint8]]  # rows by name, stats, digests


class Changed(Exception):
    """A file is no longer what its digest says."""


def digest(content: bytes) -> bytes:
    """Return the digest of some bytes."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def digest_files(
    root: Path, files: Sequence[str], cache: Path, held: dict[int, bytes] | None = None
) -> npt.NDArray[np.uint8]:
    """Return the digests (N, 16) of files given relative to ``root``; zeros for one that cannot be read.

    What is read is left in ``held`` by place, up to ``HELD_BYTES`` of it, so that it need not be read again. The memo
    lies in ``cache``; if it cannot be written there, every file is read every time.
    """
    return _digests(str(root), files, _place(root, cache), held)


def digest_file(path: Path, cache: Path) -> bytes:
    """Return the digest of one file, by a memo of its own; zeros if it cannot be read."""
    return _digests(str(path.parent), [path.name], _place(path, cache), None).tobytes()


def forget(root: Path, cache: Path) -> None:
    """Drop the memo of a root, so that all of it is read again."""
    with contextlib.suppress(OSError):
        _place(root, cache).unlink()


def file_state(path: str | Path | int) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written: device, inode, size, times; zeros if absent."""
    try:
        stat = os.stat(path)
    except OSError:
        return (0,) * 5
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _place(path: Path, cache: Path) -> Path:
    return cache / "digests" / f"{digest(os.fsencode(path.resolve())).hex()}.npz"


def _digests(root: str, files: Sequence[str], place: Path, held: dict[int, bytes] | None) -> npt.NDArray[np.uint8]:
    rows, old_stats, old_digests = _read(place)
    now = time.time_ns()
    stats = np.zeros((len(files), 4), np.int64)  # arrays: a million tuples would take a lot of memory
    for index, file in enumerate(files):
        stats[index] = _stat(os.path.join(root, file))
    row = np.array([rows.get(file, -1) for file in files], np.int64)
    known = row >= 0
    known[known] = (old_stats[row[known]] == stats[known]).all(axis=1)
    digests = np.zeros((len(files), DIGEST_BYTES), np.uint8)
    digests[known] = old_digests[row[known]]
    if known.all() and len(rows) == len(files):
        return digests

    changed: list[int] = np.flatnonzero(~known).tolist()
    room = int((np.cumsum(stats[changed, 0]) <= HELD_BYTES).sum())
    last = changed[room - 1] if room and held is not None else -1  # of those that are held

    def read(group: list[int]) -> bytes:
        return b"".join(
            _digest(os.path.join(root, files[index]), held if index <= last else None, index) for index in group
        )

    groups = [changed[start : start + _GROUP] for start in range(0, len(changed), _GROUP)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for group, values in zip(groups, pool.map(read, groups), strict=True):
            digests[group] = np.frombuffer(values, np.uint8).reshape(-1, DIGEST_BYTES)
    settled: list[int] = np.flatnonzero(digests.any(axis=1) & (stats[:, 1:3].max(axis=1) < now - _SETTLED_NS)).tolist()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time at each start, nothing else
        _write(place, [files[index] for index in settled], stats[settled], digests[settled])
    return digests


def _stat(path: str) -> tuple[int, int, int, int]:
    _, inode, size, modified, changed = file_state(path)
    return size, modified, changed, inode & (2**63 - 1)  # some are unsigned


def _digest(path: str, held: dict[int, bytes] | None, index: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            if held is not None:
                held[index] = content = file.read()
                return digest(content)
            state = hashlib.blake2b(digest_size=DIGEST_BYTES)
            while block := file.read(_BLOCK):
                state.update(block)
    except OSError:
        return bytes(DIGEST_BYTES)
    return state.digest()


def _read(path: Path) -> _Memo:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names = file["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            stats, digests = file["stats"], file["digests"]
    except DAMAGED_NPZ:
        names, stats, digests = [], _NO_STATS, _NO_DIGESTS  # not there yet, or damaged: every file is read
    if stats.shape != (len(names), 4) or digests.shape != (len(names), DIGEST_BYTES):
        names, stats, digests = [], _NO_STATS, _NO_DIGESTS
    return {name: row for row, name in enumerate(names)}, stats, digests


def _write(path: Path, names: list[str], stats: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8]) -> None:
    joined = np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)
    remove_partials(path.parent)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, names=joined, stats=stats, digests=digests)
