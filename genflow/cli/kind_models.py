"""What the commands of ``genflow kind`` share: reading decomposed models, and writing what was made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genflow.cli.models import choose_device, load_model
from genflow.denoiser import Denoiser
from genflow.files import atomic_folder, check_place
from genflow.kind import Decomposed
from genflow.pipeline import GenflowPipeline


def load_decomposed(path: str, device: str = "cpu") -> tuple[Denoiser, Decomposed]:
    """Load a decomposed model onto a device, by default the host, and return it with its backbone.

    Raises ``ValueError`` for a dense one.
    """
    denoiser = load_model(path, choose_device(device))
    match denoiser.backbone:
        case Decomposed() as model:
            return denoiser, model
        case _:
            raise ValueError(
                f"{path} is not decomposed, and genflow kind takes models that are: train one by  genflow train"
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


def numbers(text: str) -> list[int]:
    """Return the classes that an option ``--classes`` names.

    Raises ``ValueError`` for anything but numbers with commas.
    """
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(f"--classes must be numbers with commas, such as 3,7, got {text!r}") from None


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as lines whose columns line up, the first at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]
