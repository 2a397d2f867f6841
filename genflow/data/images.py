"""Images in memory: one record for every source."""

import dataclasses
import difflib
import os
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "test", "all"]
EMBEDDED = ("digits", "mnist5k", "shapes")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """A set of images, all of one shape, with or without labels.

    Shapes: ``images`` (N, C, H, W) uint8, an array or a read-only memory map; ``labels`` (N,) int64
    or None. Index ``images`` with an integer array to get a writable copy for torch.

    Args:
        images: pixel values 0..255.
        labels: class of each image, 0 <= label < num_classes; None when unlabelled.
        class_names: one name a class; empty when unlabelled.
        name: what to call this set in reports, for instance ``digits-train``.

    Raises:
        ValueError: a dtype, shape or label is not as above.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"{self.name}: images must be uint8 (N, C, H, W), got {self.images.dtype} {self.images.shape}"
            )
        if self.labels is None:
            if self.class_names:
                raise ValueError(f"{self.name}: class names were given, but no labels")
            return
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.images),):
            raise ValueError(
                f"{self.name}: labels must be int64 ({len(self.images)},), got {self.labels.dtype} {self.labels.shape}"
            )
        outside = (self.labels < 0) | (self.labels >= len(self.class_names))
        if outside.any():
            raise ValueError(
                f"{self.name}: label {self.labels[outside][0]} of image {int(outside.argmax())} is "
                f"out of range, {self.num_classes} classes allow 0..{self.num_classes - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 when unlabelled."""
        return len(self.class_names)

    def subset(self, indices: npt.ArrayLike) -> "ImageData":
        """The images at the given places, in that order, copied into memory.

        Args:
            indices: (M,) integers or (N,) booleans.
        """
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return dataclasses.replace(self, images=np.asarray(self.images[chosen]), labels=labels)


def cache_folder(cache: Path | None = None) -> Path:
    """Where decoded data are kept: ``cache``, else $GENFLOW_CACHE, else ``~/.cache/genflow``."""
    if cache is not None:
        return Path(cache)
    named = os.environ.get("GENFLOW_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "genflow"


def load_images(
    source: str | Path,
    split: Split = "train",
    *,
    size: int | None = None,
    cache: Path | None = None,
) -> ImageData:
    """Load images by embedded name, from an image folder or from a ``.npz`` file.

    Args:
        source: ``digits``, ``mnist5k`` or ``shapes``; a folder (one sub-folder a class, or images
            directly inside); or a ``.npz`` file with ``images`` (N, H, W, C) or (N, C, H, W) uint8
            and optionally ``labels`` (N,). A folder named like an embedded set: ``./digits``.
        split: train or held-out (``test``) part of embedded data. Folders and files are one set:
            ``train`` and ``all`` both give the whole, ``test`` is refused.
        size: height and width in pixels; a folder's images are centre-cropped and resized to it.
        cache: where decoded images are kept (default ``cache_folder()``).

    Raises:
        ValueError: the source, split or size does not exist or fit.
        RuntimeError: a package of the extra ``demo`` is missing.
    """
    # These modules build ImageData, so they import this one; hence not at the top.
    from genflow.data import embedded, folder, shapes

    if split not in ("train", "test", "all"):
        raise ValueError(f"split {split!r} is not one of 'train', 'test', 'all'")
    match source:
        case "digits":
            return _of_size(embedded.digits(split), size)
        case "mnist5k":
            return _of_size(embedded.mnist5k(split, cache=cache), size)
        case "shapes":
            return _of_size(shapes.shapes_split(split), size)
    path = Path(source).expanduser()
    if not path.is_dir() and not (path.is_file() and path.suffix == ".npz"):
        raise ValueError(_unknown_source(source, path))
    if split == "test":
        raise ValueError(
            f"{path} has no held-out split: keep test images in a folder or file of their own and give its path"
        )
    if path.is_dir():
        return folder.image_folder(path, size=size, cache=cache)
    return _of_size(_npz(path), size)


def _unknown_source(source: str | Path, path: Path) -> str:
    if path.is_file():
        return f"{path} is a file, but not a .npz file: give a .npz file or a folder of images"
    near = difflib.get_close_matches(str(source), EMBEDDED, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return (
        f"no images called {str(source)!r}{hint} (embedded: {', '.join(EMBEDDED)}; or give an "
        "existing folder of images, or a .npz file)"
    )


def _of_size(data: ImageData, size: int | None) -> ImageData:
    _, height, width = data.image_shape
    if size is not None and (height, width) != (size, size):
        raise ValueError(
            f"{data.name} holds {height}x{width} images and is not resized: leave out size={size}, "
            "or export the images to a folder (folders are resized)"
        )
    return data


def _npz(path: Path) -> ImageData:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if "images" not in file.files:
                raise ValueError(f"it holds {file.files}, but no array named 'images'")
            images = file["images"]
            labels = file["labels"] if "labels" in file.files else None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read images from {path}: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{path}: 'images' must be uint8 (N, H, W, C) or (N, C, H, W), got {images.dtype} {images.shape}"
        )
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise ValueError(f"{path}: 'images' {images.shape} must have 1 or 3 channels either second or last")
    if last:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if labels is None:
        return ImageData(images, None, (), path.stem)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(f"{path}: 'labels' must be integers (N,), got {labels.dtype}")
    classes = int(labels.max()) + 1 if len(labels) else 0
    names = tuple(str(label) for label in range(classes))
    return ImageData(images, labels.astype(np.int64), names, path.stem)
