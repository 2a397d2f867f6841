"""Writes that are whole or absent: under a temporary name first, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"  # begins the names of what is not whole yet


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what is written there takes its place when the block ends well.

    It has no suffix, so that nobody who lists a folder takes half an image for one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # mkstemp's files are private
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place, whole, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
    try:
        yield partial
        for entry in (*partial.rglob("*"), partial):
            _sync(entry)
        partial.chmod(0o777 & ~_umask())
        if path.exists():  # set aside rather than removed first: absent for an instant only
            aside = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent)) / path.name
            path.replace(aside)
            partial.replace(path)
            shutil.rmtree(aside.parent)
        else:
            partial.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_files(source: Path, target: Path) -> None:
    """Move every file of ``source`` into ``target``, each atomically; the folder itself is never absent."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        _sync(file)
        file.replace(place)
        _sync(place.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partials(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove what interrupted writes left in ``folder``, at any depth, if it is older than so many seconds."""
    for leftover in list(folder.rglob(f"{PARTIAL}*")):
        with contextlib.suppress(FileNotFoundError):  # another process may be at the same work
            if time.time() - leftover.stat().st_mtime < older_than:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()


def _sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk: a power cut keeps what came before."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
