"""Results with invented numbers."""

from dataclasses import replace
from typing import Any

from genflow.evaluation.protocol import Figure, ImageSet, NetworkIdentity, Protocol, Result, Sampling

REFERENCE = ImageSet(
    name="digits-test",
    n=599,
    hash="ab" * 32,
    split="test",
    shape=(1, 8, 8),
    codec="raw",
    resize="none",
    colour="grey",
    quantisation="uint8",
)
SAMPLING = Sampling(
    weights="cd" * 32,
    sampler="euler",
    steps=4,
    calls=4,
    labels="as the reference's",
    times="the schedule's",
    ema="half-life 9",
)
SAMPLES = replace(REFERENCE, name="digits-rf", hash=None, split="all", sampling=SAMPLING)
NETWORK = NetworkIdentity(
    name="digits", weights="ef" * 32, resize="none", quantisation="uint8", dtype="float32", dims=64
)
PROTOCOL = Protocol(samples=SAMPLES, reference=REFERENCE, network=NETWORK)


def changed(protocol: Protocol, **changes: Any) -> Protocol:
    """The protocol with other values of fields, such as samples__n=3 or samples__sampling__steps=1."""
    for name, value in changes.items():
        side, _, field = name.partition("__")
        record = getattr(protocol, side)
        if field.startswith("sampling__"):
            value = replace(record.sampling, **{field.removeprefix("sampling__"): value})
            field = "sampling"
        protocol = replace(protocol, **{side: replace(record, **{field: value})})
    return protocol


def result(value: float = 4.0, error: float | None = 0.2, *, figures: dict | None = None, **changes: Any) -> Result:
    """A result of this distance; fields of the result or, as in ``changed``, of its protocol may be given."""
    own = {name: changes.pop(name) for name in ("distances", "per_class", "notes") if name in changes}
    protocol = changed(PROTOCOL, **changes)
    kind = "fid" if protocol.network.name == "inception" else "fd"
    distance = Figure(value=value, standard_error=error)
    return Result(protocol=protocol, figures={kind: distance, **(figures or {})}, **own)
