"""``genflow kind draw``: what learngenes draw alone, what tailors add, and whose class a swapped gate gives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from genflow.cli.kind_models import aligned, listed, load_decomposed, numbers
from genflow.cli.models import picture_shape, run_of
from genflow.config_files import parse_arguments
from genflow.denoiser import Denoiser, weights_hash
from genflow.evaluation.gate_picture import ROWS, draw
from genflow.evaluation.gate_swap import GateSwap, can_swap, gate_swap, gates_of
from genflow.evaluation.measurement import reads_digits
from genflow.evaluation.networks.digits import DigitFeatures
from genflow.evaluation.protocol import Figure
from genflow.files import check_place, write_text
from genflow.pictures import write_drawing, write_image

MOST = 10  # classes, unless they are named
DIGITS = 10  # that the classifiers tell apart
ABOUT = (
    "Draw the same seeds with learngenes alone (all tailors off), with the tailor of their class, and with that of one"
    " class under the label of another: a swapped gate. Of models of the embedded digits a classifier reads whose class"
    " the samples are of, the gate's or the label's, and a table says so. Example: genflow kind draw runs/tiny-kind -o"
    " kind.png --out kind.json"
)


@dataclass(frozen=True, kw_only=True)
class DrawArguments:
    """What ``genflow kind draw`` takes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A decomposed model: a run's folder, a saved model, or a hub repository."""
    picture: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """PNG file for the picture."""
    out: Path | None = None
    """JSON file for the shares of every gate and label."""
    classes: str = ""
    """Classes to draw and to swap, such as 3,7; the first ten if left out."""
    num: int = 64
    """Seeds for every pair of a gate and a label, the same for all."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    steps: int = 0
    """Steps of the sampler; 0 is the model's default."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none. No class stays what it is, under any gate."""
    read_as: Literal["auto", "digits", "mnist5k", "none"] = "auto"
    """Whose classifier reads the samples: that of the set the run was on, one of these, or none."""
    keep: tuple[int, ...] = ()
    """Digits that the model's classes are, one for each in their order, where no run tells; () is all ten."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


def draw_gates(arguments: Sequence[str], *, prog: str = "genflow kind draw") -> None:
    """Write the picture; print the shares, where a classifier reads the samples."""
    options = parse_arguments(DrawArguments, arguments, prog=prog, about=ABOUT)
    _check(options)
    denoiser, _ = load_decomposed(options.model, options.device)
    picture_shape(denoiser, "not pictures: there is nothing to draw")
    labels = tuple(dict.fromkeys(numbers(options.classes))) if options.classes else denoiser.classes[:MOST]
    gates_of(denoiser, labels)
    reader, meant = _reader(options, denoiser)
    swappable = can_swap(denoiser, labels)
    if options.out is not None and not swappable:
        raise ValueError(
            f"there is one gate for {listed(labels)} and nothing to swap, so there are no shares for --out: name"
            " classes with different tailors by --classes, or leave it out"
        )
    seeds = range(options.first_seed, options.first_seed + options.num)
    steps = options.steps or None
    swap = None
    if reader is not None and swappable:
        network = reader
        swap = gate_swap(
            denoiser,
            seeds,
            lambda images: network.logits(images).argmax(dim=1),
            meant,
            labels=labels,
            steps=steps,
            guidance=options.guidance,
            progress=_bar,
        )
    names = {c: str(meant.get(c, c)) for c in denoiser.classes}
    picture = draw(
        denoiser,
        seeds[:ROWS],
        labels=labels,
        names=names,
        swap=swap,
        reader="" if reader is None else reader.name,
        steps=steps,
        guidance=options.guidance,
    )
    (write_drawing if denoiser.image_shape[0] == 1 else write_image)(options.picture, picture)
    if len(labels) < len(denoiser.classes):
        print(f"{options.model}: {listed(labels)} of {len(denoiser.classes)}")
    if swap is not None:
        print(table(swap, names))
    elif not swappable:
        print("there is one gate for these classes and nothing to swap, and only the picture is made")
    else:
        print("no classifier reads these images, and only the picture is made (--read-as names one of the digits)")
    if options.out is not None and swap is not None and reader is not None:
        write_text(options.out, json.dumps(_said(options, denoiser, reader, swap), indent=2) + "\n")
    print(f"look at {options.picture}")


def table(swap: GateSwap, names: dict[int, str]) -> str:
    """Return the shares of samples read as a class of their gate, a line for each gate, and what follows from them."""
    rows = [("gate", *(f"label {names[label]}" for label in swap.labels), "other labels, read as these")]
    pairs = zip(swap.gates, swap.by_gate, swap.by_label, swap.swapped, strict=True)
    for gate, as_gate, as_label, other in pairs:
        shares = (f"{share:.1%}" for share in as_gate.tolist())
        rows.append((",".join(names[c] for c in gate), *shares, f"{as_label[other].mean():.1%}"))
    alone, own, follows, label = swap.learngenes_alone, swap.own, swap.follows_gate, swap.follows_label
    return "\n".join(
        [
            f"read as the class of the gate, {swap.read.shape[2]} seeds for each gate and label:",
            *aligned(rows),
            f"another class's label: read as the gate's class {_share(follows)}, as the label's {_share(label)}",
            f"its own label: read as the class of both {_share(own)}",
            f"learngenes alone: read as the label's class {_share(alone)}; labels without influence give"
            f" {1 / len(swap.labels):.1%} at most",
        ]
    )


def _share(figure: Figure) -> str:
    error = figure.standard_error
    return f"{figure.value:.1%}" + ("" if error is None else f" (s.e. {error:.1%})")


def _check(options: DrawArguments) -> None:
    """Refuse what cannot be before a model is loaded."""
    for path, suffix, option in ((options.picture, ".png", "--picture"), (options.out, ".json", "--out")):
        if path is None:
            continue
        if path.suffix.lower() != suffix:
            raise ValueError(f"{option} {path} must end in {suffix}: -o is for the picture, --out for the shares")
        check_place(path)
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    if options.steps < 0:
        raise ValueError(f"--steps must be positive, or 0 for the model's default, got {options.steps}")
    if not 0 <= options.first_seed <= 2**64 - options.num:
        raise ValueError(f"seeds must be in [0, 2^64), got --first-seed {options.first_seed} --num {options.num}")


def _reader(options: DrawArguments, denoiser: Denoiser) -> tuple[DigitFeatures | None, dict[int, int]]:
    """Return the classifier and the digit that each class of the model is; None, and no digits, if there is neither.

    Raises ``ValueError`` where shares were asked for that cannot be had.
    """
    run = run_of(options.model)
    own = "none" if run is None or not reads_digits(run.data.path) else run.data.path
    name = own if options.read_as == "auto" else options.read_as
    if name == "none":
        if options.out is not None:
            raise ValueError(
                f"no classifier is known for the images of {options.model}, so there are no shares for --out: name one"
                " by --read-as digits or mnist5k, or leave it out"
            )
        return None, {}
    trained = sorted({*run.data.keep}) if run is not None and name == own else []  # which renumbers in this order
    kept = [*options.keep] or trained or [*range(DIGITS)]
    classes = denoiser.classes
    if len(kept) != len(classes) or len({*kept}) != len(kept) or not {*kept} <= {*range(DIGITS)}:
        raise ValueError(
            f"the model has {listed(classes)}, and the digits that they are would be {', '.join(map(str, kept))}:"
            " name one for each by --keep, or make the picture alone by --read-as none"
        )
    channels, height, width = denoiser.image_shape
    if channels != 1 or height != width:
        raise ValueError(f"the classifier of {name} reads square grey images, and this model's are {height}x{width}")
    device = next(denoiser.parameters()).device
    reader = DigitFeatures("mnist5k" if name == "mnist5k" else "digits", side=height, device=device)
    return reader, dict(zip(classes, kept, strict=True))


def _said(options: DrawArguments, denoiser: Denoiser, reader: DigitFeatures, swap: GateSwap) -> dict[str, object]:
    """Return the shares and how they were obtained, as written to JSON."""
    how = {
        "model": options.model,
        "weights": weights_hash(denoiser),
        "reader": reader.name,
        "reader_weights": reader.identity.weights,
        "first_seed": options.first_seed,
        "num": options.num,
        "sampler": denoiser.sampler,
        "steps": options.steps or denoiser.steps,
        "guidance": options.guidance,
        "meant": {str(c): digit for c, digit in swap.meant.items()},
    }
    return how | swap.plain()


def _bar(numbers: Iterable[int]) -> Iterable[int]:
    return tqdm(numbers, desc="gates", unit="gate", leave=False)
