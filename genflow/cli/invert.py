"""``genflow invert``: from images to noise, and from there to images again, of the same class or another."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from genflow.cli.cautions import caution_of_flow, caution_of_straight
from genflow.cli.model_images import own_labels, read_for
from genflow.cli.models import choose_device, load_model, picture_shape
from genflow.cli.sides import ReadingArguments
from genflow.config_files import parse_arguments
from genflow.data.images import EMBEDDED, ImageData, Split
from genflow.denoiser import Denoiser, weights_hash
from genflow.files import atomic_folder, check_place, write_text
from genflow.pictures import grid, write_image
from genflow.pixels import to_unit
from genflow.sampling.generate import choose_times, list_labels, network_calls
from genflow.sampling.inversion import decode, inversion_calls, invert, inverting_sampler, rising_times, slerp
from genflow.units import UNIT

ABOUT = (
    "Carry images along a model's flow to noise, and back. Under its own class an image is reconstructed, under"
    " another (--to) translated, and between the noises of neighbours (--interpolate) lie other images. Straight flows,"
    " as of 2-RF++, do so in few steps: --steps 4 --decode-steps 2. OUT holds a folder of PNGs for each kind,"
    " noise.safetensors, grid.png to look at, and inversion.json: settings, network calls, mean squared error of the"
    " reconstructions with pixels in [-1, 1], squared norm of the noise beside what it should be."
)
MOST_ROWS = 24  # of a picture to look at


@dataclass(frozen=True, kw_only=True)
class InvertArguments:
    """What ``genflow invert`` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A saved model, a run's folder, or a hub repository."""
    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A folder, zip or .npz file of images, a data set hf:NAME, or an embedded set."""
    out: Path = Path("inverted")
    """Folder to make."""
    num: int = 16
    """How many images, at most."""
    first: int = 0
    """The first of them, counted from 0."""
    split: Literal["auto", "train", "test", "all"] = "auto"
    """Part of the images; auto is test of an embedded set, else all."""
    labels: tuple[int, ...] | Literal["data", "none"] = "data"
    """Classes under which images become noise: their own; none; or classes, used in turn."""
    to: tuple[int, ...] = ()
    """Classes to translate every image to, besides its reconstruction."""
    interpolate: int = 0
    """Draw so many images from each one to the next, ends included: as the nearer's class, and as each of --to."""
    steps: int = 0
    """Steps to noise; 0 is the model's default."""
    sampler: Literal["default", "euler", "heun"] = "default"
    """Solver on the way to noise; the default is the model's sampler if it is one of these, else euler."""
    decode_steps: int = 0
    """Steps back to images; 0 is the model's default."""
    decode_sampler: Literal["default", "euler", "heun", "dpmpp_2m", "straight", "straight_heun"] = "default"
    """Sampler on the way back; the default is the model's, or that on the way to noise where the model's is ancestral
    or multistep, which add noise of their own."""
    data: ReadingArguments = field(default_factory=ReadingArguments)
    """How image files are read; by default as the model's run read its own."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def invert_images(arguments: Sequence[str], *, prog: str = "genflow invert") -> None:
    """Invert and decode images, and write all of it at once.

    Raises ``ValueError`` for a place that is taken, for models of latents, and for images, labels and steps that do
    not fit the model.
    """
    options = parse_arguments(InvertArguments, arguments, prog=prog, about=ABOUT)
    _check_options(options)
    denoiser = load_model(options.model, choose_device(options.device))
    picture_shape(denoiser, "not pictures: invert their autoencoder's latents from Python by genflow.invert")
    data = _choose_images(denoiser, options)
    numbers = range(options.first, options.first + len(data))
    labels = _source_labels(denoiser, data, numbers, options)
    _check_classes(denoiser, options)
    ways = _ways(denoiser, options)
    caution_of_flow(options.model, denoiser)
    caution_of_straight(options.model, ways[1].said["sampler"], ways[1].said["steps"])
    images = torch.from_numpy(np.asarray(data.images))
    noise, pictures, arcs = _draw(ways, images, labels, options)
    found = _measure(images, pictures["reconstruction"], noise)
    said = {
        "weights": weights_hash(denoiser),
        "images": {"name": data.name, "fingerprint": data.fingerprint, "first": numbers[0], "num": len(numbers)},
        "labels": labels,
        "to": list(options.to),
        "interpolate": options.interpolate,
        "inversion": ways[0].said,
        "decoding": ways[1].said,
    }
    _write(options, numbers, pictures, arcs, noise, said | found)
    calls, norm = [way.said["network_calls"] for way in ways], found["squared_norm"]
    by = " and ".join(dict.fromkeys(way.said["sampler"] for way in ways))
    print(f"{options.out}: {len(numbers)} images, {calls[0]} network calls to noise and {calls[1]} back, by {by}")
    print(f"mean squared error of the reconstructions, pixels in [-1, 1]: {found['mean_squared_error']:.3g}")
    expected = f"{norm['expected_mean']} +- {norm['expected_std']:.1f}"
    print(f"squared norm of their noise: {norm['mean']:.1f} +- {norm['std']:.1f}, of normal noise {expected}")
    print(f"look at {options.out / 'grid.png'}")


@dataclass(frozen=True)
class _Way:
    """One direction: what is said of it, and the function that carries a batch, of these labels, along it."""

    said: dict[str, Any]
    run: Callable[..., Tensor]

    def carry(self, given: Tensor, labels: Sequence[int] | None, bar: tqdm[Any], **each: Sequence[int]) -> Tensor:
        """Carry what is given, batch by batch; ``each`` has one value for each of them, too."""
        made: list[Tensor] = []
        for start in range(0, len(given), UNIT):
            part = slice(start, start + UNIT)
            y = None if labels is None else labels[part]
            made.append(self.run(given[part], labels=y, **{k: v[part] for k, v in each.items()}).cpu())
            bar.update(len(made[-1]))
        return torch.cat(made)


def _ways(denoiser: Denoiser, options: InvertArguments) -> tuple[_Way, _Way]:
    """Return the ways to noise and back, having refused what cannot be asked of either."""
    sampler = inverting_sampler(denoiser, None if options.sampler == "default" else options.sampler)
    steps = options.steps or denoiser.steps
    own = sampler if denoiser.sampler in ("ancestral", "multistep") else denoiser.sampler
    back = own if options.decode_sampler == "default" else options.decode_sampler
    back_steps = options.decode_steps or denoiser.steps
    to_noise = {
        "sampler": sampler,
        "steps": steps,
        "times": rising_times(denoiser.schedule, steps).tolist(),
        "network_calls": inversion_calls(denoiser.schedule, sampler, steps),
    }
    to_images = {
        "sampler": back,
        "steps": back_steps,
        "times": choose_times(denoiser, back_steps, None, back).tolist(),
        "network_calls": network_calls(back, back_steps),
    }
    return (
        _Way(to_noise, functools.partial(invert, denoiser, sampler=sampler, steps=steps)),
        _Way(to_images, functools.partial(decode, denoiser, sampler=back, steps=back_steps)),
    )


def _draw(
    ways: tuple[_Way, _Way], images: Tensor, labels: list[int] | None, options: InvertArguments
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the noise of images, pictures of each kind, one an image, and those between images, of each kind too."""
    to_noise, to_images = ways
    numbers = range(options.first, options.first + len(images))
    drawn = len(images) + options.interpolate * (len(images) - 1)
    with tqdm(total=len(images) + drawn * (1 + len(options.to)), unit="img", desc="invert", delay=0.1) as bar:
        noise = to_noise.carry(images, labels, bar, seeds=numbers)
        pictures, arcs = {"original": images, "reconstruction": to_images.carry(noise, labels, bar)}, {}
        for k in options.to:
            pictures[f"to-{k}"] = to_images.carry(noise, [k] * len(noise), bar)
        if options.interpolate:
            between, nearer = _between(noise, labels, options.interpolate)
            arcs["interpolation"] = to_images.carry(between, nearer, bar)
            for k in options.to:
                arcs[f"interpolation-to-{k}"] = to_images.carry(between, [k] * len(between), bar)
    return noise, pictures, arcs


def _check_options(options: InvertArguments) -> None:
    if options.num < 1 or options.first < 0:
        raise ValueError(f"--num must be at least 1 and --first at least 0, got {options.num} and {options.first}")
    if options.interpolate not in (0, *range(2, 1000)):
        raise ValueError(f"--interpolate must be 2 to 999, or 0 for none, got {options.interpolate}")
    out = options.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there already: remove it, or give another --out")
    check_place(out / "inversion.json")


def _check_classes(denoiser: Denoiser, options: InvertArguments) -> None:
    """Refuse to translate to classes that the model has not."""
    if options.to and denoiser.num_classes == 0:
        raise ValueError("--to translates to classes, and this model has none: leave it out")
    list_labels(denoiser, options.to or None, len(options.to))


def _choose_images(denoiser: Denoiser, options: InvertArguments) -> ImageData:
    """Return the images asked for, as many as there are."""
    default: Split = "test" if options.images in EMBEDDED else "all"
    split: Split = default if options.split == "auto" else options.split
    data = read_for(denoiser, options.model, options.images, split, options.data)
    if options.first >= len(data):
        raise ValueError(f"--first is {options.first}, and {data.name} has {len(data)} images, counted from 0")
    chosen = data.subset(np.arange(options.first, min(options.first + options.num, len(data))))
    if options.interpolate and len(chosen) < 2:
        raise ValueError("--interpolate draws what lies between images: ask for at least two")
    return chosen


def _source_labels(denoiser: Denoiser, data: ImageData, numbers: range, options: InvertArguments) -> list[int] | None:
    match options.labels:
        case "data":
            return own_labels(denoiser, data)
        case "none":
            return None
        case classes:
            return list_labels(denoiser, [classes[k % len(classes)] for k in numbers], len(numbers))


def _between(noise: Tensor, labels: list[int] | None, count: int) -> tuple[Tensor, list[int] | None]:
    """Return ``count`` noises from each one to the next, and the label of the end that each is nearer to."""
    weights = [k / (count - 1) for k in range(count)]
    ends = list(itertools.pairwise(range(len(noise))))
    nearer = None if labels is None else [labels[a if w <= 0.5 else b] for a, b in ends for w in weights]
    return torch.cat([slerp(noise[a], noise[b], weights) for a, b in ends]), nearer


def _measure(images: Tensor, reconstructions: Tensor, noise: Tensor) -> dict[str, Any]:
    """Return the error of reconstructions with pixels in [-1, 1], and the squared norm of noise beside chi-square's."""
    norms, dims = noise.double().square().flatten(1).sum(1), noise[0].numel()
    return {
        "mean_squared_error": float((to_unit(reconstructions) - to_unit(images)).double().square().mean()),
        "squared_norm": {
            "mean": float(norms.mean()),
            "std": float(norms.std(correction=0)),
            "expected_mean": dims,
            "expected_std": math.sqrt(2 * dims),
        },
    }


def _write(
    options: InvertArguments,
    numbers: range,
    pictures: dict[str, Tensor],
    arcs: dict[str, Tensor],
    noise: Tensor,
    said: dict[str, Any],
) -> None:
    """Write the whole folder, or nothing."""
    steps = range(options.interpolate)
    names = [f"{k:06d}-{k + 1:06d}-{step:03d}.png" for k in numbers[:-1] for step in steps]
    with atomic_folder(options.out) as folder:
        for kind, images in pictures.items():
            for k, image in zip(numbers, images, strict=True):
                write_image(folder / kind / f"{k:06d}.png", image)
        for kind, images in arcs.items():
            for name, image in zip(names, images, strict=True):
                write_image(folder / kind / name, image)
            _show(folder / f"{kind}.png", images, options.interpolate)
        _show(folder / "grid.png", torch.stack(list(pictures.values()), 1).flatten(0, 1), len(pictures))
        save_file({"noise": noise.contiguous()}, folder / "noise.safetensors")
        write_text(folder / "inversion.json", json.dumps(said, indent=2) + "\n")


def _show(path: Path, images: Tensor, columns: int) -> None:
    """Lay out the first rows of images."""
    write_image(path, grid(images[: MOST_ROWS * columns], columns, scale=max(1, 48 // images.shape[-1])))
