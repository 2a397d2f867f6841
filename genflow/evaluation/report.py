"""Results as one page for people: the figure, how it was obtained, the curve over steps, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from genflow.evaluation.curve import curve
from genflow.evaluation.page import page, pairs, picture, section, table
from genflow.evaluation.protocol import Figure, ImageSet, NetworkIdentity, Result, Sampling
from genflow.evaluation.straightness import Straightness
from genflow.evaluation.wording import (
    NAMES,
    UNKNOWN,
    number,
    protocol_lines,
    show,
    show_limit,
    split_value,
)
from genflow.files import write_text

SHOWN_CLASSES = 20  # worst first; the others are folded away


@dataclass(frozen=True, kw_only=True)
class Flow:
    """How straight the flow of the model is, with a picture (3, H, W) uint8 of its paths."""

    found: Straightness
    seeds: int
    picture: Tensor


def write_report(
    path: Path,
    results: Sequence[Result],
    pictures: Mapping[str, Tensor],
    title: str,
    command: str = "",
    flow: Flow | None = None,
) -> None:
    """Write one HTML file that needs nothing else, whole or not at all.

    Args:
        path: the file.
        results: of one reference and one network, such as one for each number of steps.
        pictures: uint8 (C, H, W), by caption.
        title: what was measured.
        command: what measures it again; "" leaves that part out.
        flow: that of the model whose results these are; None leaves that part out.

    Raises:
        ValueError: there is no result, or a tensor is no picture.
    """
    if not results:
        raise ValueError("there is nothing to report: no result was given")
    best = min(results, key=lambda result: result.distance.value)
    parts = [_headline(best, len(results)), _warnings(results)]
    parts.append(section("All figures", _figures(results, best)))
    drawn = curve(results)
    if drawn:
        legend = "Bars are 95 % intervals (1.96 standard errors to each side)."
        parts.append(section("Distance over steps", f'<div class="scroll">{drawn}</div>\n<p class="soft">{legend}</p>'))
    if flow is not None:
        parts.append(section("Straightness of the flow", _flow(flow), "long"))
    if pictures:
        grids = "\n".join(picture(image, caption) for caption, image in pictures.items())
        parts.append(section("Pictures", f'<div class="grids">\n{grids}\n</div>', "long"))
    if any(result.per_class for result in results):
        parts.append(section("Distance of each class", _classes(results, best), "long"))
    parts.append(section("Protocol in full", _protocol(results), "long"))
    if command:
        parts.append(section("How to repeat this", f"<pre><code>{escape(command)}</code></pre>"))
    write_text(path, page(title, filter(None, parts)))


def _headline(result: Result, count: int) -> str:
    """Return the best figure, large, with what is needed to read it."""
    distance = result.distance
    value, error = split_value(distance)
    tiles = [("with infinitely many images, 95 % interval", show_limit(distance))] if distance.limit is not None else []
    floor = result.figures.get("floor")
    if floor is not None and floor.value > 0:
        times = number(distance.value / floor.value, significant=3)
        tiles.append((f"times the floor of real images, {number(floor.value)}", times))
    said = {"memorising": "memorising ratio (real is 1)", "accuracy": "read as the class asked for"}
    tiles += [(said.get(n, NAMES.get(n, n)), show(n, f)) for n, f in result.figures.items() if n not in _FIRST]
    small = f" <small>± {escape(error)}</small>" if error else ""
    sampling = result.protocol.samples.sampling
    best = f"best of {count}: {_how(sampling)}" if count > 1 and sampling else ""
    how = [tuple(line.split(": ", 1)) for line in protocol_lines(result)]
    return (
        f'<section>\n<div class="top">\n<div><div class="name">{escape(result.label)}</div>'
        f'<div class="value">{escape(value)}{small}</div><div class="soft">{escape(best)}</div></div>\n'
        f"{pairs('tiles', tiles)}\n</div>\n{pairs('how', [(name, text) for name, text in how])}\n</section>"
    )


_FIRST = ("fid", "fd", "floor")  # what the headline tells in a way of its own


def _how(sampling: Sampling) -> str:
    guidance = "" if sampling.guidance == 1 else f", guidance {sampling.guidance:g}"
    return f"{sampling.sampler}, {sampling.steps} step{'' if sampling.steps == 1 else 's'}{guidance}"


def _warnings(results: Sequence[Result]) -> str:
    notes = dict.fromkeys(note for result in results for note in result.notes)
    if not notes:
        return ""
    return section("To bear in mind", f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>", "warn")


def _figures(results: Sequence[Result], best: Result) -> str:
    """Return the table of everything that was measured, a row for each result."""
    names = dict.fromkeys(name for result in results for name in result.figures if name not in ("fid", "fd"))
    how = [result.protocol.samples.sampling for result in results]
    columns: list[tuple[str, list[str], bool]] = [
        ("samples", [result.protocol.samples.name for result in results], False),
        ("sampler", [s.sampler if s else "" for s in how], False),
        ("steps", [str(s.steps) if s else "" for s in how], True),
        ("calls", [str(s.calls) if s else "" for s in how], True),
        ("guidance", [f"{s.guidance:g}" if s and s.guidance != 1 else "" for s in how], True),
        (results[0].label, [show("fd", result.distance) for result in results], True),
        ("n → ∞", [show_limit(result.distance) for result in results], True),
    ]
    for name in names:
        cells = [show(name, result.figures[name]) if name in result.figures else "" for result in results]
        columns.append((NAMES.get(name, name), cells, True))
    told_above = ("samples", "sampler", NAMES["floor"])  # unless results differ in it
    kept = [(t, c, right) for t, c, right in columns if any(c) and not (t in told_above and len({*c}) == 1 < len(c))]
    rows = list(zip(*(cells for _, cells, _ in kept), strict=True))
    place = next(k for k, result in enumerate(results) if result is best) if len(results) > 1 else -1
    shown = table([title for title, _, _ in kept], rows, numbers=[right for _, _, right in kept], best=place)
    return shown + f'\n<p class="soft">{escape(_legend(results, [title for title, _, _ in kept]))}</p>'


def _legend(results: Sequence[Result], titles: Sequence[str]) -> str:
    said = ["Lower distances are better."]
    ranges = max(len(result.distances) for result in results)
    if ranges > 1:
        said.append(f"Each is the mean over {ranges} ranges of seeds.")
    if any(figure.standard_error is not None for result in results for figure in result.figures.values()):
        said.append("± is the standard error.")
    if "n → ∞" in titles:
        said.append("n → ∞ estimates the distance of infinitely many images, with a 95 % interval.")
    if NAMES["floor"] in titles:
        said.append("The floor is what real training images score.")
    if NAMES["memorising"] in titles:
        said.append("Memorising: distance to the nearest training image over that of held-out images; copies give 0.")
    return " ".join(said)


def _classes(results: Sequence[Result], best: Result) -> str:
    """Return the distance of each class with a bar, the worst of the best result first."""
    told = [result for result in results if result.per_class]
    first = best if best.per_class else told[0]
    unknown = Figure(value=0.0)
    names = sorted(
        dict.fromkeys(name for result in told for name in result.per_class),
        key=lambda name: -first.per_class.get(name, unknown).value,
    )
    largest = max(figure.value for result in told for figure in result.per_class.values()) or 1.0
    how = [result.protocol.samples.sampling for result in told]
    titles = ["class", *(_how(s) if s else result.protocol.samples.name for s, result in zip(how, told, strict=True))]
    head = "<tr>" + "".join(f"<th>{escape(title)}</th>" for title in titles) + "</tr>"
    rows = []
    for name in names:
        bars = "".join(_bar(result.per_class.get(name), largest) for result in told)
        rows.append(f"<tr><td>{escape(name)}</td>{bars}</tr>")
    shown = _table(head, rows[:SHOWN_CLASSES])
    if rows[SHOWN_CLASSES:]:
        more = f"{len(rows) - SHOWN_CLASSES} more, all lower"
        shown += f"<details><summary>{more}</summary>{_table(head, rows[SHOWN_CLASSES:])}</details>"
    return shown + (
        '<p class="soft">Samples asked for a class against real images of it. A class has few images, which raises its'
        " distance: compare classes with each other, not with the distance of the whole.</p>"
    )


def _flow(flow: Flow) -> str:
    """Return how straight a flow is, what that means, and its paths."""
    found, steps = flow.found, len(flow.found.profile)
    tiles = [
        ("straightness (0 is straight)", show("straightness", found.straightness)),
        (f"one-step gap, 1 against {steps} steps", show("one_step_gap", found.one_step_gap)),
        ("shares near noise, in the middle, near images", ", ".join(f"{share:.0%}" for share in found.thirds())),
    ]
    told = (
        "Straightness is the mean square by which velocities stray from the straight line between noise and image; the"
        " gap is the mean square difference between images of one step and of many, with values in [-1, 1]. Where both"
        f" are near 0, one step is as good as many. Of {flow.seeds} seeds in {steps} steps of Euler's rule, without"
        " guidance, each class in turn."
    )
    drawn = picture(flow.picture, "the paths from noise to image")
    return f'{pairs("tiles", tiles)}\n<p class="soft">{escape(told)}</p>\n<div class="drawn">{drawn}</div>'


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="scroll"><table>\n{head}\n{"".join(rows)}\n</table></div>'


def _bar(figure: Figure | None, largest: float) -> str:
    if figure is None:
        return "<td></td>"
    width = max(1.0, 100 * max(figure.value, 0.0) / largest)
    return f'<td class="bar">{escape(show("fd", figure))}<i style="width: {width:.1f}%"></i></td>'


def _protocol(results: Sequence[Result]) -> str:
    """Return every field of the protocol; where results differ in one, all its values."""
    protocols = [result.protocol for result in results]
    parts = _fields("Samples", [protocol.samples for protocol in protocols])
    drawn = [protocol.samples.sampling for protocol in protocols if protocol.samples.sampling is not None]
    if drawn:
        parts += _fields("Sampling", drawn)
    parts += _fields("Reference", [protocol.reference for protocol in protocols])
    parts += _fields("Network", [protocol.network for protocol in protocols])
    return f'<div class="sides">\n{parts}\n</div>'


def _fields(title: str, records: Sequence[ImageSet | Sampling | NetworkIdentity]) -> str:
    rows = []
    for field in fields(records[0]):
        if field.name == "sampling":
            continue
        values = dict.fromkeys(_shown(field.name, vars(record)[field.name]) for record in records)
        rows.append(f"<tr><th>{escape(field.name.replace('_', ' '))}</th><td>{' · '.join(values)}</td></tr>")
    return f'<div><h3>{escape(title)}</h3>\n<table class="fields">\n{"".join(rows)}\n</table></div>\n'


def _shown(name: str, value: Any) -> str:
    """Return the value of a field as HTML."""
    match value:
        case None:
            return f"<em>{UNKNOWN}</em>"
        case "" if name == "weights":
            return "none"
        case tuple():
            return "x".join(map(str, value))
        case float():
            return f"{value:g}"
        case _ if name in ("weights", "hash"):
            return f"<code>{escape(str(value))}</code>"
        case _:
            return escape(str(value))
