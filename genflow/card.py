"""What a model card says: the method, the data, the recipe, figures with their protocol, and the limits."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from genflow import __version__
from genflow.assets import asset
from genflow.config import Config
from genflow.config_files import to_toml
from genflow.data.images import EMBEDDED
from genflow.data.shapes import TRAIN_COUNT
from genflow.denoiser import Denoiser
from genflow.evaluation.protocol import figure_label
from genflow.sampling.generate import network_calls

TASK = "unconditional-image-generation"  # the hub's only task from noise to images, with classes or without
PREVIEW = "preview.png"
_HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where a model came from: the run's configuration, the steps it has taken, and what wrote it."""

    config: Config
    steps: int | None
    versions: str


def model_card(
    denoiser: Denoiser,
    repo: str,
    *,
    training: Training | None,
    figures: Sequence[Mapping[str, Any]],
    license: str,
    preview: str,
) -> str:
    """Return the README.md of a model: YAML front matter that the hub reads, then Markdown.

    ``repo`` is ``owner/name``; ``training.config`` holds no local paths (``without_local_paths``); ``figures`` are
    records of ``genflow fid`` about this model (``check_figure``); ``license`` may be "" (not chosen) and ``preview``
    is the caption of the picture preview.png, or "".
    """
    parts = [
        f"# {repo.split('/')[1]}",
        _summary(denoiser),
        f"![samples]({PREVIEW})\n\n{preview}" if preview else "",
        "## Sampling\n\n" + _sampling(denoiser, repo),
        "## Method\n\n" + _method(denoiser, training),
        "## Data\n\n" + _data(denoiser, training),
        "## Training\n\n" + _training(training),
        "## Figures\n\n" + _figures(figures),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(denoiser, training, figures, license)),
    ]
    return f"---\n{_front_matter(repo, training, figures, license)}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def without_local_paths(config: Config) -> Config:
    """Return the configuration with every local path reduced to its last name; names on the hub stay."""
    data = replace(config.data, path=_public(config.data.path), labels=_last_name(config.data.labels))
    return replace(config, out=_last_name(config.out), init=_start(config.init), data=data)


def _public(source: str) -> str:
    """Return a data source without the folders that lead to it."""
    if source in EMBEDDED:
        return source
    if source.startswith("hf:"):
        name, mark, query = source.removeprefix("hf:").partition("?")
        return f"hf:{name if _is_hub_name(name) else _last_name(name)}{mark}{query}"
    return _last_name(source)


def _start(init: str) -> str:
    """Return the model that a run started from: a hub repository, or the name of a run or folder."""
    if _is_hub_name(init):
        return init
    parts = PureWindowsPath(init).parts
    return _last_name(str(PureWindowsPath(*parts[:-1]))) if parts[1:] and parts[-1] == "model" else _last_name(init)


def _is_hub_name(name: str) -> bool:
    """Tell a hub repository from a local folder of two parts, which exists here at least in its first."""
    return re.fullmatch(_HUB_NAME, name) is not None and not Path(name.split("/")[0]).exists()


def _last_name(path: str) -> str:
    return PureWindowsPath(path).name  # takes both kinds of slashes


def check_figure(record: Any, source: str, weights: str) -> None:
    """Refuse what is not a whole record of ``genflow fid`` about the model with these weights.

    Raises ``ValueError`` naming ``source``.
    """
    if not isinstance(record, dict) or "distance" not in record:
        raise ValueError(f"{source} is not a figure: give a file that `genflow fid --out` wrote")
    if "weights" not in record:
        raise ValueError(f"{source} measured a folder of images, not a model: give figures of `genflow fid MODEL`")
    if record["weights"] != weights:
        raise ValueError(f"{source} holds figures of another model: measure this one with `genflow fid --out`")
    needed = ("sampler", "steps", "guidance", "network_calls", "reference", "reference_images", "features")
    lacking = [key for key in (*needed, "quantisation") if key not in record]
    lacking += [] if {"count", "samples"} & record.keys() else ["samples"]
    if lacking:
        raise ValueError(f"{source} lacks {' and '.join(lacking)}, without which its figure cannot be read")


def _front_matter(repo: str, training: Training | None, figures: Sequence[Mapping[str, Any]], license: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    source = training.config.data.path.removeprefix("hf:").partition("?")[0] if training else ""
    on_hub = training is not None and training.config.data.path.startswith("hf:")
    start = training.config.init if training else ""
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=_last_name(str(record["reference"])),
            dataset_name=_last_name(str(record["reference"])),
            metric_type="fid" if _features(record) == "inception" else "frechet-distance",
            metric_name=_label(record),
            metric_value=round(float(record["distance"]), 4),
            metric_args=_protocol(record),
        )
        for record in figures
    ]
    data = ModelCardData(
        license=license or None,
        library_name="genflow",
        pipeline_tag=TASK,
        tags=["genflow", "diffusers", *_tags(training)],
        datasets=[source] if on_hub and re.fullmatch(_HUB_NAME, source) else None,
        base_model=start if re.fullmatch(_HUB_NAME, start) else None,
        model_name=repo.split("/")[1] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _tags(training: Training | None) -> list[str]:
    if training is None:
        return []
    return [training.config.schedule.type.lower(), training.config.parameterization.type.lower()]


def _summary(denoiser: Denoiser) -> str:
    channels, height, width = denoiser.image_shape
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    classes = f", {denoiser.num_classes} classes" if denoiser.num_classes else ""
    return f"An image generator trained with genflow: {height}x{width} {colour} images{classes}."


def _sampling(denoiser: Denoiser, repo: str) -> str:
    """Say how to sample, in Python that runs as it stands."""
    labels = f"labels=[k % {denoiser.num_classes} for k in seeds], " if denoiser.num_classes else ""
    scale = max(1, 48 // denoiser.image_shape[-1])
    draw = [f'genflow.write_image("samples.png", genflow.grid(images, columns=4, scale={scale}))']
    if denoiser.image_shape[0] not in (1, 3):  # latents are no pictures
        draw = ["print(images.shape)"]
    calls = network_calls(denoiser.sampler, denoiser.steps)
    lines = [
        "```python",
        "import genflow",
        "",
        f'model = genflow.Denoiser.from_pretrained("{repo}")',
        "seeds = range(16)  # a seed is an image",
        f'images = genflow.generate(model, seeds, {labels}sampler="{denoiser.sampler}", steps={denoiser.steps})',
        *draw,
        "```",
        "",
        f"The model's default is the sampler `{denoiser.sampler}` in {denoiser.steps} steps: {calls} network calls.",
    ]
    if denoiser.times:
        lines[-1] += f" It brings time grids of its own for {', '.join(sorted(denoiser.times, key=int))} steps."
    return "\n".join(
        [*lines, f'`genflow.GenflowPipeline.from_pretrained("{repo}")` is the same as a diffusers pipeline.']
    )


def _method(denoiser: Denoiser, training: Training | None) -> str:
    config: Any = denoiser.config
    objective = "not recorded" if training is None else f"`{_show(training.config.objective)}`"
    count = sum(p.numel() for p in denoiser.parameters())
    words = _words(config["schedule"]["class"], config["parameterization"]["class"])
    rows = [
        "| schedule | parameterization | objective | network | parameters |",
        "|---|---|---|---|---|",
        f"| `{_call(config['schedule'])}` | `{_call(config['parameterization'])}` | {objective} |"
        f" `{_call(config['network'])}` | {count:,} |",
    ]
    return "\n\n".join(filter(None, [words, "\n".join(rows)]))


def _words(schedule: str, parameterization: str) -> str:
    """Describe the pair of schedule and parameterization; nothing is said of pairs that have no name."""
    match schedule, parameterization:
        case "VE", "Karras":
            return "Variance-exploding noise and EDM's preconditioning (arXiv 2206.00364)."
        case "VE", "ConsistencyKarras":
            return "Variance-exploding noise and the preconditioning of consistency models (arXiv 2303.01469)."
        case "DiscreteVP" | "VP" | "Cosine", "PredictNoise":
            return "Variance-preserving diffusion whose network predicts the noise, as in DDPM (arXiv 2006.11239)."
        case "DiscreteVP" | "VP" | "Cosine", "PredictV":
            return "Variance-preserving diffusion whose network predicts v (arXiv 2202.00512)."
        case "Linear", "PredictVelocity":
            return "Rectified flow: the network predicts the velocity of straight paths (arXiv 2209.03003)."
        case "Linear", "Karras":
            return "The straight paths of rectified flow with EDM's preconditioning (arXiv 2405.20320)."
        case "Trig", "PredictVelocity":
            return "TrigFlow (arXiv 2410.11081)."
        case _:
            return ""


def _call(part: Mapping[str, Any]) -> str:
    """Write a part of the model's configuration as the call that makes it; a long table by its ends."""
    shown = []
    for key, value in part["arguments"].items():
        if isinstance(value, list | tuple) and len(value) > 8:
            value = f"{len(value)} from {value[0]:g} to {value[-1]:g}"
        shown.append(f"{key}={value}")
    return f"{part['class']}({', '.join(shown)})"


def _show(part: Any) -> str:
    """Write a section of a configuration on one line."""
    fields = [f.name for f in dataclasses.fields(part) if f.name != "type"]
    values = {name: vars(part)[name] for name in fields}
    shown = [f"{k}={_show(v) if dataclasses.is_dataclass(v) else v}" for k, v in values.items()]
    return f"{part.type}({', '.join(shown)})"


def _data(denoiser: Denoiser, training: Training | None) -> str:
    if training is None:
        return "Not recorded with the model."
    data = training.config.data
    lines = [f"`{data.path}`" + (", a set that comes with genflow" if data.path in EMBEDDED else "")]
    count = _image_count(data.path)
    lines.append(f"{count:,} training images" if count else "the number of images is not recorded")
    lines.append(f"{denoiser.num_classes} classes" if denoiser.num_classes else "trained without classes")
    if data.flip:
        lines.append("half of the images mirrored")
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


def _training(training: Training | None) -> str:
    if training is None:
        return f"Not recorded with the model. Shared by genflow {__version__}."
    config = training.config
    length = "The number of steps taken is not recorded"
    if training.steps is not None:
        images = training.steps * config.train.batch_size
        length = f"{training.steps:,} steps of {config.train.batch_size} images, {images:,} images in all"
        if training.steps < config.train.steps:
            length += f"; the recipe asks for {config.train.steps:,} steps"
    start = f" It started from the weights of `{config.init}`." if config.init else ""
    made = training.versions or "The versions that trained it are not recorded"
    return (
        f"{length}.{start} {made}; shared by genflow {__version__}. The recipe, also in config.toml, in which local"
        f" paths are reduced to their last name:\n\n```toml\n{to_toml(config)}```"
    )


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    if not figures:
        return "None were measured."
    lines = ["| figure | value | protocol |", "|---|---|---|"]
    for record in figures:
        protocol = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in _protocol(record).items())
        lines.append(f"| {_label(record)} | {float(record['distance']):.4f} | {protocol} |")
    lines += ["", "FD is a Fréchet distance in the features named in brackets, lower is better; FID is the one in"]
    lines[-1] += " Inception features. Values of different protocols cannot be compared."
    return "\n".join(lines)


def _features(record: Mapping[str, Any]) -> str:
    return str(record["features"]).split(":")[0]


def _label(record: Mapping[str, Any]) -> str:
    return figure_label(_features(record), record.get("count", record.get("samples")), record["quantisation"])


def _protocol(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is needed to read and to repeat a figure."""
    name, _, digest = str(record["features"]).partition(":")
    shown: dict[str, Any] = {
        "sampler": record["sampler"],
        "steps": record["steps"],
        "network_calls": record["network_calls"],
        "guidance": record["guidance"],
        "first_seed": record.get("first_seed", 0),
        "reference": _last_name(str(record["reference"])),
        "reference_images": record["reference_images"],
        "features": f"{name}:{digest[:12]}",
        "quantisation": record["quantisation"],
    }
    if "distances" in record:
        shown["seed_ranges"] = len(record["distances"])
        shown["standard_deviation"] = round(statistics.stdev(record["distances"]), 4)
    if "floor" in record:
        shown["floor_of_real_images"] = round(statistics.fmean(record["floor"]), 4)
    if "memorising" in record:
        shown["memorising_ratio"] = round(record["memorising"], 4)
    if record.get("accuracy") is not None:
        shown["asked_class"] = round(record["accuracy"], 4)
    return shown


def _limits(
    denoiser: Denoiser, training: Training | None, figures: Sequence[Mapping[str, Any]], license: str
) -> Iterator[str]:
    """Say what follows from what is known, and what is not known."""
    _, height, width = denoiser.image_shape
    yield f"It makes images of {height}x{width} of the kind it was trained on, and nothing else."
    if not figures:
        yield "The quality of its images has not been measured."
    if any("memorising" in record for record in figures):
        yield "Memorising ratio: distance to the nearest training image over that of held-out ones (real 1, copies 0)."
    else:
        yield "Whether it reproduces training images has not been measured."
    if denoiser.num_classes and training is not None and training.config.objective.label_dropout == 0:
        yield "It was trained without label dropout, so guidance does not work and labels must be given."
    if training is not None and training.config.data.path not in EMBEDDED:
        yield "The terms under which its training images may be used are not recorded."
    yield f"License: {license}." if license else "The owner has not chosen a license: ask before using it."
