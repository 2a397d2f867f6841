"""Figures and how they were obtained, in words and in digits that mean something: for the screen, tables and pages.

Pure text, without torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from genflow.evaluation.protocol import OF_SCHEDULE, Figure, ImageSet, NetworkIdentity, Result

UNKNOWN = "not recorded"
CLASSES = 10  # that are told on the screen
NAMES = {
    "fid": "FID",
    "fd": "FD",
    "sfid": "sFID",
    "kid": "KID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "floor": "floor",
    "memorising": "memorising",
    "accuracy": "asked class",
}
"""How figures are called in tables."""
_OF_DATA = ("floor", "memorising", "accuracy")  # these have a line of their own
_SHARES = ("precision", "recall")  # around 1 or below: a third digit is the last that says anything


def describe(result: Result) -> str:
    """Return a result as lines to read: the Fréchet distance, other figures, how they were obtained, warnings.

    The first line is such as ``FID-5k[inception-tf,uint8,png] = 12.34 (s.e. 0.21)``.
    """
    figure = result.distance
    error = "" if figure.standard_error is None else f" (s.e. {show_error(figure.standard_error)})"
    lines = [f"{result.label} = {number(figure.value, figure.standard_error)}{error}"]
    lines += [f"  {line}" for line in (*_figure_lines(result), *protocol_lines(result))]
    lines += [f"warning: {' '.join(note.split())}" for note in result.notes]
    return "\n".join(printable(line) for line in lines)


def protocol_lines(result: Result) -> list[str]:
    """Return how figures were obtained: a line for the samples, one for the reference, one for the network."""
    protocol = result.protocol
    return [
        f"samples: {samples_words(result)}",
        f"reference: {reference_words(protocol.reference)}",
        f"network: {network_words(protocol.network)}",
    ]


def samples_words(result: Result) -> str:
    """Say which samples: of a model, how they were drawn; of others, how they were read."""
    samples, ranges = result.protocol.samples, seed_ranges(result)
    how_many = _images(samples.n) + (f" in each of {ranges} seed ranges" if ranges > 1 else "")
    sampling = samples.sampling
    if sampling is None:
        return f"{samples.name}, {how_many}, {reading_words(samples)}, hash {prefix(samples.hash)}"
    parts = [f"{samples.name} (weights {prefix(sampling.weights)})", how_many, _seeds(result)]
    parts += [sampling.sampler, plural(sampling.steps, "step"), plural(sampling.calls, "network call")]
    if sampling.times not in (None, OF_SCHEDULE):
        parts.append(f"at times {sampling.times}")
    parts.append("no guidance" if sampling.guidance == 1 else f"guidance {sampling.guidance:g}")
    parts.append(f"classes {sampling.labels or UNKNOWN}")
    parts.append(f"EMA {sampling.ema or UNKNOWN}")
    return ", ".join([*parts, reading_words(samples)])


def reference_words(reference: ImageSet) -> str:
    """Say which reference, how many images, and how they were read."""
    split = f"split {reference.split or UNKNOWN}"
    parts = [reference.name, split, _images(reference.n), reading_words(reference), f"hash {prefix(reference.hash)}"]
    return ", ".join(parts)


def network_words(network: NetworkIdentity) -> str:
    """Say whose features are compared, and in which precision."""
    weights = "no weights" if network.weights == "" else f"weights {prefix(network.weights)}"
    resize = f"resize {network.resize or UNKNOWN}"
    shown = f"shown {network.quantisation}" if network.quantisation else f"quantisation {UNKNOWN}"
    return ", ".join(
        [f"{network.name} ({weights})", resize, shown, network.dtype or f"dtype {UNKNOWN}", f"{network.dims} dims"]
    )


def reading_words(images: ImageSet) -> str:
    """Say in what form images came to the network: ``3x32x32 rgb uint8, codec png, resize none``."""
    shape = "x".join(map(str, images.shape)) if images.shape else f"shape {UNKNOWN}"
    form = [shape, images.colour or f"colour {UNKNOWN}", images.quantisation or f"quantisation {UNKNOWN}"]
    return f"{' '.join(form)}, codec {images.codec or UNKNOWN}, resize {images.resize or UNKNOWN}"


def seed_ranges(result: Result) -> int:
    """Return the number of ranges of seeds whose mean the distance is."""
    return max(1, len(result.distances))


def number(value: float, error: float | None = None, *, significant: int = 4) -> str:
    """Write a number to the second significant digit of its error; without one, to ``significant`` digits.

    At least three significant digits are shown and at most six, and no exponent.
    """
    size = max(abs(value), error or 0.0)
    if size == 0:
        return "0"
    first = math.floor(math.log10(size))
    decimals = 1 - math.floor(math.log10(error)) if error else significant - 1 - first
    return f"{value:.{max(0, min(max(decimals, 2 - first), 5 - first))}f}"


def show_error(error: float) -> str:
    """Write a standard error to two significant digits."""
    return f"{error:.{max(0, 1 - math.floor(math.log10(error)))}f}" if error else "0"


def show(name: str, figure: Figure) -> str:
    """Write the figure of this name as it stands in a table: ``12.34 ± 0.21``, the latter its standard error."""
    error = figure.standard_error
    if name == "accuracy":
        return f"{figure.value:.1%}" + (f" ± {error:.1%}" if error else "")
    if name == "memorising" or (name in _SHARES and not error):
        return f"{round(figure.value, 4):.3g}"
    return number(figure.value, error) + ("" if error is None else f" ± {show_error(error)}")


def split_value(figure: Figure) -> tuple[str, str]:
    """Return a value and its standard error, "" if there is none, with digits that fit each other."""
    error = figure.standard_error
    return number(figure.value, error), "" if error is None else show_error(error)


def show_limit(figure: Figure) -> str:
    """Write the limit of infinitely many images with its interval, ``11.90 [11.41, 12.39]``, or nothing."""
    if figure.limit is None:
        return ""
    if figure.interval is None:
        return number(figure.limit)
    low, high = figure.interval
    limit = number(figure.limit, (high - low) / 4)
    decimals = len(limit.partition(".")[2])
    return f"{limit} [{low:.{decimals}f}, {high:.{decimals}f}]"


def prefix(digest: str | None) -> str:
    """Return the first twelve digits of a fingerprint, which tell any two apart."""
    return digest[:12] if digest else UNKNOWN


def plural(count: int, noun: str) -> str:
    """Return ``1 step``, ``2 steps``, ``5,000 steps``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def printable(text: str) -> str:
    """Return text without what moves the cursor of a terminal: names come from files of others."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _images(count: int | None) -> str:
    return f"number of images {UNKNOWN}" if count is None else plural(count, "image")


def _seeds(result: Result) -> str:
    samples = result.protocol.samples
    assert samples.sampling is not None
    first = samples.sampling.first_seed
    if samples.n is None:
        return f"seeds from {first}"
    return f"seeds {first} to {first + samples.n * seed_ranges(result) - 1}"


def _figure_lines(result: Result) -> Iterator[str]:
    """Yield what is known beside the distance."""
    ranges = seed_ranges(result)
    if ranges > 1:
        yield f"mean of {ranges} seed ranges"
    distance = result.distance
    if distance.limit is not None:
        value, _, interval = show_limit(distance).partition(" ")
        ends = f" (95 % interval {interval[1:-1].replace(', ', ' to ')})" if interval else ""
        yield f"with infinitely many images {value}{ends}"
    said = {"floor": "floor {} (real images)", "memorising": "memorising ratio {} (real is 1)"}
    of_data = [
        said.get(name, NAMES[name] + " {}").format(show(name, Figure(value=result.figures[name].value)))
        for name in _OF_DATA
        if name in result.figures
    ]
    if of_data:
        yield ", ".join(of_data)
    worst = sorted(result.per_class.items(), key=lambda each: -each[1].value)
    if worst:
        shown = ", ".join(f"{name} {number(figure.value, figure.standard_error)}" for name, figure in worst[:CLASSES])
        more = f" and {len(worst) - CLASSES} more" if len(worst) > CLASSES else ""
        yield f"by class, worst first: {shown}{more}"
    others = [
        f"{NAMES.get(name, name)} {show(name, figure)}"
        for name, figure in result.figures.items()
        if name not in (*_OF_DATA, "fid", "fd")
    ]
    if others:
        yield ", ".join(others) + ("  (± standard error)" if "±" in "".join(others) else "")
