"""What files hold, by digest, without reading again those that have not changed since the last time.

A digest is BLAKE2b of 16 bytes over a file's bytes. A memo in the cache folder keeps, for each file of a root, its
size, times of modification and of change, inode and digest. A file is read again when any of these four differs, or
was younger than two seconds when it was read, since a second change within the clock's grain could hide there. So a
change goes unseen only if it keeps the size and all four values, which takes a clock set back or a file system that
does not keep times; deleting the memo (or the cache folder) has everything read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genflow.files import atomic_file

DIGEST_BYTES = 16
_SETTLED_NS = 2 * 10**9
_BLOCK = 2**20
_GROUP = 64  # files a task

_Memo = dict[str, tuple[tuple[int, ...], bytes]]


def digest(content: bytes) -> bytes:
    """Return the digest of some bytes."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def digest_files(root: Path, files: Sequence[str], cache: Path) -> list[bytes]:
    """Return the digest of each file, given relative to ``root``; b"" of one that cannot be read.

    The memo lies in ``cache``; if it cannot be written there, every file is read every time.
    """
    return _digests(root, files, _place(root, cache))


def digest_file(path: Path, cache: Path) -> bytes:
    """Return the digest of one file, by a memo of its own; b"" if it cannot be read."""
    return _digests(path.parent, [path.name], _place(path, cache))[0]


def _place(path: Path, cache: Path) -> Path:
    return cache / "digests" / f"{digest(os.fsencode(path.resolve())).hex()}.npz"


def _digests(root: Path, files: Sequence[str], place: Path) -> list[bytes]:
    memo = _read(place)
    now = time.time_ns()
    paths = [os.path.join(root, file) for file in files]  # a Path for each would take longer than reading it
    stats = [_stat(path) for path in paths]
    found = [memo[f][1] if f in memo and memo[f][0] == s else None for f, s in zip(files, stats, strict=True)]
    changed = [index for index, known in enumerate(found) if known is None]
    if not changed and len(memo) == len(files):
        return [known for known in found if known is not None]

    def read(group: Sequence[int]) -> list[bytes]:
        return [_digest(paths[index]) for index in group]

    groups = [changed[start : start + _GROUP] for start in range(0, len(changed), _GROUP)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for group, values in zip(groups, pool.map(read, groups), strict=True):
            for index, value in zip(group, values, strict=True):
                found[index] = value
    digests = [value or b"" for value in found]
    settled = [i for i, stat in enumerate(stats) if digests[i] and stat and max(stat[1:3]) < now - _SETTLED_NS]
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time at each start, nothing else
        _write(place, [files[i] for i in settled], [stats[i] for i in settled], [digests[i] for i in settled])
    return digests


def _stat(path: str) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            state = hashlib.blake2b(digest_size=DIGEST_BYTES)
            while block := file.read(_BLOCK):
                state.update(block)
    except OSError:
        return b""
    return state.digest()


def _read(path: Path) -> _Memo:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names = file["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            stats: npt.NDArray[np.int64] = file["stats"]
            digests = file["digests"].astype(np.uint8).tobytes()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}  # not there yet, or damaged: every file is read
    pieces = (digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES))
    return {n: (tuple(s), d) for n, s, d in zip(names, stats.tolist(), pieces, strict=False)}


def _write(path: Path, names: list[str], stats: list[tuple[int, ...]], digests: list[bytes]) -> None:
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            names=np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8),
            stats=np.array(stats, np.int64).reshape(-1, 4),
            digests=np.frombuffer(b"".join(digests), np.uint8),
        )
