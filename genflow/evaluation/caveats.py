"""What a reader must be told: where samples and reference were treated differently, and what is not known."""

from __future__ import annotations

from collections.abc import Iterator

from genflow.evaluation.protocol import LOSSLESS, ImageSet, NetworkIdentity, unknown


def check_sizes(samples: ImageSet, reference: ImageSet) -> None:
    """Refuse images of different sizes: a distance between them is that between their sharpness.

    Raises ``ValueError`` saying what would make them equal.
    """
    if samples.shape is None or reference.shape is None or samples.shape[1:] == reference.shape[1:]:
        return
    raise ValueError(
        f"the samples are {samples.shape} (channels, height, width), {reference.name} is {reference.shape}:"
        " distances are between images of one size; --data.size reads image files, and mnist5k, in another"
    )


def caveats(samples: ImageSet, reference: ImageSet) -> Iterator[str]:
    """Yield a sentence for every way in which the two sides differ besides their quality."""
    if samples.shape and reference.shape and samples.shape[0] != reference.shape[0]:
        kinds = {1: "grey", 3: "RGB"}
        names = [kinds.get(side.shape[0], f"{side.shape[0]}-channel") for side in (samples, reference) if side.shape]
        yield f"colour differs: the samples are {names[0]}, the reference is {names[1]}; grey is repeated to RGB"
    elif samples.colour and reference.colour and samples.colour != reference.colour:
        yield f"colour differs: the samples are {samples.colour}, the reference is {reference.colour}"
    yield from _codecs(samples.codec, reference.codec)
    if samples.resize and reference.resize and samples.resize != reference.resize:
        yield (
            f"resizing differs: samples {samples.resize}, reference {reference.resize}; the distance holds what"
            " resizing does to sharpness"
        )
    if samples.quantisation and reference.quantisation and samples.quantisation != reference.quantisation:
        yield (
            f"quantisation differs: samples {samples.quantisation}, reference {reference.quantisation}; rounding to"
            " 8 bits alone moves a distance"
        )


def same(samples: ImageSet, reference: ImageSet) -> list[str]:
    """Return the sentence that there is nothing to compare, if that is so."""
    if samples.hash is None or samples.hash != reference.hash:
        return []
    return ["samples and reference are the same images, pixel for pixel: this distance says nothing"]


def _codecs(samples: str | None, reference: str | None) -> Iterator[str]:
    if samples is None or reference is None or samples == reference or (samples in LOSSLESS and reference in LOSSLESS):
        return
    yield (
        f"codec differs: samples {samples}, reference {reference}; a lossy codec leaves traces that features see, so"
        " the distance is partly that of the codecs"
    )


def gaps(reference: ImageSet, network: NetworkIdentity | None, origin: str) -> Iterator[str]:
    """Yield what a statistics file does not tell, and so cannot be checked."""
    missing = unknown(reference)
    if network is None:
        missing += ["network"]
    else:
        missing += [f"network.{name}" for name in unknown(network)]
    if missing:
        yield (
            f"the reference is a file of {origin} that does not tell its {', '.join(missing)}: whether they agree with"
            " the samples' is not known"
        )


def out_of_reach(metrics: frozenset[str], *, spatial: bool) -> Iterator[str]:
    """Yield what cannot be had from a reference that is statistics only (``spatial``: sFID's too)."""
    lost = [name for key, name in (("kid", "KID"), ("pr", "precision and recall")) if key in metrics]
    if "sfid" in metrics and not spatial:
        lost.append("sFID")
    if lost:
        yield f"not measured: {', '.join(lost)}; a file of statistics holds too little for that, give the images"
    yield (
        "the reference is statistics only: its own sampling error and bias are neither in the standard error nor taken"
        " out of the limit"
    )
