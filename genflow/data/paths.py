"""Paths as they are given and as they are shown."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` and ``~user`` replaced.

    Raises ``ValueError`` if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"cannot find {str(path)!r}: {error}") from error


def shown(name: str) -> str:
    """Return a name for messages, in quotes if it would break their line."""
    return name if name.isprintable() else repr(name)


def is_on_disk(name: str) -> bool:
    """Tell a path from a name on the hub by how it begins: with a dot, a slash, a tilde, or a drive."""
    return name.startswith((".", "/", "~")) or bool(PureWindowsPath(name).drive)


def on_disk_source(path: str | Path) -> str:
    """Return how to give a data set on disk."""
    return f"hf:{path}" if is_on_disk(str(path)) else f"hf:./{path}"
