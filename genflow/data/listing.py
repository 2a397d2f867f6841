"""Which files of a folder or zip are images, and what labels them: a file of labels, or the sub-folders."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from genflow.data.labels import EDM_LABELS, match_labels, read_labels_file
from genflow.data.paths import expanded, on_disk_source, shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp")
_OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".jpe", ".apng", ".ppm", ".tga")
_TRAIN = {"train", "training"}
_HELD_OUT = {"test", "testing", "val", "valid", "validation"}


@dataclass(frozen=True)
class Listing:
    """Paths of images relative to their root, folder by folder with forward slashes; their classes, if any."""

    files: tuple[str, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]


def is_hidden(name: str) -> bool:
    """Say whether the name of a file or folder is one that is passed over."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(path: str) -> bool:
    """Say whether a path ends like an image that is read."""
    return path.lower().endswith(SUFFIXES)


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
        files: relative paths of its files that are not hidden, in any order; those that are no images are left out,
            which is said in one line on stderr where they are images of other formats.
        folders: names of its sub-folders, empty ones too.
        labels: file of labels; "" uses EDM's dataset.json if ``read_text`` is given, else the sub-folders.
        read_text: reads a text file of the folder or zip that has a dataset.json, else None.

    Raises:
        ValueError: no images, images both directly inside and in sub-folders, labels that do not fit.
    """
    names = list(files)
    ordered = tuple(sorted(filter(is_image, names), key=lambda path: path.replace("/", "\0")))  # folder by folder
    others = [name for name in names if name.lower().endswith(_OTHER_SUFFIXES)]
    if not ordered:
        raise ValueError(f"{where} holds no images (looked for {', '.join(SUFFIXES)}){_hint(where, names, others)}")
    if others:
        tqdm.write(f"{where}: {_left_out(others)}", file=sys.stderr)
    if labels:
        path = expanded(labels)
        return Listing(ordered, *match_labels(read_labels_file(path), str(path), ordered))
    if read_text is not None:
        return Listing(ordered, *match_labels(read_text(EDM_LABELS), posixpath.join(where, EDM_LABELS), ordered))
    return _by_folder(where, ordered, sorted(folders))


def _left_out(others: list[str]) -> str:
    suffixes = ", ".join(sorted({posixpath.splitext(name)[1].lower() for name in others}))
    return f"{len(others)} files that look like images were left out ({suffixes}): convert them to PNG or JPEG"


def _hint(where: str, names: list[str], others: list[str]) -> str:
    if others:
        return f"; {_left_out(others)}"
    if any(name.endswith(".parquet") for name in names):
        return f": for its parquet files give {on_disk_source(where)}"
    return ""


def _by_folder(where: str, files: tuple[str, ...], folders: Sequence[str]) -> Listing:
    loose = [file for file in files if "/" not in file]
    if len(loose) == len(files):
        return Listing(files, None, ())
    tops = [file.split("/")[0] for file in files if "/" in file]
    if loose:
        raise ValueError(
            f"{where} holds images directly inside ({shown(loose[0])}) and in sub-folders ({shown(tops[0])}): "
            "move all into class sub-folders, or none, or label them by a file (--data.labels)"
        )
    parts = {folder: folder.lower() for folder in folders if folder.lower() in _TRAIN | _HELD_OUT}
    if len(parts) == len(folders) or (_TRAIN & {*parts.values()} and _HELD_OUT & {*parts.values()}):
        raise ValueError(
            f"{where} holds {', '.join(parts)}, which are parts of a data set rather than "
            f"classes: give one of them, for instance {posixpath.join(where, next(iter(parts)))}"
        )
    empty = sorted(set(folders) - set(tops))
    if empty:
        raise ValueError(
            f"{shown(posixpath.join(where, empty[0]))} holds no images (looked for {', '.join(SUFFIXES)}), but each "
            "sub-folder counts as a class: remove it or fill it"
        )
    number = {name: place for place, name in enumerate(sorted(set(tops)))}
    return Listing(files, tuple(number[top] for top in tops), tuple(number))
