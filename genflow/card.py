"""What a model card says: the method, the data, the recipe, figures with their protocol, and the limits."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from genflow import __version__
from genflow.assets import asset
from genflow.card_method import method
from genflow.config import ByTeacherConfig, Config, ConsistencyConfig
from genflow.config_files import to_toml
from genflow.data.images import EMBEDDED
from genflow.data.shapes import TRAIN_COUNT
from genflow.denoiser import Denoiser
from genflow.evaluation.protocol import Figure, Result
from genflow.evaluation.wording import NAMES, plural, prefix, printable, protocol_lines, seed_ranges, show, show_limit
from genflow.sampling.generate import network_calls

TASK = "unconditional-image-generation"  # the hub's only task from noise to images, with classes or without
PREVIEW = "preview.png"
HUB_MODEL = r"hf:([\w-][\w.-]*/[\w-][\w.-]*)"
HUB_DATA = r"hf:((?:[\w-][\w.-]*/)?[\w-][\w.-]*)(?:\?.*)?"  # what is on disk begins with ., /, ~ or a drive


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where a model came from: the run's configuration, the steps it has taken, and what wrote it."""

    config: Config
    steps: int | None
    versions: str
    best: bool = False
    """It is the run's model of the lowest in-training distance rather than its last."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Where published weights came from: whose method, the name and sha256 of their file, what ``import`` noted."""

    method: str
    source: str
    sha256: str
    notes: tuple[str, ...]


def model_card(
    denoiser: Denoiser,
    repo: str,
    *,
    origin: Training | Imported | None,
    figures: Sequence[Result],
    license: str,
    preview: str,
) -> str:
    """Return the README.md of a model: YAML front matter that the hub reads, then Markdown.

    ``repo`` is ``owner/name``; ``origin`` is None where nothing is known of it, and neither a run's configuration nor
    ``figures``, results of ``genflow fid`` about this model, hold local paths (``push`` takes them out); ``license``
    may be "" (not chosen) and ``preview`` is the caption of the picture preview.png, or "".
    """
    training = origin if isinstance(origin, Training) else None
    parts = [
        f"# {repo.split('/')[1]}",
        _summary(denoiser, origin),
        f"![samples]({PREVIEW})\n\n{preview}" if preview else "",
        "## Sampling\n\n" + _sampling(denoiser, repo, origin),
        "## Method\n\n" + method(denoiser, None if training is None else training.config),
        "## Data\n\n" + _data(denoiser, training),
        "## Training\n\n" + _training(origin),
        "## Figures\n\n" + _figures(figures),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(denoiser, origin, figures, license)),
    ]
    return f"---\n{_front_matter(repo, training, figures, license)}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def last_name(path: str, otherwise: str) -> str:
    """Return the last name of a path of any system, or ``otherwise`` where that is a person's or none."""
    if not path:
        return ""
    shown = PureWindowsPath(path)  # takes both kinds of slashes
    people = {"", ".", "..", PureWindowsPath(os.path.expanduser("~")).name.casefold()}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a process may belong to nobody that has a name
        people.add(getpass.getuser().casefold())
    is_home = shown.parent.name.casefold() in ("home", "users") or shown.name.startswith("~")
    return otherwise if is_home or shown.name.casefold() in people else shown.name


def _front_matter(repo: str, training: Training | None, figures: Sequence[Result], license: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data_set = re.fullmatch(HUB_DATA, training.config.data.path) if training else None
    start = re.fullmatch(HUB_MODEL, training.config.init) if training else None
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=result.protocol.reference.name,
            dataset_name=result.protocol.reference.name,
            metric_type="fid" if "fid" in result.figures else "frechet-distance",
            metric_name=result.label,
            metric_value=round(result.distance.value, 4),
            metric_args=_arguments(result),
        )
        for result in figures
    ]
    data = ModelCardData(
        license=license or None,
        library_name="genflow",
        pipeline_tag=TASK,
        tags=["genflow", "diffusers", *_tags(training)],
        datasets=[data_set[1]] if data_set else None,
        base_model=start[1] if start else None,
        model_name=repo.split("/")[1] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _tags(training: Training | None) -> list[str]:
    if training is None:
        return []
    return [training.config.schedule.type.lower(), training.config.parameterization.type.lower()]


def _summary(denoiser: Denoiser, origin: Training | Imported | None) -> str:
    channels, height, width = denoiser.image_shape
    match origin:
        case Training():
            made = "trained with genflow"
        case Imported(method=method):
            made = f"imported from published weights ({method})"
        case None:
            made = "in genflow's format"
    kind = {1: "grey images", 3: "RGB images"}.get(channels, f"latents of {channels} channels")
    classes = f", {len(denoiser.classes)} classes" if denoiser.classes else ""
    return f"An image generator {made}: {height}x{width} {kind}{classes}."


def _is_latent(denoiser: Denoiser) -> bool:
    return denoiser.image_shape[0] not in (1, 3)


def _sampling(denoiser: Denoiser, repo: str, origin: Training | Imported | None) -> str:
    """Say how to sample, in Python that runs as it stands."""
    classes = denoiser.classes
    label = f"k % {len(classes)}" if len(classes) == denoiser.num_classes else f"{[*classes]}[k % {len(classes)}]"
    labels = f"labels=[{label} for k in seeds], " if classes else ""
    scale = max(1, 48 // denoiser.image_shape[-1])
    draw = f'genflow.write_image("samples.png", genflow.grid(images, columns=4, scale={scale}))'
    how = f'{labels}sampler="{denoiser.sampler}", steps={denoiser.steps}'
    after = f'`genflow.GenflowPipeline.from_pretrained("{repo}")` is the same as a diffusers pipeline.'
    if _is_latent(denoiser):
        how, draw = how + ', output="float"', "print(images.shape)"
        after = "The images are latents: decode them with the autoencoder that they were made with."
        if isinstance(origin, Imported) and origin.method == "DiT":
            after += (
                " For DiT that is an `AutoencoderKL` of diffusers, whose input is divided by its scaling factor:"
                " `autoencoder.decode(images / autoencoder.config.scaling_factor).sample`."
            )
    calls = network_calls(denoiser.sampler, denoiser.steps)
    default = (
        f"The model's default is the sampler `{denoiser.sampler}` in {plural(denoiser.steps, 'step')}:"
        f" {plural(calls, 'network call')}."
    )
    if denoiser.times:
        default += f" It brings time grids of its own for {', '.join(sorted(denoiser.times, key=int))} steps."
    lines = [
        "```python",
        "import genflow",
        "",
        f'model = genflow.Denoiser.from_pretrained("{repo}")',
        "seeds = range(16)  # a seed is an image",
        f"images = genflow.generate(model, seeds, {how})",
        draw,
        "```",
        "",
        default,
        after,
    ]
    return "\n".join(lines)


def _data(denoiser: Denoiser, training: Training | None) -> str:
    if training is None:
        return "Not recorded with the model."
    data = training.config.data
    lines = [f"`{data.path}`" + (", a set that comes with genflow" if data.path in EMBEDDED else "")]
    if data.keep:
        lines.append(f"of its classes {', '.join(map(str, data.keep))} alone")
    count = None if data.keep else _image_count(data.path)
    lines.append(f"{count:,} training images" if count else "the number of images is not recorded")
    lines.append(f"{len(denoiser.classes)} classes" if denoiser.classes else "trained without classes")
    if data.flip:
        lines.append("half of the images mirrored")
    if data.augment:
        lines.append(
            "augmented geometrically (arXiv 2206.00364, appendix F.2), each operation with probability"
            f" {data.augment:g}, of which the network was told"
        )
    return "; ".join(lines) + "."


def _image_count(source: str) -> int | None:
    """Return the number of training images, where it is known without the images."""
    match source:
        case "digits" | "mnist5k":
            split = json.loads(asset(f"splits/{source}.json").read_text(encoding="utf-8"))
            return split["count"] - len(split["held_out"])
        case "shapes":
            return TRAIN_COUNT
        case _:
            return None


def _training(origin: Training | Imported | None) -> str:
    match origin:
        case Training():
            return _run(origin)
        case Imported(method=method, source=source, sha256=sha256, notes=notes):
            said = "".join(f"\n- {' '.join(note.split())}" for note in notes)
            return (
                f"Imported from published weights ({method}, file `{source}`, sha256 `{sha256}`), which others trained;"
                f" shared by genflow {__version__}." + (f" What the import noted:\n{said}" if said else "")
            )
        case None:
            return f"Not recorded with the model. Shared by genflow {__version__}."


def _run(training: Training) -> str:
    """Tell the run: its length, where it started, what ran it, and its recipe."""
    config = training.config
    length = "The number of steps taken is not recorded"
    if training.best:
        length = "The run's model of the lowest in-training distance; the step that it was taken at is not recorded"
    if training.steps is not None:
        images = training.steps * config.train.batch_size
        length = f"{training.steps:,} steps of {config.train.batch_size} images, {images:,} images in all"
        if training.best:
            length = f"The run's model of the lowest in-training distance, by its log after {length}"
        if training.steps < config.train.steps:
            length += f"; the recipe asks for {config.train.steps:,} steps"
    start = f" It started from the weights of `{config.init.removeprefix('hf:')}`." if config.init else ""
    made = training.versions or "The versions that trained it are not recorded"
    return (
        f"{length}.{start} {made}; shared by genflow {__version__}. The recipe, also in config.toml, in which local"
        f" paths are reduced to their last name:\n\n```toml\n{to_toml(config)}```"
    )


def _figures(figures: Sequence[Result]) -> str:
    if not figures:
        return "None were measured."
    rows = [_cells(result) for result in figures]
    titles = ["figure", "value", "n -> infinity"]
    titles += [title for title in dict.fromkeys(title for row in rows for title in row) if title not in titles]
    titles = [title for title in titles if title != "protocol" and any(row.get(title) for row in rows)] + ["protocol"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    lines += [f"| {' | '.join(_cell(row.get(title, '')) for title in titles)} |" for row in rows]
    lines += ["", "FD is a Fréchet distance in the features named in brackets, lower is better; FID is the one in"]
    lines[-1] += (
        " Inception features. ± is the standard error; n -> infinity is the estimate for infinitely many images"
    )
    lines[-1] += (
        " with its 95 % interval; floor is what real images score. Values of different protocols cannot be compared."
    )
    notes = dict.fromkeys(note for result in figures for note in result.notes)
    return "\n".join([*lines, *(f"\n- {' '.join(printable(note).split())}" for note in notes)])


def _cells(result: Result) -> dict[str, str]:
    """Return a result as a row of the table, by title; a figure that was not measured has no cell."""
    kind = "fid" if "fid" in result.figures else "fd"
    shown = {"figure": result.label, "value": show(kind, result.distance), "n -> infinity": show_limit(result.distance)}
    shown |= {NAMES.get(name, name): show(name, figure) for name, figure in _others(result)}
    return shown | {"protocol": "; ".join(protocol_lines(result))}


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")


def _others(result: Result) -> list[tuple[str, Figure]]:
    return [(name, figure) for name, figure in result.figures.items() if name not in ("fid", "fd")]


def _arguments(result: Result) -> dict[str, Any]:
    """Return what is needed to read and to repeat a figure, as plain values; what is not known is left out."""
    samples, reference, network = result.protocol.samples, result.protocol.reference, result.protocol.network
    shown: dict[str, Any] = dataclasses.asdict(samples.sampling) if samples.sampling else {}
    shown |= {"samples": samples.n, "seed_ranges": seed_ranges(result), "quantisation": samples.quantisation}
    shown |= {"reference": reference.name, "reference_images": reference.n, "reference_split": reference.split}
    shown |= {"reference_hash": reference.hash and prefix(reference.hash), "features": network.name}
    shown |= {"features_weights": network.weights and prefix(network.weights), "features_dtype": network.dtype}
    distance = result.distance
    shown |= {"standard_error": distance.standard_error, "limit": distance.limit}
    shown |= {name: figure.value for name, figure in _others(result)}
    rounded = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in shown.items()}
    rounded["interval"] = distance.interval and [float(f"{end:.6g}") for end in distance.interval]
    return {key: value for key, value in rounded.items() if value is not None}


def _limits(
    denoiser: Denoiser, origin: Training | Imported | None, figures: Sequence[Result], license: str
) -> Iterator[str]:
    """Say what follows from what is known, and what is not known."""
    _, height, width = denoiser.image_shape
    kind = "latents" if _is_latent(denoiser) else "images"
    yield f"It makes {kind} of {height}x{width} of the kind it was trained on, and nothing else."
    if not figures:
        yield "The quality of its images has not been measured."
    if any("memorising" in result.figures for result in figures):
        yield "Memorising ratio: distance to the nearest training image over that of held-out ones (real 1, copies 0)."
    else:
        yield "Whether it reproduces training images has not been measured."
    if isinstance(origin, Training):
        yield from _limits_of_run(denoiser, origin.config)
    if isinstance(origin, Imported):
        yield (
            "The weights are the work of others, and the original terms apply to them: the repositories of EDM, 2-RF++"
            " and DiT carry their own, which are partly non-commercial."
        )
        given = f"License, as given by who shared it: {license}; it must agree with those terms."
        yield given if license else "No license is stated here."
    else:
        yield f"License: {license}." if license else "The owner has not chosen a license: ask before using it."


def _limits_of_run(denoiser: Denoiser, config: Config) -> Iterator[str]:
    if config.init:
        yield f"It started from the weights of `{config.init}`; if those are others', their terms apply to it too."
    match config.objective:
        case ConsistencyConfig(descent=ByTeacherConfig(teacher=teacher)):
            yield f"It was taught by the model `{teacher}`; if that is others' work, its terms may apply to it too."
    if config.data.flip:
        yield "It has seen half of its images mirrored, so left and right mean nothing in what it draws."
    if config.data.augment:
        yield (
            "It was trained on images that were mirrored, scaled, turned and moved, and told of it; samples are asked"
            " for without, and whether traces remain has not been measured."
        )
    if denoiser.num_classes and config.objective.label_dropout == 0:
        yield "It was trained without label dropout, so guidance does not work and labels must be given."
    if config.data.path not in EMBEDDED:
        yield "The terms under which its training images may be used are not recorded."
