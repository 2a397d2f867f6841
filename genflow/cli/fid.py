"""``genflow fid``: how far samples are from a reference."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from genflow.cli.models import choose_device, is_model, load_model, weights_hash
from genflow.config import DataConfig
from genflow.config_files import load_config, parse_arguments
from genflow.data.decoding import Decoding
from genflow.data.images import EMBEDDED, ImageData, load_images
from genflow.denoiser import Denoiser
from genflow.evaluation.features import FeatureNetwork, load_features
from genflow.evaluation.metrics import frechet_distance
from genflow.evaluation.measurement import Measurement, figure_label, from_model, measure, stats_of
from genflow.files import write_text
from genflow.sampling.generate import choose_times, network_calls


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


@dataclass(frozen=True, kw_only=True)
class FidArguments:
    """What ``genflow fid`` takes."""

    samples: Annotated[str, tyro.conf.Positional]
    """A saved model, a folder, zip or .npz file of images, a data set hf:NAME, or an embedded set (its train part)."""
    reference: Annotated[str, tyro.conf.Positional]
    """A folder, zip or .npz file of images, a data set hf:NAME, or an embedded set (its held-out part)."""
    data: ReadingArguments = ReadingArguments()
    """How image files are read; by default as they are, or as the run was told that the model is of."""
    features: Literal["auto", "digits", "mnist5k", "inception"] = "auto"
    """Network whose features are compared; auto is the reference's own, if it is embedded digits, else inception."""
    weights: Path | None = None
    """Weights file of the inception network."""
    num: int = 0
    """Samples to draw from a model; 0 is as many as the reference has images."""
    steps: int = 0
    """Steps of a model's sampler; 0 is its default."""
    sampler: Literal["default", "euler", "heun", "dpmpp_2m", "ancestral"] = "default"
    """A model's sampler."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    out: Path | None = None
    """JSON file for the result and how it was obtained."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def fid(arguments: Sequence[str], *, prog: str = "genflow fid") -> None:
    """Print a Fréchet distance with the protocol that produced it."""
    about = (
        "Fréchet distance between samples and a reference. For a model and embedded digits the figure is the mean"
        " over five ranges of seeds, beside the floor (real training images against held-out ones), the memorising"
        " ratio (distance to the nearest training image over that of held-out images: 1 is real, 0 copies) and the"
        " share of samples that a frozen classifier reads as the class asked for."
    )
    options = parse_arguments(FidArguments, arguments, prog=prog, about=about)
    if options.num < 0:
        raise ValueError(f"--num must not be negative, got {options.num}")
    device = choose_device(options.device)
    reading = _reading(options)
    split = "test" if options.reference in EMBEDDED else "all"
    reference = load_images(options.reference, split, decoding=reading)
    own = options.reference if options.reference in ("digits", "mnist5k") else "inception"
    name = own if options.features == "auto" else options.features
    if is_model(options.samples) or is_model(str(Path(options.samples) / "model")):
        denoiser = load_model(options.samples, device)
        _check_shape(denoiser.image_shape, reference)
        features = load_features(name, options.weights, device)
        record = _of_model(denoiser, reference, features, options)
    else:
        split = "train" if options.samples in EMBEDDED else "all"
        samples = load_images(options.samples, split, decoding=reading)
        _check_shape(samples.image_shape, reference)
        features = load_features(name, options.weights, device)
        distance = frechet_distance(stats_of(features, samples.images), stats_of(features, reference.images))
        record = {"distance": distance, "samples": len(samples)}
        print(f"{figure_label(name, len(samples))} = {distance:.4f}  ({len(samples)} images of {samples.name})")
    record |= {
        "reference": reference.name,
        "reference_images": len(reference),
        "features": features.identity,
        "quantisation": "uint8",
    }
    if reading != Decoding():
        record["reading"] = asdict(reading)
    print(f"  against {len(reference)} images of {reference.name}, features {features.identity[: len(name) + 13]}")
    if options.out is not None:
        write_text(options.out, json.dumps(record, indent=2) + "\n")


def _reading(options: FidArguments) -> Decoding:
    """Return how files are read: as asked for, else as the run of the model read its images."""
    given: ReadingArguments | DataConfig = options.data
    samples = Path(options.samples)
    run = (samples.parent if samples.name in ("model", "best") else samples) / "config.toml"
    measured = is_model(options.samples) or is_model(str(samples / "model"))
    if given == ReadingArguments() and options.reference not in EMBEDDED and measured and run.is_file():
        given = load_config(run).data
    return Decoding(given.size or None, given.channels, given.background, given.scale_16_bit)


def _of_model(
    denoiser: Denoiser, reference: ImageData, features: FeatureNetwork, options: FidArguments
) -> dict[str, object]:
    """Measure a model, print the figure, and return the record of it."""
    sampler = denoiser.sampler if options.sampler == "default" else options.sampler
    steps = options.steps or denoiser.steps
    choose_times(denoiser, steps, None)
    count = options.num or len(reference)
    how = f"{sampler}, {steps} steps, {network_calls(sampler, steps)} network calls"
    if options.guidance != 1:
        how += f", guidance {options.guidance:g}"
    record: dict[str, object] = {"model": options.samples, "weights": weights_hash(denoiser), "first_seed": 0}
    record |= {"sampler": sampler, "steps": steps, "guidance": options.guidance}
    record["network_calls"] = network_calls(sampler, steps)
    draw = from_model(
        denoiser,
        reference,
        steps=steps,
        sampler=sampler,
        guidance=options.guidance,
        progress=lambda parts: tqdm(parts, desc=how, unit="batch", leave=False, delay=0.1),  # after any refusal
    )
    if options.reference in ("digits", "mnist5k") and count == len(reference):
        train = load_images(options.reference, "train")
        result = measure(draw, train, reference, features)
        print(describe(result, options.reference, how))
        return record | asdict(result) | {"distance": result.distance}
    made, _ = draw(range(count))
    distance = frechet_distance(stats_of(features, made.numpy()), stats_of(features, reference.images))
    print(f"{figure_label(features.name, count)} = {distance:.4f}  ({how}, seeds 0 to {count - 1})")
    return record | {"distance": distance, "samples": count}


def describe(result: Measurement, data: str, how: str) -> str:
    """Return the figure with all that is needed to read it."""
    spread = statistics.stdev(result.distances)
    lines = [
        f"{figure_label(data, result.count)} = {result.distance:.3f}  (mean of {len(result.distances)} seed ranges,"
        f" s.d. {spread:.3f}; {how})",
        f"  floor {result.floor_mean:.3f} (real images), memorising ratio {result.memorising:.3f} (real is 1)",
    ]
    if result.accuracy is not None:
        lines[1] += f", asked class {result.accuracy:.1%}"
    return "\n".join(lines)


def _check_shape(shape: Sequence[int], reference: ImageData) -> None:
    if tuple(shape) != reference.image_shape:
        raise ValueError(
            f"the samples are {tuple(shape)} (channels, height, width), {reference.name} is {reference.image_shape}:"
            " distances are between images of one shape"
        )
