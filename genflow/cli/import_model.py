"""``genflow import``: from published weights to a model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from genflow.config_files import parse_arguments, to_toml
from genflow.files import atomic_folder, write_text

if TYPE_CHECKING:
    from genflow.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """What ``genflow import`` takes."""

    weights: Annotated[str, tyro.conf.Positional]
    """A .safetensors, .pt, .pth or .bin file of plain tensors, or a diffusers folder, of one or with a transformer."""
    out: str = ""
    """Folder for the model; by default models/ and the name of the weights."""
    method: Literal["auto", "edm", "rfpp", "dit"] = "auto"
    """Whose weights they are. Auto tells DiT from EDM's networks; 2-RF++ (rfpp) has EDM's, and must be asked for."""
    head_channels: int = 64
    """Channels of an attention head in ADM networks."""
    heads: int = 0
    """Attention heads of a DiT; 0 is what the published DiT of that width has."""
    image_size: int = 0
    """Side of a DiT's images or latents, if the weights do not tell."""


def import_model(arguments: Sequence[str], *, prog: str = "genflow import") -> None:
    """Write a pipeline folder, whole or not at all, and say what was taken from the weights and what to do next.

    Beside the model it holds import.json, which tells where the weights came from, and recipe.toml, which trains it
    further.
    """
    options = parse_arguments(
        ImportArguments,
        arguments,
        prog=prog,
        about="Turn published weights of EDM, 2-RF++ or DiT into a model folder.",
    )
    source = Path(options.weights)
    name = source.stem if source.is_file() else source.resolve().name
    out = Path(options.out) if options.out else Path("models") / name
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: give another --out folder, or remove it")
    from genflow.pipeline import GenflowPipeline
    from genflow.published.recipe import recipe
    from genflow.published.weights import read_weights, weights_digest

    method, denoiser, notes = _convert(read_weights(source), options)
    told = {"source": source.resolve().name, "sha256": weights_digest(source), "method": method, "notes": notes}
    config = recipe(denoiser, str(out))
    with atomic_folder(out) as partial:
        GenflowPipeline(denoiser).save_pretrained(str(partial))
        write_text(partial / "import.json", json.dumps(told, indent=2) + "\n")
        write_text(
            partial / "recipe.toml", f"# Trains the model further, on images that data.path tells.\n{to_toml(config)}"
        )
    _say(denoiser, notes, out)


def _say(denoiser: Denoiser, notes: Sequence[str], out: Path) -> None:
    for note in notes:
        print(f"note: {note}")
    parameters = sum(p.numel() for p in denoiser.backbone.parameters())
    shape = "x".join(map(str, denoiser.image_shape))
    classes = f", {denoiser.num_classes} classes" if denoiser.num_classes else ""
    print(f"{out}: {type(denoiser.backbone).__name__} of {parameters:,} parameters, images {shape}{classes}")
    print(f"by default {denoiser.sampler} in {denoiser.steps} steps; next: genflow sample {quote(str(out))}")
    if denoiser.image_shape[0] in (1, 3):  # genflow trains on images, not on latents
        print(f"to fine-tune: genflow train {quote(str(out / 'recipe.toml'))} --data.path photos/")


def _convert(
    tensors: Mapping[str, Any], options: ImportArguments
) -> tuple[Literal["EDM", "2-RF++", "DiT"], Denoiser, list[str]]:
    """Return whose method it is, the model, and sentences on what was assumed."""
    method, notes = options.method, []
    if method == "auto":
        method = _recognise(tensors)
        if method == "edm":
            notes = ["took the method to be EDM: 2-RF++ has the same networks, and needs --method rfpp"]
    match method:
        case "dit":
            from genflow.published.dit import dit

            written = _diffusers_config(Path(options.weights))
            denoiser, more = dit(
                tensors,
                heads=options.heads or written.get("num_attention_heads", 0),
                image_size=options.image_size or written.get("sample_size", 0),
            )
            return "DiT", denoiser, notes + more
        case _:
            from genflow.published.edm import edm

            denoiser, more = edm(tensors, method=method, head_channels=options.head_channels)
            return ("2-RF++" if method == "rfpp" else "EDM"), denoiser, notes + more


def _diffusers_config(source: Path) -> dict[str, int]:
    """Return the whole numbers in the config.json of a transformer that lies beside the weights, if one does."""
    beside = source.parent / "config.json" if source.is_file() else source / "config.json"
    for place in (beside, source / "transformer" / "config.json"):
        if place.is_file():
            try:
                written = json.loads(place.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{place} is damaged: {error}") from None
            if not isinstance(written, dict):
                raise ValueError(f"{place} is damaged: it is not a table")
            return {key: value for key, value in written.items() if isinstance(value, int)}
    return {}


def _recognise(tensors: Mapping[str, Any]) -> Literal["edm", "dit"]:
    """Tell EDM's networks from DiT by the names of their blocks."""
    parts = {part for name in tensors for part in name.split(".")}
    if parts & {"adaLN_modulation", "transformer_blocks"}:
        return "dit"
    if {"enc", "dec"} <= parts:
        return "edm"
    raise ValueError(
        f"these weights are neither of EDM's networks nor a DiT (a key is {min(tensors)}): give --method to see what"
        " is missing, or weights of one of them"
    )
