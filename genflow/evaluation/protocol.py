"""How a figure was obtained, and the figure: records that travel together, in files and on the screen.

Pure data, without torch: what compares or draws figures needs nothing else. A field that nobody knows is None, and is
said to be missing rather than guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from genflow import __version__
from genflow.files import write_text

FORMAT = 2  # of the files; raise it when a reader of older ones would misread
OF_SCHEDULE = "the schedule's"  # time grid
LOSSLESS = ("raw", "png", "bmp", "webp-lossless")  # codecs that give back every pixel


@dataclass(frozen=True, kw_only=True)
class NetworkIdentity:
    """Whose features are compared: equal identities give equal features of equal images, up to rounding."""

    name: str
    """As ``--features`` names it: inception, clip-vit-l-14, dinov2-vit-l-14, efficientnet-lite0, digits, pixels, …"""
    weights: str | None
    """sha256 of the weights file (of the source file, for a function of the user's); "" where there are none."""
    resize: str | None
    """How images are brought to the network's size: "none", or such as "bilinear 299x299 (TensorFlow 1)"."""
    quantisation: str | None
    """What the network was shown: uint8, or float."""
    dtype: str | None
    """What it computed in: float32, bfloat16."""
    dims: int
    """Length of a feature vector."""

    @property
    def label(self) -> str:
        """Its name in the name of a figure: the Inception network there is a port of TensorFlow's."""
        return "inception-tf" if self.name == "inception" else self.name


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a model was sampled."""

    weights: str
    """sha256 of all weights."""
    sampler: str
    steps: int
    calls: int
    """Network calls an image (NFE)."""
    guidance: float = 1.0
    first_seed: int = 0
    """Image k is of seed first_seed + k."""
    labels: str | None = None
    """Which classes were asked for: "none", "as the reference's", "each in turn"."""
    times: str | None = None
    """On which time grid: "the schedule's", or such as "80 0.821 0" where the model has its own for so many steps."""
    ema: str | None = None
    """What average of weights this is, such as "half-life 500,000 images"; None if the model's folder does not say."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One side of a comparison: images, or statistics of images that are not there any more."""

    name: str
    """What people call it."""
    n: int | None
    """How many images."""
    hash: str | None
    """Fingerprint of the images, or of the statistics file."""
    split: str | None
    """train, test or all; None if unknown."""
    shape: tuple[int, int, int] | None
    """Channels, height and width of the images as they went into the network."""
    codec: str | None
    """How they lay on the disk: png, jpeg, webp, bmp, several joined by "+", or raw for arrays and models."""
    resize: str | None
    """How they were resized when read: "none", or such as "bicubic antialiased 64x64"."""
    colour: str | None
    """grey or rgb; "+ converted" where files of another mode were converted when read."""
    quantisation: str | None
    """uint8, or float."""
    sampling: Sampling | None = None
    """How a model made them; None for images that were found."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that a figure depends on besides the images' quality."""

    samples: ImageSet
    reference: ImageSet
    network: NetworkIdentity


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number, and how far it can be trusted."""

    value: float
    standard_error: float | None = None
    """Of the images on both sides, unless the reference is statistics only: those are taken for exact."""
    limit: float | None = None
    """Estimate of what it would be with infinitely many images."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval of the limit."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one evaluation found: figures by name, all of one protocol.

    ``figures`` may hold: ``fid`` (Fréchet distance in Inception features) or ``fd`` (in any others), ``sfid``, ``kid``,
    ``inception_score``, ``precision``, ``recall``; and of models on embedded data ``floor``, ``memorising``,
    ``accuracy``. ``distances`` are those of single ranges of seeds, whose mean is the figure. ``notes`` are warnings in
    plain words.
    """

    protocol: Protocol
    figures: dict[str, Figure]
    distances: tuple[float, ...] = ()
    per_class: dict[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def distance(self) -> Figure:
        """The Fréchet distance."""
        return self.figures["fid" if "fid" in self.figures else "fd"]

    @property
    def label(self) -> str:
        """How the distance is called, such as ``FID-5k[inception-tf,uint8,png]``."""
        return figure_label("fid" if "fid" in self.figures else "fd", self.protocol)


def figure_label(figure: str, protocol: Protocol) -> str:
    """Return the name of a figure with what it depends on most: ``FID-5k[inception-tf,uint8,png]``.

    A Fréchet distance in other than Inception features is an FD, never an FID. What differs between the sides is told
    as ``samples/reference``; a network that computed in less than float32 is told.
    """
    samples, reference, network = protocol.samples, protocol.reference, protocol.network
    names = {"fid": "FID", "fd": "FD", "sfid": "sFID", "kid": "KID", "inception_score": "IS"}
    parts = [network.label, _both(samples.quantisation, reference.quantisation), _both(samples.codec, reference.codec)]
    if network.dtype not in ("float32", None):
        parts.append(network.dtype)
    return f"{names.get(figure, figure)}-{_short(samples.n)}[{','.join(parts)}]"


def _both(samples: str | None, reference: str | None) -> str:
    """Name a property once if the sides agree: to a codec, raw pixels are like a lossless file's."""
    if samples == reference or reference is None or (samples in LOSSLESS and reference in LOSSLESS):
        return samples or "?"
    return f"{samples or '?'}/{reference}"


def _short(count: int | None) -> str:
    if count is None:
        return "?"
    return f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)


def unknown(record: ImageSet | NetworkIdentity) -> list[str]:
    """Return the names of fields that nobody knows."""
    return [f.name for f in fields(record) if getattr(record, f.name) is None and f.name != "sampling"]


def differences(a: Protocol, b: Protocol) -> Iterator[tuple[str, Any, Any]]:
    """Yield ``(field, value of a, value of b)`` wherever figures of the two cannot be ranked against each other.

    Which model, which images, and how they were sampled is what is compared, so it may differ; their number, reading
    and quantisation, the reference and the network may not. Lossless codecs are all one. Fields are named as in files:
    ``samples.n``, ``reference.hash``, ``network.dtype``.
    """
    sides = [("samples", _how_many_and_read), ("reference", _which), ("network", asdict)]
    for side, view in sides:
        left, right = view(getattr(a, side)), view(getattr(b, side))
        for name in left:
            if left[name] != right[name]:
                yield f"{side}.{name}", left[name], right[name]


def _how_many_and_read(samples: ImageSet) -> dict[str, Any]:
    seen = {name: getattr(samples, name) for name in ("n", "shape", "codec", "resize", "colour", "quantisation")}
    return seen | {"codec": "lossless" if samples.codec in LOSSLESS else samples.codec}


def _which(reference: ImageSet) -> dict[str, Any]:
    seen = asdict(reference)
    del seen["name"], seen["sampling"]  # the same images may be called anything
    return seen | {"codec": "lossless" if reference.codec in LOSSLESS else reference.codec}


def save_results(path: Path, results: Sequence[Result]) -> None:
    """Write results as JSON, whole or not at all."""
    record = {"genflow": __version__, "format": FORMAT, "results": [asdict(result) for result in results]}
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def load_results(path: Path) -> list[Result]:
    """Read what ``save_results`` wrote. Raises ``ValueError``, naming the file, for anything else."""
    advice = f"{path} is not a file that `genflow fid --out` wrote"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{advice}: {error}") from None
    from pydantic import TypeAdapter, ValidationError

    where = ""
    try:
        record = json.loads(text, parse_constant=_no_number)
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            raise ValueError(f"{advice} (format {FORMAT}): measure anew")
        results = TypeAdapter(list[Result]).validate_json(json.dumps(record["results"]), strict=True)
        if results and all(map(_is_sound, results)):
            return results
    except ValidationError as error:
        where = f" at results.{'.'.join(map(str, error.errors()[0]['loc']))}"
    except (KeyError, RecursionError):
        pass
    except ValueError as error:  # no JSON, or a number of thousands of digits
        if str(error).startswith(advice):
            raise
    raise ValueError(f"{advice}, or it is damaged{where}: measure anew")


def _is_sound(result: Result) -> bool:
    """Tell whether there is a distance, and all numbers are ones that can have been measured."""
    figures = (*result.figures.values(), *result.per_class.values())
    numbers = [*result.distances]
    for figure in figures:
        numbers += [x for x in (figure.value, figure.standard_error, figure.limit) if x is not None]
        numbers += figure.interval or ()
    sides = (result.protocol.samples, result.protocol.reference)
    return (
        bool({"fid", "fd"} & result.figures.keys())
        and all(map(math.isfinite, numbers))
        and all((figure.standard_error or 0) >= 0 for figure in figures)
        and all((side.n if side.n is not None else 1) > 0 for side in sides)
    )


def _no_number(text: str) -> None:
    raise KeyError(text)  # NaN and Infinity are not JSON, though Python takes them
