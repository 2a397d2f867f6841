"""The two sides of a comparison, from what was asked for on the command line to sources of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genflow.cli.cautions import has_pairs
from genflow.cli.models import run_of
from genflow.config import Config, DataConfig
from genflow.data.decoding import AS_STORED, Decoding
from genflow.data.images import EMBEDDED, ImageData, Split, classes_in, load_images
from genflow.data.pairs import MOST_PAIRS, is_pairs, load_pairs
from genflow.denoiser import Denoiser, is_saved, saved_in, weights_hash
from genflow.evaluation.features import FeatureNetwork
from genflow.evaluation.measurement import reads_digits
from genflow.evaluation.protocol import OF_SCHEDULE, ImageSet, Sampling
from genflow.evaluation.references import Reference, is_reference, load_reference
from genflow.evaluation.sources import FoundImages, Samples, Source
from genflow.sampling.generate import choose_times, network_calls

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ReadingArguments:
    """How image files are read, as in training."""

    size: int = 0
    """Side to crop and resize images to; 0 takes them as they are."""
    channels: Literal[0, 1, 3] = 0
    """Convert all to grey (1) or RGB (3); 0 takes them as they are."""
    background: str = ""
    """Colour that transparent images are laid on; "" refuses transparency."""
    scale_16_bit: bool = False
    """Scale images of 16 bits a channel to 8; otherwise they are refused."""
    keep: tuple[int, ...] = ()
    """Take the images of these classes alone, of the reference and of embedded sets; () takes all."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How image files are read, and of which classes images are taken: of those kept, or of all."""

    decoding: Decoding = AS_STORED
    keep: tuple[int, ...] = ()

    @classmethod
    def of(cls, how: ReadingArguments | DataConfig) -> Reading:
        """Return what options, or the configuration of a run, say."""
        return cls(decoding=Decoding(how.size or None, how.channels, how.background, how.scale_16_bit), keep=how.keep)

    def load(self, source: str, split: Split) -> ImageData:
        """Return the images of a source."""
        data = load_images(source, split, decoding=self.decoding)
        return data.of_classes(self.keep) if self.keep else data


@dataclass(frozen=True, kw_only=True)
class Side:
    """Samples: what is said of them, and where they come from, one source for each range of seeds."""

    said: ImageSet
    ranges: Sequence[Source]
    resize: str | None
    """How the images were resized that these are, or that their model was trained on; None where that is not told."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSide:
    """The reference: what is said of it, and its images or the file of statistics that stands for them."""

    said: ImageSet
    data: ImageData | None = None
    file: Reference | None = None


def is_measured_model(samples: str) -> bool:
    """Tell whether samples are to be drawn from a model, or a run's."""
    return is_saved(saved_in(samples))


def reading_of(given: ReadingArguments, samples: str, reference: str) -> Reading:
    """Return how files are read: as asked for, else as the run of the model read its images.

    Of the set that the run was on it is images of the same classes.
    """
    config = run_of(samples)
    if given != ReadingArguments() or not is_measured_model(samples) or config is None:
        return Reading.of(given)
    if reference == config.data.path:
        return Reading.of(config.data)
    return Reading.of(given if reference in EMBEDDED else replace(config.data, keep=()))


def read_reference(source: str, reading: Reading, features: str, *, part: Split = "test") -> ReferenceSide:
    """Return the reference: statistics of the network ``features``, a ``part`` of an embedded set, or images."""
    if is_reference(Path(source)):
        if reading != Reading():
            raise ValueError(
                f"{source} is a file of statistics: --data options say how images are read, leave them out"
            )
        file = load_reference(Path(source), features)
        return ReferenceSide(said=file.images, file=file)
    split: Split = part if source in EMBEDDED else "all"
    data = read_images(source, split, reading)
    return ReferenceSide(said=said_of(data, split), data=data)


def read_samples(source: str, reading: Reading) -> Side:
    """Return images as samples: of an embedded set the part that is trained on, of others all classes."""
    split: Split = "train" if source in EMBEDDED else "all"
    reading = reading if source in EMBEDDED else replace(reading, keep=())
    data = read_images(source, split, reading)
    said = said_of(data, split)
    return Side(said=said, ranges=[FoundImages(data)], resize=None if is_pairs(source) else said.resize)


def read_images(source: str, split: Split, reading: Reading) -> ImageData:
    """Return images of any source; of reflow pairs the first, at most 50,000, without their noise and labels."""
    if not is_pairs(source):
        return reading.load(source, split)
    pairs = load_pairs(source)
    if reading not in (Reading(), Reading(decoding=Decoding(size=pairs.image_shape[-1]))):
        raise ValueError(
            f"{source} holds pairs of {pairs.image_shape}, whose images are pixels already: leave the --data options"
            " out"
        )
    return pairs.unpaired(MOST_PAIRS)


def said_of(data: ImageData, split: str) -> ImageSet:
    """Return what is known of images before they are passed; then their pixels give the hash."""
    how = data.provenance
    return ImageSet(
        name=data.name,
        n=len(data),
        hash=None,
        split=split,
        shape=data.image_shape,
        codec=how.codec,
        resize=how.resize,
        colour=how.colour,
        quantisation="uint8",
    )


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a model is to be sampled."""

    steps: int
    sampler: str
    guidance: float
    count: int
    first_seed: int
    ranges: int


def draw_samples(denoiser: Denoiser, name: str, reference: ReferenceSide, drawing: Drawing) -> Side:
    """Return a model's samples, each range of seeds as many; refuses what cannot be before anything is computed."""
    times = choose_times(denoiser, drawing.steps, None, drawing.sampler).tolist()
    channels, height, width = denoiser.image_shape
    if channels not in (1, 3):
        raise ValueError(
            f"this model draws latents of {channels} channels, not pictures: decode them with their autoencoder and"
            " measure the folder of images"
        )
    label, rule = label_rule(denoiser, reference.data)
    known = reference.data.class_names if reference.data is not None else ()
    names = () if label is None else known or tuple(map(str, denoiser.classes))
    ranges = [
        Samples(
            denoiser=denoiser,
            count=drawing.count,
            first_seed=drawing.first_seed + k * drawing.count,
            label=label,
            classes=names,
            numbers=denoiser.classes,
            steps=drawing.steps,
            sampler=drawing.sampler,
            guidance=drawing.guidance,
        )
        for k in range(drawing.ranges)
    ]
    config = run_of(name)
    digest = weights_hash(denoiser)
    schedules = times == denoiser.schedule.times(drawing.steps).tolist()
    said = ImageSet(
        name=name,
        n=drawing.count,
        hash=digest,
        split="all",
        shape=(channels, height, width),
        codec="raw",
        resize="none",
        colour="grey" if channels == 1 else "rgb",
        quantisation="uint8",
        sampling=Sampling(
            weights=digest,
            sampler=drawing.sampler,
            steps=drawing.steps,
            calls=network_calls(drawing.sampler, drawing.steps),
            guidance=drawing.guidance,
            first_seed=drawing.first_seed,
            labels=rule,
            times=OF_SCHEDULE if schedules else " ".join(f"{t:g}" for t in times),
            ema=None if config is None else f"half-life {config.optim.ema_halflife:,.0f} images",
        ),
    )
    return Side(said=said, ranges=ranges, resize=None if config is None else _resized(config))


def _resized(config: Config) -> str | None:
    """Return how a run's images were resized, where its configuration tells: with a size, they may have had it."""
    return None if config.data.size or has_pairs(config) else "none"


def label_rule(denoiser: Denoiser, data: ImageData | None) -> tuple[Callable[[int], int] | None, str]:
    """Return which class to ask a seed for, and in words: the reference's classes, else the model's own in turn.

    Raises ``ValueError`` if both have classes, but not as many.
    """
    labels = labels_of(denoiser, data)
    if labels is None:
        return None, "none"
    count = len(labels)
    rule = "each in turn" if data is None or data.labels is None else "as the reference's"
    return (lambda seed: int(labels[seed % count])), rule


def labels_of(denoiser: Denoiser, data: ImageData | None) -> Tensor | None:
    """Return what to ask a model for: the classes of the reference's images, or its own in turn, or None.

    They are places among the classes that the model has, which the reference has in the same order.
    Raises ``ValueError`` if both have classes, but not as many.
    """
    classes = denoiser.classes
    if not classes:
        return None
    if data is None or data.labels is None:
        return torch.arange(len(classes))
    if data.num_classes != len(classes):
        which = "" if len(classes) == denoiser.num_classes else f" (labels {', '.join(map(str, classes))})"
        raise ValueError(
            f"the model has {len(classes)} classes{which}, {data.name} has {data.num_classes}: images of one class"
            " cannot be measured against those of another; name by --data.keep the classes of the reference that the"
            " model's are, which are matched in their order, or put the reference in one folder without classes"
        )
    return torch.from_numpy(data.labels)


def other_classes(denoiser: Denoiser, model: str, source: str, reference: ImageSet) -> Iterator[str]:
    """Yield a sentence if the classes of a model are known to be others than those that the reference is made of.

    Figures match classes by their order alone. Which classes a run kept is told by its configuration, those of the
    reference called ``source`` by its name; of a part without a run the labels are known, and not what they mean.
    """
    config, taken = run_of(model), classes_in(reference.name)
    whole = reference.name.partition("-")[0]  # of an embedded set, whose name goes on with the split
    if config is not None:
        had, path = tuple(sorted({*config.data.keep})), config.data.path
        told = f"the model was trained on {_listed(had)} of {path}"
        alike = path in (source, whole) or (reads_digits(path) and reads_digits(whole))
    elif len(denoiser.classes) < denoiser.num_classes:
        had = denoiser.classes
        told = f"the model has the labels {', '.join(map(str, had))} of {denoiser.num_classes}"
        alike = whole in EMBEDDED
    else:
        return
    if had != taken and (taken or alike):
        yield (
            f"{told}, and the reference is of {_listed(taken)}: classes are matched by their order alone, so that other"
            " ones may be measured against each other; --data.keep names those of a reference"
        )


def _listed(classes: Sequence[int]) -> str:
    return f"the classes {', '.join(map(str, classes))}" if classes else "all classes"


def network_name(features: str, source: str, reference: ReferenceSide) -> str:
    """Return whose features are compared: as asked for by ``features``, else what goes with the reference."""
    if features != "auto":
        return features
    if reference.file is not None and reference.file.network is not None:
        return reference.file.network.name
    return source if reads_digits(source) else "inception"


def check_network(network: FeatureNetwork, reference: ReferenceSide) -> None:
    """Refuse statistics of other features than those of the samples will be."""
    file = reference.file
    assert file is not None
    if file.stats.dims != network.dims:
        raise ValueError(
            f"{reference.said.name} holds statistics of {file.stats.dims} features, {network.name} gives"
            f" {network.dims}: name the network that they were made with by --features"
        )
    if file.network is None:
        return
    for what, there, here in (
        ("name", file.network.name, network.identity.name),
        ("weights", file.network.weights, network.identity.weights),
        ("resize", file.network.resize, network.identity.resize),
        ("dtype", file.network.dtype, network.identity.dtype),
    ):
        if there not in (None, here):
            raise ValueError(
                f"{reference.said.name} was made with a network whose {what} is {there}, not {here}: use that one, or"
                " make the statistics anew with genflow stats"
            )
