"""What images were before they were pixels of one kind: figures depend on it, and pixels do not tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_LOOKED_AT = 256  # images that stand for all, where each is looked at pixel by pixel


@dataclass(frozen=True)
class Stored:
    """How a set of images lay on the disk, and whether it was resized when read.

    Args:
        codec: png, jpeg, webp or bmp, by the content of the files and not by their names; several in alphabetical
            order, joined by "+"; "raw" for arrays and for what a model made.
        kinds: kinds of pixels in the files, in alphabetical order: grey, rgb, palette, cmyk, black and white; with
            "16 bit" or "transparent" behind it where that holds, such as "rgb 16 bit". What is opaque everywhere is
            not transparent. () for arrays.
        sides: shortest and longest side of any file in pixels; None for arrays.
        resize: "none", or such as "bicubic antialiased 64x64" where any image was cropped or resized.
    """

    codec: str = "raw"
    kinds: tuple[str, ...] = ()
    sides: tuple[int, int] | None = None
    resize: str = "none"

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Stored:
        """Read what ``dataclasses.asdict`` and JSON made of one.

        Raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else.
        """
        sides = record["sides"]
        if sides is not None:
            short, long = map(int, sides)
            sides = (short, long)
        return cls(str(record["codec"]), tuple(map(str, record["kinds"])), sides, str(record["resize"]))


ARRAYS = Stored()


@dataclass(frozen=True, kw_only=True)
class Provenance(Stored):
    """What is known of a set in memory, besides its pixels.

    Args:
        colour: what it has now, grey or rgb; with " + converted" where any file was of another kind.
    """

    colour: str

    @classmethod
    def after(cls, stored: Stored, channels: int) -> Provenance:
        """Return what is known of files that were read as images of 1 or 3 channels."""
        now = "grey" if channels == 1 else "rgb"
        colour = now if set(stored.kinds) <= {now} else f"{now} + converted"
        return cls(stored.codec, stored.kinds, stored.sides, stored.resize, colour=colour)


def is_grey(images: npt.NDArray[np.uint8]) -> bool:
    """Tell whether images (N, C, H, W) show no colour: one channel, or three that are equal in every pixel.

    At most 256 images, spread evenly over the set, are looked at; one in colour settles it.
    """
    if images.shape[1] == 1:
        return True
    chosen = np.unique(np.linspace(0, max(len(images) - 1, 0), _LOOKED_AT).astype(np.int64)) if len(images) else []
    return all(bool((images[k][1:] == images[k][:1]).all()) for k in chosen)
