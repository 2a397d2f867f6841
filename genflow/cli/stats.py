"""``genflow stats``: statistics that stand for reference images, in one small file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from genflow.cli.models import Team, join_processes
from genflow.cli.sides import DTYPES, Reading, ReadingArguments, is_measured_model, read_images, said_of
from genflow.config_files import parse_arguments
from genflow.data.images import EMBEDDED, ImageData, Split
from genflow.evaluation.blocks import BlockStats
from genflow.evaluation.extraction import PixelDigest, Progress, SpatialMoments, VectorBlocks, pass_through
from genflow.evaluation.features import load_features
from genflow.evaluation.measurement import SPATIAL
from genflow.evaluation.references import is_reference, save_reference
from genflow.evaluation.sources import FoundImages
from genflow.evaluation.wording import network_words, printable, reference_words
from genflow.files import check_place

ABOUT = (
    "Mean and covariance of the features of images, with the protocol that they were made by: a file to give to"
    " genflow fid for the images themselves. pytorch-fid and clean-fid read it too (mu, sigma), and ADM's evaluator"
    " what Inception's spatial features give (mu_s, sigma_s)."
)


@dataclass(frozen=True, kw_only=True)
class StatsArguments:
    """What ``genflow stats`` takes."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder, zip or .npz file of images, a data set hf:NAME, or an embedded set."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The .npz file to write."""
    split: Literal["auto", "train", "test", "all"] = "auto"
    """Part of the images; auto takes what genflow fid takes for a reference: test of an embedded set, else all."""
    features: str = "auto"
    """Network whose features are taken: inception, clip-vit-b-32 and others, dinov2-vit-s-14 and others,
    efficientnet-lite0, digits, mnist5k, pixels, or MODULE:FUNCTION of yours; auto is inception, but of embedded
    digits their own."""
    weights: Path | None = None
    """Weights file of the network; by default it is looked for in torch's hub cache, then downloaded."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in."""
    data: ReadingArguments = field(default_factory=ReadingArguments)
    """How image files are read; by default as they are."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def stats(arguments: Sequence[str], *, prog: str = "genflow stats") -> None:
    """Write the statistics of images to a file, and print with which protocol.

    Raises ``ValueError`` for a model, for a file of statistics, for fewer than two images and for what ``load_images``
    and ``load_features`` refuse.
    """
    options = parse_arguments(StatsArguments, arguments, prog=prog, about=ABOUT)
    split, data = _images(options)
    own = options.source if options.source in ("digits", "mnist5k") else "inception"
    name = own if options.features == "auto" else options.features
    team = join_processes(options.device)
    network = load_features(
        name, options.weights, team.device, DTYPES[options.dtype], image_shape=data.image_shape
    )  # after all that can be refused without it
    vectors = VectorBlocks(BlockStats(network.dims, len(data)))
    spatial = SpatialMoments(BlockStats(SPATIAL, len(data))) if network.name == "inception" else None
    digest = PixelDigest()
    sinks = [vectors, digest] if spatial is None else [vectors, digest, spatial]
    pass_through(FoundImages(data), network, sinks, _bar(team))
    if team.rank > 0:
        return
    said = replace(said_of(data, split), hash=digest.hexadecimal)
    save_reference(
        options.out,
        stats=vectors.blocks.whole(),
        spatial=None if spatial is None else spatial.stats(),
        images=said,
        network=network.identity,
    )
    also = "" if spatial is None else f" and of {SPATIAL:,} spatial ones"
    lines = [
        f"{options.out}: mean and covariance of {network.dims:,} features{also}",
        f"  images: {reference_words(said)}",
        f"  network: {network_words(network.identity)}",
    ]
    print("\n".join(printable(line) for line in lines))


def _images(options: StatsArguments) -> tuple[Split, ImageData]:
    """Return the images asked for, and which part of their set they are."""
    source = options.source
    check_place(options.out)
    if options.out.suffix != ".npz":
        raise ValueError(f"--out {options.out} must end in .npz: other tools know files of statistics by that")
    if is_measured_model(source):
        raise ValueError(
            f"{source} is a model, and statistics are of images: measure it with  genflow fid {source} REFERENCE,  or"
            " draw images with  genflow sample"
        )
    if is_reference(Path(source)):
        raise ValueError(f"{source} is a file of statistics already: give the images, or give it to  genflow fid")
    default: Split = "test" if source in EMBEDDED else "all"
    split: Split = default if options.split == "auto" else options.split
    data = read_images(source, split, Reading.of(options.data))
    if len(data) < 2:
        raise ValueError(f"{data.name} has one image, and a covariance needs at least 2")
    return split, data


def _bar(team: Team) -> Progress:
    def progress(units: Iterable[int]) -> Iterable[int]:
        return tqdm(units, desc="features", unit="unit", leave=False, delay=0.1, disable=team.rank > 0)

    return progress
