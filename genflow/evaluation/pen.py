"""Lines, letters and tiles of pictures, drawn larger than they are shown: smooth without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FINE = 3  # drawn so many times larger, then reduced
INK, GREY = (30, 30, 34), (110, 110, 116)
Colour = tuple[int, int, int]


def canvas(width: int, height: int) -> Image.Image:
    """Return white paper for a picture of this size."""
    return Image.new("RGB", (width * FINE, height * FINE), "white")


def finished(picture: Image.Image) -> Tensor:
    """Return what was drawn at its size: uint8 (3, H, W)."""
    size = (picture.width // FINE, picture.height // FINE)
    small = picture.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small).transpose(2, 0, 1).copy())


@final
class Pen:
    """Draws on paper from a corner on, in units of final pixels."""

    def __init__(self, picture: Image.Image, corner: tuple[int, int] = (0, 0)) -> None:
        self._picture, self._corner, self._draw = picture, corner, ImageDraw.Draw(picture)

    def text(self, x: float, y: float, text: str, anchor: str, size: int, colour: Colour = INK) -> None:
        """Write text; `anchor` is Pillow's, such as "lm" for left and middle."""
        self._draw.text(self._place(x, y), text, colour, ImageFont.load_default(size * FINE), anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        """Draw a line through points."""
        self._draw.line([self._place(*point) for point in points], colour, round(width * FINE), "curve")

    def box(self, x: float, y: float, side: float, colour: Colour) -> None:
        """Fill a square, whose corner is at the upper left."""
        left, top = self._place(x, y)
        self._draw.rectangle((left, top, left + side * FINE - 1, top + side * FINE - 1), colour)

    def tile(self, x: float, y: float, image: Tensor, side: int) -> None:
        """Show an image (C, H, W) uint8, grey or RGB, in a square, enlarged smoothly."""
        array = image.cpu().numpy()
        tile = Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).convert("RGB")
        tile = tile.resize((side * FINE, side * FINE), Image.Resampling.BICUBIC)
        where = self._place(x, y)
        self._picture.paste(tile, (round(where[0]), round(where[1])))

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return (self._corner[0] + x) * FINE, (self._corner[1] + y) * FINE
