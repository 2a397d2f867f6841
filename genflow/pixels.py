"""The one rule between the two forms of an image: uint8 in files and statistics, [-1, 1] in networks."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1]: ``k / 127.5 - 1``."""
    return images.to(torch.float32) / 127.5 - 1


def quantize(x: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8, rounded to the nearest value and clipped: ``floor(127.5 x + 128)``.

    The inverse of ``to_unit`` for all 256 values. Source: the rule of EDM's sampling script, arXiv 2206.00364.
    """
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)
