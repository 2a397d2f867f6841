"""``genflow search-times``: at which noise levels a consistency model's steps are best begun."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from genflow.cli.models import choose_device, load_model
from genflow.cli.sides import (
    Drawing,
    ReadingArguments,
    ReferenceSide,
    check_network,
    draw_samples,
    network_name,
    read_reference,
    reading_of,
)
from genflow.config_files import parse_arguments
from genflow.data.images import EMBEDDED
from genflow.denoiser import Denoiser, config_file, saved_in, store_times
from genflow.evaluation.caveats import check_sizes
from genflow.evaluation.features import FeatureNetwork, load_features
from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.level_search import search_times
from genflow.evaluation.measurement import moments_of
from genflow.evaluation.sources import FoundImages, Samples
from genflow.evaluation.wording import number, plural
from genflow.files import check_place
from genflow.sampling.generate import times_above
from genflow.schedules import VE

if TYPE_CHECKING:
    import torch

    from genflow.evaluation.statistics import FeatureStats

FIRST_SEED = 2**32  # figures are of seeds from 0
MOST = 10_000  # samples of a trial, unless more are asked for
MOST_STEPS = 50  # beyond which a search, of ten trials and more a step, would not end
ABOUT = (
    "Search the noise levels at which a model of few steps, on schedule VE, begins those after its first, by the"
    " Fréchet distance to a reference: one level at a time, of which nine are scanned and golden sections close in on"
    " the best. All trials have the same seeds, and those, like the training part of embedded digits, play no part in"
    " the figures of genflow fid; a reference of your own should be other images than you report figures on. The best"
    " times are stored in the model's config.json, and taken from then on whenever so many steps are asked for. A model"
    " that is trained on has to be searched again. Example: genflow search-times runs/tiny-ict/model digits --steps 2"
)


@dataclass(frozen=True, kw_only=True)
class SearchArguments:
    """What ``genflow search-times`` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A saved model, or a run's folder."""
    reference: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REFERENCE")]
    """What genflow fid takes as a reference; of an embedded set, the part that is trained on."""
    steps: int = 2
    """Steps of the sampler; with more than 2, all numbers from 2 on are searched, each from the one before."""
    tolerance: float = 0.1
    """How close, in ln sigma, the search closes in; half of it costs a trial or two more."""
    num: int = 0
    """Samples of a trial; 0 is as many as the reference has images, at most 10,000."""
    first_seed: int = FIRST_SEED
    """The seed of the first sample, from 2^32 on: those below are for figures."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    data: ReadingArguments = field(default_factory=ReadingArguments)
    """How image files are read; by default as they are, or as the run was told that the model is of."""
    features: str = "auto"
    """Network whose features are compared, as genflow fid takes it."""
    weights: Path | None = None
    """Weights file of the network."""
    dry_run: bool = False
    """Search, and store nothing."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def search_model_times(arguments: Sequence[str], *, prog: str = "genflow search-times") -> None:
    """Print a line for every trial, and store the best times with the model."""
    options = parse_arguments(SearchArguments, arguments, prog=prog, about=ABOUT)
    _check(options)
    device = choose_device(options.device)
    denoiser = load_model(options.model, device)
    schedule = _noise_levels(options.model, denoiser)
    file = _config_of(options.model)
    if not options.dry_run:
        check_place(file)
    trials = _Trials.of(options, denoiser, device)
    known = [tuple(denoiser.times[str(k)]) for k in range(2, options.steps + 1) if str(k) in denoiser.times]
    known += [tuple(times_above(schedule, k).tolist()) for k in range(2, options.steps + 1)]
    found = {}
    ends = {"low": schedule.sigma_min, "high": schedule.sigma_max}
    for best in search_times(trials, options.steps, known=known, tolerance=options.tolerance, **ends):
        steps = len(best.times) - 1
        found[steps] = list(best.times)
        print(f"{plural(steps, 'step')}: best at times {_shown(best.times)}, distance {number(best.distance)}")
    if options.dry_run:
        print("nothing is stored: this was a dry run")
        return
    store_times(file, found)
    print(f"{file}: sampled at these times from now on")


class _Trials:
    """The distance of a time grid, of the same seeds each time; prints a line for each."""

    def __init__(self, samples: Samples, network: FeatureNetwork, reference: FeatureStats) -> None:
        self.samples, self.network, self.reference = samples, network, reference
        self.count = itertools.count(1)

    @classmethod
    def of(cls, options: SearchArguments, denoiser: Denoiser, device: torch.device) -> _Trials:
        """Measure the reference once; refuses what does not fit the model before anything is drawn."""
        reading = reading_of(options.data, options.model, options.reference)
        reference = read_reference(options.reference, reading, options.features, part="train")
        count = options.num or min(reference.said.n or 0, MOST)
        if not count:
            raise ValueError(f"{options.reference} does not tell of how many images it is: give --num")
        drawing = Drawing(
            steps=2,
            sampler=denoiser.sampler,
            guidance=options.guidance,
            count=count,
            first_seed=options.first_seed,
            ranges=1,
        )
        side = draw_samples(denoiser, options.model, reference, drawing)
        check_sizes(side.said, reference.said)
        name = network_name(options.features, options.reference, reference)
        network = load_features(name, options.weights, device, image_shape=side.said.shape)
        (samples,) = side.ranges
        assert isinstance(samples, Samples)
        there = _moments(reference, network)
        seeds = f"{plural(count, 'sample')} of seeds from {options.first_seed:,}, sampler {denoiser.sampler}"
        against = f"{reference.said.name}, split {reference.said.split}" if reference.data else reference.said.name
        print(f"trials of {seeds}, against {against}, in features of {name}", flush=True)
        if options.reference not in EMBEDDED:
            print("report figures on other images than these, or say that times were searched on them")
        return cls(replace(samples, steps=None), network, there)

    def __call__(self, times: tuple[float, ...]) -> float:
        trial = next(self.count)
        progress = _bar(f"trial {trial}, times {_shown(times)}")
        moments = moments_of(replace(self.samples, times=times), self.network, progress=progress)
        distance = frechet_distance(moments, self.reference)
        print(f"trial {trial}: times {_shown(times)}, distance {number(distance)}", flush=True)
        return distance


def _moments(reference: ReferenceSide, network: FeatureNetwork) -> FeatureStats:
    """Return mean and covariance of the reference's features."""
    if reference.data is not None:
        return moments_of(FoundImages(reference.data), network, progress=_bar("reference"))
    assert reference.file is not None
    check_network(network, reference)
    return reference.file.stats


def _check(options: SearchArguments) -> None:
    """Refuse values that cannot be."""
    if not 2 <= options.steps <= MOST_STEPS:
        raise ValueError(
            f"--steps must be from 2 to {MOST_STEPS}, got {options.steps}: one step begins at the highest level, and"
            " each further one takes ten trials and more"
        )
    if not options.tolerance > 0:
        raise ValueError(f"--tolerance must be positive, got {options.tolerance}")
    if options.num < 0 or options.num == 1:
        raise ValueError(f"--num must be at least 2, or 0 for as many as the reference has, got {options.num}")
    if not FIRST_SEED <= options.first_seed < 2**63:
        raise ValueError(
            f"--first-seed must be in [2^32, 2^63), got {options.first_seed}: figures are of seeds from 0, and times"
            " must not be chosen by the samples that they are"
        )


def _noise_levels(model: str, denoiser: Denoiser) -> VE:
    """Return the schedule whose times are noise levels.

    Raises ``ValueError`` for another, and for a model that is not sampled in multiple steps of its own.
    """
    match denoiser.schedule:
        case VE() if denoiser.sampler != "multistep":
            raise ValueError(
                f"{model} is sampled by {denoiser.sampler}, whose times are not searched for: this is for consistency"
                " models, whose sampler is multistep"
            )
        case VE() as schedule:
            return schedule
        case other:
            raise ValueError(
                f"{model} is of schedule {type(other).__name__}: noise levels are searched on schedule VE, which"
                " consistency models have"
            )


def _config_of(model: str) -> Path:
    """Return the config.json of a saved model or a run's.

    Raises ``ValueError`` for a model that lies on the hub.
    """
    folder = Path(saved_in(model))
    if not folder.is_dir():
        raise ValueError(f"{model} is no folder on this disk, where times could be stored: save the model in one first")
    return config_file(folder)


def _shown(times: Sequence[float]) -> str:
    return " ".join(f"{t:.4g}" for t in times)


def _bar(what: str) -> Callable[[Iterable[int]], Iterable[int]]:
    """Return a progress bar over units of images."""
    from tqdm import tqdm

    often = 0.5 if sys.stderr.isatty() else 15  # seconds between lines of a log
    return lambda units: tqdm(units, desc=what, unit="unit", leave=False, delay=0.5, mininterval=often)
