"""``genflow fid``: how far samples are from a reference, and how that was found out."""

from __future__ import annotations

import difflib
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from genflow.cli.cautions import caution_of_solver, caution_of_straight
from genflow.cli.models import Team, join_processes, load_model
from genflow.cli.sides import (
    DTYPES,
    Drawing,
    Reading,
    ReadingArguments,
    ReferenceSide,
    Side,
    check_network,
    draw_samples,
    is_measured_model,
    network_name,
    other_classes,
    read_reference,
    read_samples,
    reading_of,
)
from genflow.config_files import parse_arguments
from genflow.evaluation.caveats import caveats, check_sizes, gaps, out_of_reach, same
from genflow.evaluation.features import FeatureNetwork, load_features
from genflow.evaluation.measurement import (
    METRICS,
    RANGES,
    Beside,
    Gathered,
    Wanted,
    gather,
    measure,
    reads_digits,
    scratch_folder,
)
from genflow.evaluation.precision import effect
from genflow.evaluation.protocol import Protocol, Result, save_results
from genflow.evaluation.report import Flow, write_report
from genflow.evaluation.sources import FoundImages, Samples
from genflow.evaluation.straightness import straightness
from genflow.evaluation.trajectory_picture import PATHS, draw
from genflow.evaluation.uncertainty import advice
from genflow.evaluation.wording import describe, plural
from genflow.files import check_place
from genflow.pictures import grid
from genflow.schedules import Linear

FLOW_SEEDS = 256  # as genflow straightness takes
OF_INCEPTION = frozenset({"sfid", "is"})  # what is made of more than vectors
ABOUT = (
    "Distance between samples and a reference, with its standard error, what it would be with infinitely many images,"
    " and the protocol that produced it. For a model and embedded digits the figure is the mean over five ranges of"
    " seeds, beside the floor (real training images against held-out ones), the memorising ratio (distance to the"
    " nearest training image over that of held-out images: 1 is real, 0 copies) and the share of samples that a frozen"
    " classifier reads as the class asked for. Several processes share the work: torchrun --nproc_per_node 8"
    " --no-python -- genflow fid ... Examples: genflow fid runs/a/model digits --steps 1,2,4 --out a.json --report"
    " a.html; genflow fid samples/ photos/ --metrics kid,pr; genflow fid samples/ cifar10-32x32.npz --weights w.pth"
)


@dataclass(frozen=True, kw_only=True)
class FidArguments:
    """What ``genflow fid`` takes."""

    samples: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")]
    """A saved model, a folder, zip or .npz file of images, a data set hf:NAME, or an embedded set (its train part)."""
    reference: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REFERENCE")]
    """Images as for the samples (of an embedded set the held-out part), or a file of statistics: of genflow stats,
    EDM, EDM2, ADM, clean-fid or pytorch-fid."""
    metrics: str = "fid"
    """What to measure besides the Fréchet distance, such as kid,pr: kid, pr (precision and recall), and of Inception
    sfid and is (Inception score); all is all that the features have."""
    data: ReadingArguments = field(default_factory=ReadingArguments)
    """How image files are read; by default as they are, or as the run was told that the model is of."""
    features: str = "auto"
    """Network whose features are compared: inception, clip-vit-b-32 and others, dinov2-vit-s-14 and others,
    efficientnet-lite0, digits, mnist5k, pixels, or MODULE:FUNCTION for a function of images (B, C, H, W) uint8 that
    gives (B, D). auto: digits and mnist5k for references of that name; what a file of statistics says; else
    inception."""
    weights: Path | None = None
    """Weights file of the network; by default it is looked for in torch's hub cache, then downloaded."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; bfloat16 is faster, and what it changes is measured and printed."""
    num: int = 0
    """Samples to draw from a model; 0 is as many as the reference has images."""
    steps: str = ""
    """Steps of a model's sampler, or several to measure one after the other, such as 1,2,4; by default its own."""
    sampler: Literal["default", "euler", "heun", "dpmpp_2m", "ancestral", "multistep", "straight", "straight_heun"] = (
        "default"
    )
    """A model's sampler."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    first_seed: int = 0
    """The seed of a model's first sample; the others follow it."""
    per_class: bool = False
    """Measure each class too: samples asked for it against real images of it."""
    out: Path | None = None
    """JSON file for the results, which genflow compare reads."""
    report: Path | None = None
    """HTML file for people: table, protocol, pictures, the curve over steps, and how straight a flow on Linear is."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def fid(arguments: Sequence[str], *, prog: str = "genflow fid") -> None:
    """Print figures with the protocol that produced them."""
    options = parse_arguments(FidArguments, arguments, prog=prog, about=ABOUT)
    asked = _metrics(options.metrics)
    steps = _steps(options.steps)
    _check(options)
    team = join_processes(options.device)
    reading = reading_of(options.data, options.samples, options.reference)
    reference = read_reference(options.reference, reading, options.features)
    if is_measured_model(options.samples):
        sides = _drawn(options, steps, reference, team.device)
        if team.rank == 0:
            _caution(options.samples, sides)
    else:
        sides = [read_samples(options.samples, reading)]
    check_sizes(sides[0].said, reference.said)
    name = network_name(options.features, options.reference, reference)
    if name != "inception" and "all" in options.metrics:
        asked -= OF_INCEPTION
    wanted = Wanted(metrics=asked, per_class=options.per_class)
    _check_reach(wanted, name, sides[0], reference)
    results = _measured(options, wanted, name, sides, reference, reading, team)
    if team.rank == 0 and options.report is not None:
        command = shlex.join([prog, *arguments])
        title = f"{sides[0].said.name} against {reference.said.name}"
        write_report(options.report, results, _pictures(sides, reference), title, command, _flow(sides[0]))
        print(f"  report: {options.report}")


def _measured(
    options: FidArguments,
    wanted: Wanted,
    name: str,
    sides: Sequence[Side],
    reference: ReferenceSide,
    reading: Reading,
    team: Team,
) -> list[Result]:
    """Measure all sides against the reference, and print each result when it is there."""
    dtype, shape = DTYPES[options.dtype], sides[0].said.shape
    network = load_features(name, options.weights, team.device, dtype, image_shape=shape)
    file = reference.file
    if file is not None:
        check_network(network, reference)
    results: list[Result] = []
    with scratch_folder() as folder:
        if reference.data is not None:
            source = FoundImages(reference.data)
            there = gather(source, network, wanted, folder, progress=_bar("reference", team))
        else:
            assert file is not None
            spatial = file.spatial
            there = Gathered(moments=file.stats, spatial=None if spatial is None else lambda: spatial)
        beside = None
        if len(sides[0].ranges) > 1 and reference.data is not None:
            beside = Beside.of(reading.load(options.reference, "train"), reference.data, network)
        for side in sides:
            classes = side.ranges[0].classes
            progress = _bar(_how(side), team)
            found = measure(side.ranges, there, network, wanted, beside=beside, classes=classes, progress=progress)
            notes = list(_notes(options, wanted, network, side, reference))
            if options.dtype != "float32" and reference.data is not None and not results:
                exact = load_features(name, options.weights, team.device, image_shape=shape)
                notes.append(effect(network, exact, side.ranges[0], FoundImages(reference.data)))
            elif options.dtype != "float32" and file is not None:
                notes.append(f"what {options.dtype} changes is not measured: that takes the reference's images")
            here = side.said if side.said.sampling is not None else replace(side.said, hash=found.digests[0])
            said = reference.said if there.digest is None else replace(reference.said, hash=there.digest)
            notes += same(here, said)
            protocol = Protocol(samples=here, reference=said, network=network.identity)
            results.append(
                Result(
                    protocol=protocol,
                    figures=found.figures,
                    distances=found.distances,
                    per_class=found.per_class,
                    notes=tuple(notes),
                )
            )
            if team.rank == 0:
                if options.out is not None:  # what has been measured stays, whatever comes after
                    save_results(options.out, results)
                print(describe(results[-1]), flush=True)
    return results


def _notes(
    options: FidArguments, wanted: Wanted, network: FeatureNetwork, side: Side, reference: ReferenceSide
) -> Iterable[str]:
    here = replace(side.said, resize=side.resize)  # a model resizes nothing, but what it was trained on may have been
    yield from caveats(here, reference.said)
    match side.ranges[0]:
        case Samples(denoiser=denoiser):
            yield from other_classes(denoiser, options.samples, options.reference, reference.said)
        case _:
            pass
    if reference.file is not None:
        yield from gaps(reference.said, reference.file.network, reference.file.origin)
        yield from out_of_reach(wanted.metrics, spatial=reference.file.spatial is not None)
    yield from advice(side.said.n, reference.said.n, network.dims)
    if wanted.per_class:
        yield "distances of single classes are of few images each: compare them with each other, not with the whole"


def _drawn(options: FidArguments, steps: Sequence[int], reference: ReferenceSide, device: torch.device) -> list[Side]:
    """Return a model's samples with each number of steps."""
    denoiser = load_model(options.samples, device)
    count = options.num or reference.said.n or 0
    if not count:
        raise ValueError(f"{options.reference} does not tell of how many images it is: give --num, how many to draw")
    # the protocol of the embedded digits, unless something else is asked for
    ranges = RANGES if reads_digits(options.reference) and count == reference.said.n else 1
    drawing = Drawing(
        steps=denoiser.steps,
        sampler=denoiser.sampler if options.sampler == "default" else options.sampler,
        guidance=options.guidance,
        count=count,
        first_seed=options.first_seed,
        ranges=ranges,
    )
    chosen = steps or [denoiser.steps]
    return [draw_samples(denoiser, options.samples, reference, replace(drawing, steps=each)) for each in chosen]


def _caution(model: str, sides: Sequence[Side]) -> None:
    """Say once what is to be said of a sampler, whatever its numbers of steps."""
    how = [side.said.sampling for side in sides if side.said.sampling is not None]
    most = max(how, key=lambda sampling: sampling.steps)
    caution_of_straight(model, most.sampler, most.steps)
    drawn = [source for side in sides for source in side.ranges if isinstance(source, Samples)]
    caution_of_solver(model, drawn[0].denoiser, most.sampler, most.steps)


def _metrics(text: str) -> frozenset[str]:
    asked = {each.strip() for each in text.split(",") if each.strip()}
    if "all" in asked:
        return frozenset(METRICS)
    for each in asked - {*METRICS}:
        near = difflib.get_close_matches(each, METRICS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)} and all"
        raise ValueError(f"--metrics has no {each!r}; {hint}")
    return frozenset({"fid", *asked})


def _steps(text: str) -> list[int]:
    try:
        steps = [int(each) for each in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"--steps must be a number or several with commas, such as 1,2,4, got {text!r}") from None
    if any(each < 1 for each in steps) or len({*steps}) != len(steps):
        raise ValueError(f"--steps must be different numbers of at least 1, got {text!r}")
    return steps


def _check(options: FidArguments) -> None:
    """Refuse values that cannot be, and options of models where there is none."""
    if options.num < 0 or options.num == 1:
        raise ValueError(f"--num must be at least 2, or 0 for as many as the reference has, got {options.num}")
    for place in (options.out, options.report):
        if place is not None:
            check_place(place)
    if options.first_seed < 0:
        raise ValueError(f"--first-seed must not be negative, got {options.first_seed}")
    if is_measured_model(options.samples):
        return
    default = FidArguments(samples="", reference="")
    for name in ("num", "steps", "sampler", "guidance", "first_seed"):
        if getattr(options, name) != getattr(default, name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for models, and {options.samples} is none: leave it out")


def _check_reach(wanted: Wanted, name: str, side: Side, reference: ReferenceSide) -> None:
    """Refuse figures that this network or these sides cannot have."""
    missing = wanted.metrics & OF_INCEPTION
    if missing and name != "inception":
        option = ",".join(sorted(missing))
        raise ValueError(f"--metrics {option} takes Inception's outputs, and the features are {name}: leave it out")
    _check_numbers(wanted, side, reference)
    shapes = [each.shape for each in (side.said, reference.said) if each.shape is not None]
    if name == "pixels" and len({*shapes}) > 1:
        raise ValueError(
            f"pixels of {' and '.join(map(str, shapes))} (channels, height, width) cannot be compared: --data.channels"
            " reads image files as grey (1) or RGB (3)"
        )
    if not wanted.per_class:
        return
    there, here = reference.data.class_names if reference.data is not None else (), side.ranges[0].classes
    if not there or not here:
        lacking = "reference has" if not there else "samples have"
        raise ValueError(f"--per-class needs classes on both sides, and the {lacking} none")
    if there != here:
        pairs = ((here, there), (there, here))
        only = [", ".join(sorted({*one} - {*other})[:5]) or "none more" for one, other in pairs]
        raise ValueError(
            f"--per-class needs the same classes on both sides: only the samples have {only[0]}, only the reference"
            f" has {only[1]}"
        )


def _check_numbers(wanted: Wanted, side: Side, reference: ReferenceSide) -> None:
    """Refuse what too few images cannot have, before the many of the other side are passed."""
    needed = {"": 2, "kid": 2, "pr": 4}
    for what, least in needed.items():
        if what and what not in wanted.metrics:
            continue
        for images, said in (("samples are", side.said), ("reference is", reference.said)):
            if said.n is not None and said.n < least:
                metric = f"--metrics {what}" if what else "a distance"
                raise ValueError(f"{metric} needs at least {least} images a side, and the {images} {said.n}")


def _how(side: Side) -> str:
    how = side.said.sampling
    return "samples" if how is None else f"{how.sampler}, {plural(how.steps, 'step')}"


def _bar(what: str, team: Team) -> Callable[[Iterable[int]], Iterable[int]]:
    """Return a progress bar over units of images, which process 0 shows."""
    if team.count > 1:
        what += f", process 1 of {team.count}"
    often = 0.5 if sys.stderr.isatty() else 15  # seconds between lines of a log
    return lambda units: tqdm(
        units, desc=what, unit="unit", leave=False, delay=0.5, mininterval=often, disable=team.rank > 0
    )


def _flow(side: Side) -> Flow | None:
    """Return how straight the flow of a model on ``Linear`` is; None of anything else, and of one that diverges."""
    source = side.ranges[0]
    if not isinstance(source, Samples) or not isinstance(source.denoiser.schedule, Linear):
        return None
    found = straightness(source.denoiser, range(FLOW_SEEDS))
    if not math.isfinite(found.straightness.value):
        return None
    picture = draw({side.said.name: source.denoiser}, range(PATHS))
    return Flow(found=found, seeds=FLOW_SEEDS, picture=picture)


def _pictures(sides: Sequence[Side], reference: ReferenceSide) -> dict[str, Tensor]:
    """Return a grid of the first samples of each side, and of the reference."""
    found = {_how(side): side.ranges[0].unit(0)[0].cpu() for side in sides}
    if reference.data is not None:
        found["reference"] = FoundImages(reference.data).unit(0)[0]
    return {name: grid(images, 8, scale=max(1, 48 // images.shape[-1])) for name, images in found.items()}
