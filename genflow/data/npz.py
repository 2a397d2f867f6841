"""Images as arrays in a ``.npz`` file."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from genflow.data.images import ImageData
from genflow.data.labels import number_classes

DAMAGED_NPZ = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, OverflowError, MemoryError, NotImplementedError),
    *(RuntimeError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise for ``.npz`` files that are damaged, of whatever kind."""


def image_npz(path: Path) -> ImageData:
    """Load ``images`` (N, H, W, C) or (N, C, H, W) uint8, C = 1 or 3, and ``labels`` (N,) 0 … K - 1 if there are any.

    Without ``images`` it is ``arr_0``, as numpy calls an array that was given no name: ADM's sample files have theirs
    there (arXiv 2105.05233). Raises ``ValueError`` for a file that cannot be read or holds other arrays.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            name = "images" if "images" in file.files else "arr_0"
            if name not in file.files:
                raise ValueError(f"it holds {file.files}, but no array named 'images'")
            images = file[name]
            labels = file["labels"] if "labels" in file.files else None
    except DAMAGED_NPZ as error:
        told = str(error) or type(error).__name__
        raise ValueError(f"cannot read images from {path}: {told}") from error
    if images.dtype.kind == "f":
        raise ValueError(
            f"{path}: {name!r} holds {images.dtype} numbers, but images are trained on and measured as uint8: write"
            " floor(127.5 x + 128) clipped to 0..255 where x is in [-1, 1] (genflow.pixels.quantize does), or"
            " floor(255 x + 0.5) where it is in [0, 1]"
        )
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{path}: {name!r} must be uint8 (N, H, W, C) or (N, C, H, W), got {images.dtype} {images.shape}"
        )
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise ValueError(f"{path}: {name!r} {images.shape} must have 1 or 3 channels either second or last")
    if 0 in images.shape:
        raise ValueError(f"{path}: {name!r} {images.shape} holds no pixels")
    if last:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if labels is None:
        return ImageData(images, None, (), path.stem)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(f"{path}: 'labels' must be integers (N,), got {labels.dtype}")
    if len(labels) != len(images):
        raise ValueError(f"{path}: there are {len(images)} images, but {len(labels)} labels")
    numbers, names = number_classes(labels.tolist(), str(path))
    return ImageData(images, np.array(numbers, np.int64), names, path.stem)
