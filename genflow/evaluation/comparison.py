"""Results beside each other: ranked where their protocols agree, refused where they do not.

Pure text, without torch.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from genflow.evaluation.protocol import (
    ImageSet,
    NetworkIdentity,
    Protocol,
    Result,
    differences,
    load_results,
    unknown,
)
from genflow.evaluation.wording import (
    NAMES,
    UNKNOWN,
    network_words,
    number,
    prefix,
    printable,
    reading_words,
    reference_words,
    show,
    show_error,
    show_limit,
)

_READ = ("n", "shape", "codec", "resize", "colour", "quantisation")  # what of the samples may not differ
_REFERENCE = tuple(f.name for f in fields(ImageSet) if f.name not in ("name", "sampling"))
_NETWORK = tuple(f.name for f in fields(NetworkIdentity))
FIELDS = tuple(
    f"{side}.{name}"
    for side, names in (("samples", _READ), ("reference", _REFERENCE), ("network", _NETWORK))
    for name in names
)
"""What of a protocol results can differ in so that they are not ranked."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A result and the file that it came from."""

    file: str
    result: Result

    @property
    def kind(self) -> str:
        """Which Fréchet distance it holds: fid or fd."""
        return "fid" if "fid" in self.result.figures else "fd"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A field in which two results' protocols differ, and both values."""

    field: str
    values: tuple[Any, Any]
    files: tuple[str, str]

    def __str__(self) -> str:
        here, there = (_shown(value) for value in self.values)
        return f"{self.field} is {here} in {self.files[0]}, {there} in {self.files[1]}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Results, best Fréchet distance first, and the differences of their protocols that were to be ignored."""

    entries: tuple[Entry, ...]
    ignored: tuple[Difference, ...] = ()


def read_entries(path: Path, name: str | None = None) -> list[Entry]:
    """Read a file of results.

    Raises ``ValueError``, naming the file, for anything that ``genflow fid --out`` does not write.
    """
    return [Entry(file=name or str(path), result=result) for result in load_results(path)]


def compare(entries: Sequence[Entry], ignore: Iterable[str] = ()) -> Comparison:
    """Rank results by their Fréchet distance.

    Args:
        entries: at least one result.
        ignore: fields of the protocol that may differ, such as ``samples.n``; see ``FIELDS``.

    Raises:
        ValueError: there is nothing to compare; a field does not exist; some results are FIDs and others Fréchet
            distances in other features; or protocols differ in what is not ignored. It names every such field with
            both values, and the way out.
    """
    allowed = list(ignore)
    for name in allowed:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(FIELDS)}"
            raise ValueError(f"--ignore {name}: that is no field of a protocol that results are held to; {hint}")
    if not entries:
        raise ValueError("there is nothing to compare: give files that `genflow fid --out` wrote")
    first = entries[0]
    for entry in entries:
        if entry.kind != first.kind:
            one, other = (f"{NAMES[e.kind]} (features {e.result.protocol.network.name})" for e in (first, entry))
            raise ValueError(
                f"{first.file} holds an {one}, {entry.file} an {other}: these are different figures, which nothing"
                " makes comparable; measure both in the same features"
            )
    found = _differences(entries)
    forbidden = [d for d in found if d.field not in allowed]
    if forbidden:
        what = "; ".join(map(str, forbidden))
        way_out = " ".join(f"--ignore {d.field}" for d in forbidden)
        raise ValueError(
            f"these were measured differently, so that their order would mean nothing: {what}. Measure"
            f" them alike, or rank them all the same with {way_out}"
        )
    ranked = sorted(entries, key=lambda entry: entry.result.distance.value)
    return Comparison(entries=tuple(ranked), ignored=tuple(found))


def to_markdown(comparison: Comparison) -> str:
    """Return a comparison as aligned text that is Markdown too: the table, then what has to be known to read it."""
    columns = list(_columns(comparison.entries))
    parts = ["\n".join(_table(columns)), "\n".join(f"- {printable(line)}" for line in _remarks(comparison))]
    return "\n\n".join(parts)


def _differences(entries: Sequence[Entry]) -> list[Difference]:
    """Return each field in which any result differs from the first, with the first values that do."""
    first, found = entries[0], {}
    for entry in entries[1:]:
        for field, here, there in differences(first.result.protocol, entry.result.protocol):
            files = (first.file, entry.file)
            found.setdefault(field, Difference(field=field, values=(here, there), files=files))
    return list(found.values())


def _shown(value: Any) -> str:
    """Write the value of a field; a fingerprint by its beginning."""
    match value:
        case None:
            return UNKNOWN
        case str() if len(value) >= 32 and value.isalnum():
            return prefix(value)
        case tuple() | list():
            return "x".join(map(str, value))
        case _:
            return str(value)


def _columns(entries: Sequence[Entry]) -> Iterator[tuple[str, list[str], bool]]:
    """Yield the title, the cells and whether they are numbers, of each column that has any cell filled."""
    results = [entry.result for entry in entries]
    how = [result.protocol.samples.sampling for result in results]
    labels = {result.label for result in results}
    one = next(iter(labels)) if len(labels) == 1 else ""
    guided = any(s is not None and s.guidance != 1 for s in how)
    columns = [
        ("#", [str(k + 1) for k in range(len(entries))], True),
        ("file", [entry.file for entry in entries], False),
        ("samples", [result.protocol.samples.name for result in results], False),
        ("sampler", ["" if s is None else s.sampler for s in how], False),
        ("steps", ["" if s is None else str(s.steps) for s in how], True),
        ("calls", ["" if s is None else str(s.calls) for s in how], True),
        ("guidance", ["" if s is None or not guided else f"{s.guidance:g}" for s in how], True),
        ("figure", [] if one else [result.label for result in results], False),
        (one or NAMES[entries[0].kind], [show(e.kind, e.result.distance) for e in entries], True),
        ("n -> infinity", [show_limit(result.distance) for result in results], True),
        ("over floor", [_over_floor(result) for result in results], True),
    ]
    further = dict.fromkeys(name for result in results for name in result.figures if name not in ("fid", "fd"))
    for name in further:
        cells = [show(name, r.figures[name]) if name in r.figures else "" for r in results]
        columns.append((NAMES.get(name, name), cells, True))
    yield from (column for column in columns if any(column[1]))


def _over_floor(result: Result) -> str:
    floor = result.figures.get("floor")
    return f"{number(result.distance.value / floor.value, significant=3)}x" if floor and floor.value > 0 else ""


def _table(columns: Sequence[tuple[str, list[str], bool]]) -> Iterator[str]:
    """Yield the lines of a Markdown table whose columns are aligned, numbers to the right."""
    cells = [[_cell(title), *map(_cell, column)] for title, column, _ in columns]
    widths = [max(3, *map(len, column)) for column in cells]
    rights = [right for _, _, right in columns]
    for k, row in enumerate(zip(*cells, strict=True)):
        each = list(zip(row, widths, rights, strict=True))
        yield f"| {' | '.join(text.rjust(w) if right else text.ljust(w) for text, w, right in each)} |"
        if k == 0:
            yield f"| {' | '.join('-' * (w - 1) + ':' if right else '-' * w for _, w, right in each)} |"


def _cell(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace("|", "\\|")


def _remarks(comparison: Comparison) -> Iterator[str]:
    """Yield what has to be known to read the table."""
    entries = comparison.entries
    yield _common(entries[0].result.protocol, {d.field for d in comparison.ignored})
    for difference in comparison.ignored:
        yield f"NOT MEASURED ALIKE, ignored as asked: {difference}"
        if difference.field == "samples.n":
            yield "A Fréchet distance falls as the number of samples grows: the larger set has the easier figure."
    gaps = [name for name in FIELDS if any(name in _unknown(entry.result.protocol) for entry in entries)]
    if gaps:
        yield f"{UNKNOWN}, so that they could not be held against each other: {', '.join(gaps)}"
    yield from _within_error(entries)
    if any(entry.result.distance.standard_error is not None for entry in entries):
        yield "± is the standard error."
    if any(entry.result.distance.interval is not None for entry in entries):
        yield "n -> infinity: estimate for infinitely many images, with its 95 % interval."
    if any("memorising" in entry.result.figures for entry in entries):
        yield "memorising: distance to the nearest training image over that of held-out images; real is 1, copies 0."
    notes: dict[str, list[str]] = {}
    for place, entry in enumerate(entries, start=1):
        for note in entry.result.notes:
            notes.setdefault(" ".join(note.split()), []).append(str(place))
    yield from (f"warning ({', '.join(places)}): {note}" for note, places in notes.items())


def _common(protocol: Protocol, ignored: set[str]) -> str:
    """Return the protocol that all share in one line, or what is left of it."""
    if ignored:
        same = [name for name in FIELDS if name not in ignored]
        values = {name: _shown(_value(protocol, name)) for name in same}
        return "protocol, as far as common: " + ", ".join(f"{name} {value}" for name, value in values.items())
    samples = protocol.samples
    return (
        f"protocol: {UNKNOWN if samples.n is None else f'{samples.n:,}'} samples ({reading_words(samples)})"
        f" against {reference_words(protocol.reference)}; network {network_words(protocol.network)}"
    )


def _value(protocol: Protocol, field: str) -> Any:
    side, name = field.split(".")
    return vars(vars(protocol)[side])[name]


def _unknown(protocol: Protocol) -> set[str]:
    sides = {"samples": protocol.samples, "reference": protocol.reference, "network": protocol.network}
    return {f"{side}.{name}" for side, record in sides.items() for name in unknown(record)}


def _within_error(entries: Sequence[Entry]) -> Iterator[str]:
    """Say of neighbours in the table whether they can be told apart, and what that rests on.

    The variance of a difference is taken as the sum of both. Errors that two results share, of one reference or of
    common seeds, cancel in their difference, so that this is rather too careful than too bold.
    """
    unclear, untold = [], False
    for place, (better, worse) in enumerate(itertools.pairwise(entries), start=1):
        errors = (better.result.distance.standard_error, worse.result.distance.standard_error)
        if errors[0] is None or errors[1] is None:
            untold = True
            continue
        error = math.hypot(errors[0], errors[1])
        gap = worse.result.distance.value - better.result.distance.value
        if gap == 0:
            unclear.append(f"{place} and {place + 1} are equal")
        elif gap < 1.96 * error:
            unclear.append(
                f"{place} and {place + 1} are within error: they differ by {number(gap, error)}, of which the standard"
                f" error is {show_error(error)}"
            )
    yield from unclear
    if untold:
        yield "Where a standard error is missing, nothing can be said about whether a difference is real."
    elif len(entries) > 1 and not unclear:
        yield "Neighbours differ by more than their error (1.96 standard errors of the difference)."
    if len(entries) > 1:
        yield (
            "Differences are judged as if errors were independent. What two results share of theirs, such as one"
            " reference or common seeds, cancels in the difference: it may then be clearer than is said here."
        )
