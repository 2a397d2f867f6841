"""Pictures for people: grids of samples, and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from genflow.files import atomic_file


def grid(images: Tensor, columns: int, *, scale: int = 1, gap: int = 1) -> Tensor:
    """Lay out uint8 images (N, C, H, W) row by row in one picture (C, H', W') on white.

    Each pixel becomes ``scale`` x ``scale`` pixels; between images lie ``gap`` pixels. Places that N leaves empty stay
    white.
    """
    rows = -(-len(images) // columns)
    empty = images.new_full((rows * columns - len(images), *images.shape[1:]), 255)
    tiles = torch.cat([images, empty]).repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    tiles = torch.nn.functional.pad(tiles, (0, gap, 0, gap), value=255)
    return rearrange(tiles, "(r k) c h w -> c (r h) (k w)", k=columns)[:, : -gap or None, : -gap or None]


def write_image(path: Path, image: Tensor) -> None:
    """Write one uint8 image (C, H, W), grey or RGB, as a PNG, whole or not at all."""
    array = image.cpu().numpy()
    picture = Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0))
    with atomic_file(path) as partial:
        picture.save(partial, format="png")


def read_image(path: Path) -> Tensor:
    """Read one PNG as uint8 (C, H, W)."""
    with Image.open(path) as picture:
        array = np.array(picture)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
