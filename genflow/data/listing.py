"""Which files of a folder or zip are images, and what labels them: a file of labels, or the sub-folders."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from genflow.data.labels import EDM_LABELS, match_labels, read_labels_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}


@dataclass(frozen=True)
class Listing:
    """Paths of images relative to their root, folder by folder with forward slashes; their classes, if any."""

    files: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]


def is_image(path: str) -> bool:
    """Say whether a relative path ends like an image and has no hidden part."""
    hidden = path.startswith((".", "__MACOSX/")) or "/." in path
    return path.lower().endswith(SUFFIXES) and not hidden


def list_images(
    where: str,
    files: Iterable[str],
    folders: Iterable[str],
    labels: str | Path,
    read_text: Callable[[str], str] | None,
) -> Listing:
    """Order the images of a folder or zip and label them.

    Args:
        where: the folder or zip, for messages.
        files: relative paths of its images, in any order.
        folders: names of its sub-folders, empty ones too.
        labels: file of labels; "" uses EDM's dataset.json if ``read_text`` is given, else the sub-folders.
        read_text: reads a text file of the folder or zip that has a dataset.json, else None.

    Raises:
        ValueError: no images, images both directly inside and in sub-folders, labels that do not fit.
    """
    ordered = tuple(sorted(files, key=lambda path: path.replace("/", "\0")))  # folder by folder
    if not ordered:
        raise ValueError(f"{where} holds no images (looked for {', '.join(SUFFIXES)})")
    if labels:
        path = Path(labels).expanduser()
        return Listing(ordered, *match_labels(read_labels_file(path), str(path), ordered))
    if read_text is not None:
        return Listing(ordered, *match_labels(read_text(EDM_LABELS), posixpath.join(where, EDM_LABELS), ordered))
    return _by_folder(where, ordered, sorted(folders))


def _by_folder(where: str, files: tuple[str, ...], folders: Sequence[str]) -> Listing:
    loose = [file for file in files if "/" not in file]
    if len(loose) == len(files):
        return Listing(files, None, ())
    tops = [file.split("/")[0] for file in files if "/" in file]
    if loose:
        raise ValueError(
            f"{where} holds images directly inside ({loose[0]}) and in sub-folders ({tops[0]}): "
            "move all into class sub-folders, or none, or label them by a file (--data.labels)"
        )
    if set(folders) <= _SPLIT_NAMES:
        raise ValueError(
            f"{where} holds {', '.join(folders)}, which are parts of a data set rather than "
            f"classes: give one of them, for instance {posixpath.join(where, tops[0])}"
        )
    empty = sorted(set(folders) - set(tops))
    if empty:
        raise ValueError(
            f"{posixpath.join(where, empty[0])} holds no images (looked for {', '.join(SUFFIXES)}), but each "
            "sub-folder counts as a class: remove it or fill it"
        )
    number = {name: place for place, name in enumerate(sorted(set(tops)))}
    return Listing(files, tuple(number[top] for top in tops), tuple(number))
