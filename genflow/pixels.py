"""The one rule between the two forms of an image: uint8 in files and statistics, [-1, 1] in networks."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """Bytes to numbers: x = k / 127.5 - 1.

    Shapes: any shape, uint8 to float32 in [-1, 1].

    Raises:
        ValueError: the tensor is not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"to_unit takes uint8 images 0..255, got {images.dtype}")
    return images.to(torch.float32) / 127.5 - 1


def quantize(x: Tensor) -> Tensor:
    """Numbers to the nearest byte: k = floor(127.5 x + 128), clipped to 0..255.

    The exact inverse of ``to_unit``; the rounding of EDM's generator ("Elucidating the Design Space
    of Diffusion-Based Generative Models", arXiv 2206.00364).

    Shapes: any shape, floating point (nominally in [-1, 1]) to uint8.

    Raises:
        ValueError: the tensor is not floating point.
    """
    if not x.is_floating_point():
        raise ValueError(f"quantize takes floating-point images in [-1, 1], got {x.dtype}")
    return (x.to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
