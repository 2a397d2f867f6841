"""What the commands of ``genflow kind`` share: reading decomposed models, and writing what was made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from genflow.cli.models import load_model
from genflow.denoiser import Denoiser
from genflow.files import atomic_folder, check_place
from genflow.kind import Decomposed
from genflow.pipeline import GenflowPipeline


def load_decomposed(path: str) -> tuple[Denoiser, Decomposed]:
    """Load a decomposed model onto the host, and return it with its backbone.

    Raises ``ValueError`` for a dense one.
    """
    denoiser = load_model(path, torch.device("cpu"))
    match denoiser.backbone:
        case Decomposed() as model:
            return denoiser, model
        case _:
            raise ValueError(
                f"{path} is a dense model, and genflow kind takes decomposed ones: train one by  genflow train"
                ' tiny-kind,  or decompose the weights of this one by a recipe with [surgery] type = "KIND" and'
                f" --init {path}"
            )


def check_out(out: Path) -> None:
    """Refuse a place for a model that is taken, or where nothing can be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: give another --out folder, or remove it")
    check_place(out / "model_index.json")


def write_model(denoiser: Denoiser, out: Path) -> None:
    """Write a pipeline folder, whole or not at all."""
    with atomic_folder(out) as partial:
        GenflowPipeline(denoiser).save_pretrained(str(partial))


def parameters(denoiser: Denoiser) -> int:
    """Return how many parameters a model has."""
    return sum(p.numel() for p in denoiser.parameters())


def listed(classes: Sequence[int]) -> str:
    """Return classes in words."""
    return f"{len(classes)} class{'es' * (len(classes) != 1)} ({', '.join(map(str, classes))})"
