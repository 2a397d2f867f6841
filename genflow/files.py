"""Writes that are whole or absent: under a temporary name first, then renamed."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"  # begins the names of what is not whole yet
_DAY = 86_400.0


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what is written there takes its place when the block ends well.

    It has no suffix, so that nobody who lists a folder takes half an image for one. Errors of the disk name ``path``.
    """
    make_folder(path.parent)
    with naming(path):
        handle, name = tempfile.mkstemp(prefix=_prefix(), dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(0o666 & ~_umask())  # mkstemp's files are private
            sync(partial)
            partial.replace(path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place, whole, when the block ends well.

    What was there is removed just before, so let it be nothing that is worth keeping. Errors of the disk name ``path``.
    """
    make_folder(path.parent)
    with naming(path):
        partial = Path(tempfile.mkdtemp(prefix=_prefix(), dir=path.parent))
        try:
            yield partial
            for entry in (*partial.rglob("*"), partial):
                sync(entry)
            partial.chmod(0o777 & ~_umask())
            if path.exists():
                shutil.rmtree(path)
            partial.replace(path)
            sync(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those it lies in, so that a power cut keeps what is then put there."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync(each.parent)


def replace_files(source: Path, target: Path) -> None:
    """Move every file of ``source`` into ``target``, each atomically; the folder itself is never absent."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / file.relative_to(source)
        make_folder(place.parent)
        sync(file)
        file.replace(place)
        sync(place.parent)


def check_place(path: Path) -> None:
    """Refuse a place that no file can be written to, before work is done for it.

    Raises ``ValueError`` saying what is in the way.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    above = next(each for each in path.absolute().parents if each.exists())
    if not above.is_dir():
        raise ValueError(f"{path} cannot be written: {above} is a file, not a folder")
    try:  # permissions alone do not tell: to root /proc seems to take files
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        why = f"no file can be made in the folder {above} ({error.strerror or error})"
        raise ValueError(f"{path} cannot be written: {why}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partials(folder: Path) -> None:
    """Remove what interrupted writes left in ``folder``, at any depth, and nothing that is still being written.

    The name of a partial tells its machine and process: it goes if that process is gone, or after a day.
    """
    for leftover in list(folder.rglob(f"{PARTIAL}*")):
        with contextlib.suppress(FileNotFoundError):  # another process may be at the same work
            if _is_alive(leftover.name) and time.time() - leftover.stat().st_mtime < _DAY:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()


def _prefix() -> str:
    return f"{PARTIAL}{_machine()}-{os.getpid()}-"


def _machine() -> str:
    return re.sub(r"\W", "_", platform.node())


def _is_alive(name: str) -> bool:
    """Tell whether the process that writes a partial of this name may be at work: on other machines, who knows."""
    match = re.fullmatch(rf"{re.escape(PARTIAL)}(\w*)-(\d+)-\w+", name)
    if match is None:
        return False
    if match[1] != _machine():
        return True
    try:
        os.kill(int(match[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of the disk, such as a full one, say which file could not be written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
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
