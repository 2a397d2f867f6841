"""Pictures for people: grids of samples, and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional

from genflow.files import atomic_file


def grid(images: Tensor, columns: int, *, scale: int = 1, gap: int = 4) -> Tensor:
    """Lay out uint8 images (N, C, H, W) row by row in one picture (C, H', W') on white.

    Each image is enlarged ``scale`` times, smoothly, since eyes read tiny digits badly as blocks; between images lie
    ``gap`` pixels. Places that N leaves empty stay white.
    """
    rows = -(-len(images) // columns)
    empty = images.new_full((rows * columns - len(images), *images.shape[1:]), 255)
    tiles = torch.cat([images, empty])
    if scale > 1:
        large = functional.interpolate(tiles.float(), scale_factor=scale, mode="bicubic", align_corners=False)
        tiles = large.round().clamp(0, 255).to(torch.uint8)
    tiles = functional.pad(tiles, (0, gap, 0, gap), value=255)
    return rearrange(tiles, "(r k) c h w -> c (r h) (k w)", k=columns)[:, : -gap or None, : -gap or None]


def write_image(path: Path | str, image: Tensor) -> None:
    """Write one uint8 image (C, H, W), grey or RGB, as a PNG, whole or not at all."""
    array = image.cpu().numpy()
    picture = Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0))
    with atomic_file(Path(path)) as partial:
        picture.save(partial, format="png")


def write_drawing(path: Path | str, image: Tensor) -> None:
    """Write one uint8 image (3, H, W) as a PNG of at most 48 colours, whole or not at all.

    A third of the size of ``write_image``'s, for drawings of few hues; photographs would lose theirs.
    """
    picture = Image.fromarray(image.cpu().numpy().transpose(1, 2, 0))
    # of Pillow's methods the one that leaves greys grey
    picture = picture.quantize(48, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    with atomic_file(Path(path)) as partial:
        picture.save(partial, format="png", optimize=True)


def read_image(path: Path) -> Tensor:
    """Read one PNG as uint8 (C, H, W)."""
    with Image.open(path) as picture:
        array = np.array(picture)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
