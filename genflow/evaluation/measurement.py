"""Every reported figure comes from here: samples against a reference, with what is needed to read the result."""

from __future__ import annotations

import errno
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from genflow.data.images import ImageData
from genflow.evaluation.blocks import BlockStats
from genflow.evaluation.extraction import (
    AskedClass,
    NearestImages,
    PixelDigest,
    Progress,
    Scores,
    Sink,
    SpatialMoments,
    VectorBlocks,
    VectorFile,
    pass_through,
)
from genflow.evaluation.features import FeatureNetwork
from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.inception_score import InceptionScore
from genflow.evaluation.metrics import floor_distances
from genflow.evaluation.neighbours import kernel_distance, precision_recall
from genflow.evaluation.protocol import Figure
from genflow.evaluation.sources import FoundImages, Source
from genflow.evaluation.statistics import FeatureStats
from genflow.evaluation.uncertainty import combine, default_blocks, estimate

METRICS = ("fid", "sfid", "kid", "is", "pr")
SPATIAL = 2023  # spatial features of Inception
RANGES = 5  # seed ranges whose mean is reported on embedded data
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be measured: names of ``METRICS``, and whether classes are measured one by one too."""

    metrics: frozenset[str] = frozenset({"fid"})
    per_class: bool = False

    @property
    def every_vector(self) -> bool:
        """Whether moments are not enough."""
        return self.per_class or bool(self.metrics & {"kid", "pr"})


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What is kept of one side. Of a statistics file there are only moments, perhaps spatial ones too."""

    moments: FeatureStats
    spatial: Callable[[], FeatureStats] | None = None
    """Reads them, since they are large and needed once."""
    blocks: BlockStats | None = None
    score: InceptionScore | None = None
    vectors: VectorFile | None = None
    digest: str | None = None
    """What names the images by their pixels."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder for what does not fit memory, which is removed at the end.

    Raises ``RuntimeError`` saying what to do if its disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="genflow-") as name:
        try:
            yield Path(name)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise RuntimeError(
                f"no room for sums and vectors in the temporary folder {tempfile.gettempdir()}: make room, or set the"
                " environment variable TMPDIR to a folder that has it"
            ) from error


def gather(
    source: Source,
    network: FeatureNetwork,
    wanted: Wanted,
    folder: Path | None,
    *,
    also: Sequence[Sink] = (),
    progress: Progress = iter,
) -> Gathered:
    """Pass the images of a source once and keep what the wanted figures need.

    Sums of blocks and vectors lie in ``folder``, which must stay until the figures are there; without one, sums lie in
    memory. Raises ``ValueError`` for vectors and no folder.
    """
    if folder is None and wanted.every_vector:
        raise ValueError("figures of all vectors need a folder to keep them in")
    dims, count = network.dims, source.count
    blocks = VectorBlocks(BlockStats(dims, count, default_blocks(dims, count), scratch=folder))
    spatial = SpatialMoments(BlockStats(SPATIAL, count, 1, scratch=folder)) if "sfid" in wanted.metrics else None
    scores = Scores(InceptionScore(count)) if "is" in wanted.metrics else None
    file = VectorFile(count, dims, folder) if folder is not None and wanted.every_vector else None
    digest = PixelDigest()
    sinks = [sink for sink in (blocks, spatial, scores, file, digest) if sink is not None]
    pass_through(source, network, [*sinks, *also], progress)
    return Gathered(
        moments=blocks.blocks.whole(),
        blocks=blocks.blocks,
        spatial=spatial and spatial.stats,
        score=scores and scores.score,
        vectors=file,
        digest=digest.hexadecimal,
    )


def moments_of(source: Source, network: FeatureNetwork, *, progress: Progress = iter) -> FeatureStats:
    """Return nothing but mean and covariance of the vectors of a source."""
    sink = VectorBlocks(BlockStats(network.dims, source.count, 1, scratch=None))
    pass_through(source, network, [sink], progress)
    return sink.blocks.whole()


def figures(sets: Sequence[Gathered], reference: Gathered, name: str, wanted: Wanted) -> dict[str, Figure]:
    """Return the figures of one or several sets of samples against a reference, in features of the network ``name``.

    Several sets, of other seeds each, give the mean over them. What the reference does not hold is left out.
    """
    estimates = [estimate(_of(each.blocks), reference.blocks or reference.moments) for each in sets]
    found = {"fid" if name == "inception" else "fd": combine(estimates).figure}
    if reference.spatial is not None and "sfid" in wanted.metrics:
        there = reference.spatial()
        found["sfid"] = _mean([Figure(value=frechet_distance(_of(each.spatial)(), there)) for each in sets])
    if "is" in wanted.metrics:
        found["inception_score"] = _mean([_of(each.score).score() for each in sets])
    if reference.vectors is None:
        return found
    real = reference.vectors.vectors
    drawn = [_of(each.vectors).vectors for each in sets]
    if "kid" in wanted.metrics:
        found["kid"] = _mean([kernel_distance(each, real) for each in drawn])
    if "pr" in wanted.metrics:
        both = [precision_recall(each, real) for each in drawn]
        found["precision"] = _mean([precision for precision, _ in both])
        found["recall"] = _mean([recall for _, recall in both])
    return found


def per_class(sets: Sequence[Gathered], reference: Gathered, names: Sequence[str]) -> dict[str, Figure]:
    """Return the Fréchet distance of each class, samples asked for it against real images of it.

    A class with fewer than two images on a side has none.
    """
    found: dict[str, Figure] = {}
    for label, name in enumerate(names):
        real = _rows(_of(reference.vectors), label)
        drawn = [_rows(_of(each.vectors), label) for each in sets]
        if min(len(real), *map(len, drawn)) >= 2:
            there = FeatureStats.of(torch.from_numpy(real))
            found[name] = _mean(
                [Figure(value=frechet_distance(FeatureStats.of(torch.from_numpy(rows)), there)) for rows in drawn]
            )
    return found


def _rows(file: VectorFile, label: int) -> np.ndarray:
    return file.vectors[file.labels == label]


def _of(value: _T | None) -> _T:
    assert value is not None
    return value


def _mean(found: Sequence[Figure]) -> Figure:
    """Return the mean of figures of other seeds against one reference.

    Of the squared error of a single figure, what its spread over seeds does not show is the reference's, which the mean
    keeps. Without errors of single figures there is none of the mean.
    """
    if len(found) == 1:
        return found[0]
    values = [each.value for each in found]
    singles = [each.standard_error for each in found if each.standard_error is not None]
    if len(singles) < len(found):
        return Figure(value=statistics.fmean(values))
    spread = statistics.variance(values)
    kept = max(0.0, statistics.fmean(error * error for error in singles) - spread)
    return Figure(value=statistics.fmean(values), standard_error=(spread / len(values) + kept) ** 0.5)


def _seeds_alone(values: Sequence[float]) -> Figure:
    """Return a mean over seeds of what is a property of the samples: its error is told by their spread."""
    if len(values) == 1:
        return Figure(value=values[0])
    return Figure(value=statistics.fmean(values), standard_error=statistics.stdev(values) / len(values) ** 0.5)


def _check_finite(found: dict[str, Figure], name: str) -> None:
    for figure, each in found.items():
        if not all(math.isfinite(x) for x in (each.value, each.standard_error or 0.0, each.limit or 0.0)):
            raise ValueError(
                f"the {figure} of {name} features is not a finite number: they are too large, or of too many sizes, for"
                " what is computed of them; scale them"
            )


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a distance on embedded data is read beside: images to train on, and what real images score."""

    train: torch.Tensor
    floor: Figure
    held_out_nearest: float

    @classmethod
    def of(cls, train: ImageData, held_out: ImageData, network: FeatureNetwork) -> Beside:
        """Measure held-out images against training images.

        Raises ``ValueError`` if every held-out image is also a training image.
        """
        near = NearestImages(torch.from_numpy(train.images))
        with scratch_folder() as folder:
            every = Wanted(per_class=True)
            real, known = FoundImages(held_out), FoundImages(train)
            there = gather(real, network, every, folder, also=[near])
            here = gather(known, network, every, folder)
            distances = floor_distances(_in_order(here, known), _in_order(there, real), repeats=RANGES)
        if near.mean == 0:
            raise ValueError("every held-out image is also a training image: no ratio can be formed")
        spread = statistics.stdev(distances) / len(distances) ** 0.5
        floor = Figure(value=statistics.fmean(distances), standard_error=spread)
        return cls(train=torch.from_numpy(train.images), floor=floor, held_out_nearest=near.mean)


def _in_order(side: Gathered, source: FoundImages) -> torch.Tensor:
    """Return the vectors in the order of the images themselves."""
    vectors = _of(side.vectors).vectors
    ordered = np.empty_like(vectors)
    ordered[source.order] = vectors
    return torch.from_numpy(ordered)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures without their protocol; see ``Result``."""

    figures: dict[str, Figure]
    distances: tuple[float, ...]
    per_class: dict[str, Figure]
    digests: tuple[str, ...]
    """What names the images of each range by their pixels."""

    @property
    def over_floor(self) -> float:
        """The Fréchet distance as a multiple of what real images score."""
        distance = self.figures["fid" if "fid" in self.figures else "fd"]
        return distance.value / self.figures["floor"].value


def measure(
    ranges: Sequence[Source],
    reference: Gathered,
    network: FeatureNetwork,
    wanted: Wanted,
    *,
    beside: Beside | None = None,
    classes: Sequence[str] = (),
    progress: Progress = iter,
) -> Measured:
    """Measure samples, one source for each range of seeds, against a reference.

    Args:
        ranges: of a model on embedded data five, else one.
        reference: what ``gather`` kept of it, or what a statistics file holds.
        network: whose features are compared.
        wanted: which figures.
        beside: adds the floor, the memorising ratio and, where the network reads classes, the share of right ones.
        classes: names of the classes that samples were asked for, if they were.
        progress: wraps the numbers of the units.
    """
    with scratch_folder() as folder:
        near = [NearestImages(beside.train) for _ in ranges] if beside is not None else []
        asked: list[AskedClass] = []
        if beside is not None and classes and reads_digits(network.name):
            asked = [AskedClass([int(name) for name in classes]) for _ in ranges]
        sets = [
            gather(each, network, wanted, folder, also=[*near[k : k + 1], *asked[k : k + 1]], progress=progress)
            for k, each in enumerate(ranges)
        ]
        found = figures(sets, reference, network.name, wanted)
        _check_finite(found, network.name)
        single = tuple(frechet_distance(each.moments, reference.moments) for each in sets) if len(sets) > 1 else ()
        by_class = {}
        if wanted.per_class and classes and reference.vectors is not None:
            by_class = per_class(sets, reference, classes)
    if beside is not None:
        found["floor"] = beside.floor
        found["memorising"] = _seeds_alone([each.mean / beside.held_out_nearest for each in near])
    if asked:
        found["accuracy"] = _seeds_alone([each.share for each in asked])
    digests = tuple(_of(each.digest) for each in sets)
    return Measured(figures=found, distances=single, per_class=by_class, digests=digests)


def reads_digits(name: str) -> bool:
    """Tell whether the network of this name is a classifier of the digits that come with the package."""
    return name in ("digits", "mnist5k")
