"""A picture of a model that comes apart: learngenes alone, what tailors add, and labels under other classes' gates."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.evaluation.gate_swap import GateSwap, gates_of, under_gate
from genflow.evaluation.pen import GREY, INK, Colour, Pen, canvas, finished
from genflow.sampling.generate import generate

ROWS = 3  # seeds that are shown
TILE, GAP = 34, 4
LEFT, TOP, BELOW, BESIDE = 78, 62, 26, 18  # of a panel: room for names, titles, and what comes next
DARK: Colour = (33, 120, 125)  # of a share of 1; that of 0 is white
SHORT = 8  # letters of a name
CAPTION = (
    "Above: samples of the seeds {seeds}. With all tailors off every label has the same network, but for its row of the"
    " label table. In the difference, grey is no change and white is what the tailor adds. Below: the tailor of the row"
    " is on, whatever label is asked for."
)
READ = " The shares are of {count} seeds for each pair, as the {reader} classifier reads them."


def draw(
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    labels: Sequence[int],
    names: Mapping[int, str],
    swap: GateSwap | None = None,
    reader: str = "",
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Return a picture, uint8 (3, H, W), of a decomposed model: a row of panels for its parts, one for its gates.

    Above are samples of all ``seeds`` without any tailor, with the tailor of their class, and the difference. Below
    are samples of the first seed, a row for each gate and a column for each label, and beside them the shares of
    ``swap``, which is of the same labels and was read by ``reader``. ``names`` tells what to call each class that the
    model has; ``steps``, ``sampler`` and ``guidance`` are those of ``generate``.

    With a single gate, or none, there is so much less below. Raises ``ValueError`` as ``gates_of``, and for models of
    anything but grey and RGB pictures.
    """
    if denoiser.image_shape[0] not in (1, 3):
        raise ValueError(f"only pictures, grey or RGB, can be drawn, and this model makes {denoiser.image_shape}")
    gates = gates_of(denoiser, labels)

    def drawn(model: Denoiser, rows: Sequence[int]) -> Tensor:
        asked, repeated = [*labels] * len(rows), [seed for seed in rows for _ in labels]
        images = generate(model, repeated, labels=asked, steps=steps, sampler=sampler, guidance=guidance)
        return images.cpu().unflatten(0, (len(rows), len(labels)))  # (rows, L, C, H, W)

    closed = under_gate(denoiser, None)
    alone, whole = drawn(closed, seeds), drawn(denoiser, seeds)
    swapped = torch.cat([drawn(closed, seeds[:1]), *(drawn(under_gate(denoiser, g[0]), seeds[:1]) for g in gates)])
    width, height = _panel(len(labels), len(seeds))
    low = _panel(len(labels), len(gates) + 1)[1]
    caption = _caption(seeds, swap, reader, letters=width // 2)
    picture = canvas(3 * width, height + low + 18 * len(caption) + 8)
    columns = [_short(names[label]) for label in labels]
    rows = [f"seed {seed}" for seed in seeds]
    _parts([_Panel(Pen(picture, (k * width, 0)), columns, rows) for k in range(3)], alone, whole)
    rows = ["no tailor", *(f"gate {_short(','.join(names[c] for c in gate))}" for gate in gates)]
    panels = [_Panel(Pen(picture, (k * width, height)), columns, rows) for k in range(3)]
    panels[0].titles("gate against label", f"rows: whose tailor is on; seed {seeds[0]}")
    panels[0].images(swapped)
    if swap is not None:
        _shares(panels[1:], swap)
    for k, line in enumerate(caption):
        Pen(picture, (0, height + low)).text(LEFT, 18 * k + 4, line, "lm", 12, GREY)
    return finished(picture)


def _caption(seeds: Sequence[int], swap: GateSwap | None, reader: str, *, letters: int) -> list[str]:
    told = CAPTION.format(seeds=", ".join(map(str, seeds)))
    told += "" if swap is None else READ.format(count=swap.read.shape[2], reader=reader)
    return textwrap.wrap(told, width=letters)


def _parts(panels: Sequence[_Panel], alone: Tensor, whole: Tensor) -> None:
    """Fill three panels: images (rows, columns, C, H, W) without tailors, with them, and the difference."""
    added = ((whole.float() - alone.float()) / 2 + 127.5).round().to(torch.uint8)
    panels[0].titles("learngenes alone", "all tailors are off")
    panels[0].images(alone)
    panels[1].titles("with tailors", "that of the label is on")
    panels[1].images(whole)
    panels[2].titles("what tailors add", "the difference of the two")
    panels[2].images(added)


def _shares(panels: Sequence[_Panel], swap: GateSwap) -> None:
    """Fill two panels: shares read as a class of the gate, which no tailor has, and as the label."""
    nothing = torch.full((1, len(swap.labels)), torch.nan)
    panels[0].titles("read as the gate's class", "per cent of the samples")
    panels[0].shares(torch.cat([nothing, swap.by_gate]))
    panels[1].titles("read as the label", "per cent of the samples")
    panels[1].shares(torch.cat([swap.alone_by_label[None], swap.by_label]))


def _panel(columns: int, rows: int) -> tuple[int, int]:
    """Return width and height of a panel with room for what is around its tiles."""
    width = LEFT + max(columns, 5) * (TILE + GAP) + BESIDE  # titles take as much as five
    return width, TOP + rows * (TILE + GAP) + BELOW


def _short(name: str) -> str:
    return name if len(name) <= SHORT else f"{name[: SHORT - 1]}…"


class _Panel:
    """A table of tiles with names at its rows and columns."""

    def __init__(self, pen: Pen, columns: Sequence[str], rows: Sequence[str]) -> None:
        self.pen, self.columns, self.rows = pen, columns, rows

    def titles(self, title: str, told: str) -> None:
        self.pen.text(LEFT, 14, title, "lm", 14)
        self.pen.text(LEFT, 31, told, "lm", 11, GREY)
        self.pen.text(LEFT - 8, TOP - 10, "label", "rm", 11, GREY)
        for k, name in enumerate(self.columns):
            self.pen.text(self._x(k) + TILE / 2, TOP - 10, name, "mm", 11, INK)
        for k, name in enumerate(self.rows):
            self.pen.text(LEFT - 8, self._y(k) + TILE / 2, name, "rm", 11, INK)

    def images(self, images: Tensor) -> None:
        """Show images (rows, columns, C, H, W)."""
        for k, row in enumerate(images):
            for n, image in enumerate(row):
                self.pen.tile(self._x(n), self._y(k), image, TILE)

    def shares(self, shares: Tensor) -> None:
        """Show shares (rows, columns) as shades with numbers; what is not a number is left out."""
        for k, row in enumerate(shares.tolist()):
            for n, share in enumerate(row):
                if share != share:
                    continue
                red, green, blue = (round(255 + share * (dark - 255)) for dark in DARK)
                self.pen.box(self._x(n), self._y(k), TILE, (red, green, blue))
                ink = (255, 255, 255) if share > 0.6 else INK
                self.pen.text(self._x(n) + TILE / 2, self._y(k) + TILE / 2, f"{100 * share:.0f}", "mm", 11, ink)

    def _x(self, column: int) -> int:
        return LEFT + column * (TILE + GAP)

    def _y(self, row: int) -> int:
        return TOP + row * (TILE + GAP)
