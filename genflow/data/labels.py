"""Files that label images: EDM's ``dataset.json``, or a CSV of file,label."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from genflow.data.paths import shown

EDM_LABELS = "dataset.json"  # looked for beside the images
_WHOLE = re.compile(r"-?\d+")
_DIGITS = 18  # what int64 holds; Python refuses to read numbers of some thousands


def read_labels_file(path: Path) -> str:
    """Return the text of a file of labels.

    Raises ``ValueError`` if there is none, or if it is neither .json nor .csv.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"the labels {path} must be a .json file (EDM's dataset.json) or a .csv file of file,label")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the labels {path}: {error}") from error


def match_labels(text: str, where: str, files: Sequence[str]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Return the class of each file and the names of the classes; None and () if the images are said to have none.

    JSON: {"labels": [["path", label], …]} or {"labels": null}, labels 0 … K - 1, the format of EDM
    (arXiv:2206.00364). CSV: the header file,label, then a line per image; labels 0 … K - 1, or names, which are
    numbered in alphabetical order; spaces around a label do not count. Lines come in any order; paths are relative,
    with forward slashes.

    Args:
        text: what the file holds.
        where: its name; ``.csv`` at the end tells the format.
        files: paths of the images.

    Raises:
        ValueError: another format; an image without a label, a label without an image, two labels of one image;
            labels that are negative or leave out a class.
    """
    entries = _csv_entries(text, where) if where.lower().endswith(".csv") else _json_entries(text, where)
    if entries is None:
        return None, ()
    labels: dict[str, int | str] = {}
    for path, label in entries:
        if path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{where}: {path!r} must be a path relative to the images, without '..'")
        if path in labels:
            raise ValueError(f"{where} labels {shown(path)} twice: leave one of the lines")
        labels[path] = label
    known = set(files)
    surplus = [path for path in labels if path not in known]
    if surplus:
        raise ValueError(
            f"{where} labels {_some(surplus)}, but there is no such image: remove the line or add the image"
        )
    bare = [file for file in files if file not in labels]
    if bare:
        raise ValueError(f"{where} has no label for {_some(bare)}: label every image, or remove those without a label")
    return number_classes([labels[file] for file in files], where)


def number_classes(labels: Sequence[int | str], where: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return labels 0 … K - 1 and the K names; labels that are all names are numbered in alphabetical order.

    Raises ``ValueError`` for numbers that are negative or leave out a class.
    """
    found = set(labels)
    if all(isinstance(label, str) for label in found):
        names = tuple(sorted(str(label) for label in found))
        number = {name: place for place, name in enumerate(names)}
        return tuple(number[str(label)] for label in labels), names
    numbers = [int(label) for label in labels]
    if min(numbers) < 0:
        raise ValueError(f"{where} holds the label {min(numbers)}: labels count from 0")
    gap = next(number for number in itertools.count() if number not in found)
    if gap < max(numbers):
        raise ValueError(
            f"{where} holds labels up to {max(numbers)}, but no image of class {gap}: number the classes without a gap"
        )
    return tuple(numbers), tuple(str(number) for number in range(max(numbers) + 1))


def _json_entries(text: str, where: str) -> list[tuple[str, int | str]] | None:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise ValueError(f'{where} must hold {{"labels": [["path", label], …]}} or {{"labels": null}}')
    if content["labels"] is None:
        return None
    if type(content["labels"]) is not list:
        raise ValueError(f'{where}: "labels" must be null or a list of ["path", label]')
    for place, entry in enumerate(content["labels"]):
        if not (isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is str and type(entry[1]) is int):
            shown = json.dumps(entry)
            raise ValueError(
                f'{where}: entry {place} must be ["path", label] with a whole number as label, got {shown[:80]}'
            )
    return [(path, label) for path, label in content["labels"]]


def _csv_entries(text: str, where: str) -> list[tuple[str, int | str]]:
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{where} is not CSV: {error}") from error
    if not lines or [cell.strip() for cell in lines[0]] != ["file", "label"]:
        raise ValueError(
            f"{where} must begin with the line file,label, got {','.join(lines[0]) if lines else 'nothing'}"
        )
    for number, line in enumerate(lines[1:], start=2):
        if line and (len(line) != 2 or not all(cell.strip() for cell in line)):
            raise ValueError(f"{where}: line {number} must be a file and its label, got {','.join(line)[:80]!r}")
        if line and _is_fraction(line[1]):
            raise ValueError(
                f"{where}: line {number} has the label {line[1][:80]!r}, but labels are whole numbers or names"
            )
    entries = [(file, label.strip()) for file, label in filter(None, lines[1:])]
    if all(_WHOLE.fullmatch(label) for _, label in entries):
        long = [label for _, label in entries if len(label) > _DIGITS]
        if long:
            raise ValueError(f"{where} holds a label of {len(long[0])} digits: number the classes 0, 1, 2 …")
        return [(file, int(label)) for file, label in entries]
    return list(entries)


def _is_fraction(label: str) -> bool:
    """Say whether a label is a number, but not a whole one."""
    try:
        float(label)
    except ValueError:
        return False
    return _WHOLE.fullmatch(label.strip()) is None


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
