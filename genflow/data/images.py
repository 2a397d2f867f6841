"""Images in memory: one record for every source."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from genflow.data.decoding import AS_STORED, Decoding
from genflow.data.listing import is_image
from genflow.data.paths import expanded, on_disk_source
from genflow.data.provenance import ARRAYS, Provenance, Stored

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
        content: what names the content of ``images``, in hexadecimal, where it is known already (the key of a cache);
            "" has their bytes read when it is asked for. It goes with the images: give others, leave it out.
        stored: how the images lay on the disk, and whether they were resized. It is no part of the fingerprint.

    Raises:
        ValueError: a dtype, shape or label is not as above.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    name: str
    content: str = ""
    stored: Stored = ARRAYS

    @classmethod
    def labelled(
        cls,
        images: npt.NDArray[np.uint8],
        stored: Stored,
        labels: Sequence[int] | npt.NDArray[np.int64] | None,
        class_names: tuple[str, ...],
        name: str,
        content: str,
    ) -> ImageData:
        """Make a record of labels in any sequence."""
        numbers = None if labels is None else np.asarray(labels, np.int64)
        return cls(images, numbers, class_names, name, content, stored)

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
    def provenance(self) -> Provenance:
        """How the images lay on the disk, and what was done to them since."""
        return Provenance.after(self.stored, self.images.shape[1])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 when unlabelled."""
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """What names this set's images (in their order), labels and class names, in hexadecimal, wherever they lie.

        Equal for equal sets from sources of one kind; a set read through the cache differs from its copy in memory.
        """
        state = hashlib.blake2b(digest_size=16)
        state.update(json.dumps([self.content, self.images.shape, self.class_names]).encode())
        if not self.content:
            state.update(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            state.update(np.ascontiguousarray(self.labels, "<i8").data)
        return state.hexdigest()

    def subset(self, indices: npt.ArrayLike) -> ImageData:
        """The images at the given places, in that order, copied into memory; with the whole set's provenance.

        Args:
            indices: (M,) integers or (N,) booleans.
        """
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return dataclasses.replace(self, images=np.asarray(self.images[chosen]), labels=labels, content="")

    def of_classes(self, classes: Sequence[int]) -> ImageData:
        """The images of some classes, copied into memory; the classes are renumbered from 0, in their old order.

        So it is a set like any other, whose name tells which classes are left.

        Raises:
            ValueError: the set has no labels, or not these classes.
        """
        wanted = sorted(set(classes))
        if self.labels is None:
            raise ValueError(f"{self.name} has no labels: classes cannot be chosen from it")
        if not wanted or wanted[0] < 0 or wanted[-1] >= self.num_classes:
            raise ValueError(f"{self.name} has classes 0 to {self.num_classes - 1}, and was asked for {wanted}")
        found = self.subset(np.isin(self.labels, wanted))
        return dataclasses.replace(
            found,
            labels=np.searchsorted(wanted, self.labels[np.isin(self.labels, wanted)]).astype(np.int64),
            class_names=tuple(self.class_names[c] for c in wanted),
            name=f"{self.name}, classes {' '.join(map(str, wanted))}",
        )


def classes_in(name: str) -> tuple[int, ...]:
    """Return which classes ``of_classes`` left of the set that has this name; () if that tells of none."""
    found = re.search(r", classes ((?:\d+ )*\d+)$", name)
    return tuple(map(int, found[1].split())) if found else ()


def cache_folder(cache: Path | None = None) -> Path:
    """Where decoded data are kept: ``cache``, else $GENFLOW_CACHE, else ``~/.cache/genflow``."""
    if cache is not None:
        return Path(cache)
    named = os.environ.get("GENFLOW_CACHE")
    return expanded(named) if named else Path.home() / ".cache" / "genflow"


def load_images(
    source: str | Path,
    split: Split = "train",
    *,
    decoding: Decoding = AS_STORED,
    labels: str | Path = "",
    cache: Path | None = None,
) -> ImageData:
    """Load images by embedded name, from a folder, a zip or ``.npz`` file, or from a data set of the hub.

    Args:
        source: ``digits``, ``mnist5k`` or ``shapes``; a folder or ``.zip`` of images (one sub-folder a class, or
            labelled by a file, or unlabelled); a ``.npz`` file with ``images`` (N, H, W, C) or (N, C, H, W) uint8
            (or ``arr_0``) and optionally ``labels`` (N,); ``hf:NAME`` or ``hf:./PATH`` (see ``hub``). A folder named
            like an embedded set: ``./digits``.
        split: train or held-out (``test``) part of embedded data and of data sets that have one. Folders and files
            are one set: ``train`` and ``all`` both give the whole, ``test`` is refused.
        decoding: how image files become pixels; ``mnist5k`` is resized as they are. What else is stored as pixels
            (other embedded sets, ``.npz``) is not converted, and refused if it is not as asked for.
        labels: file that labels a folder's or zip's images (EDM's dataset.json, or a CSV of file,label).
        cache: where decoded images are kept (default ``cache_folder()``).

    Raises:
        ValueError: the source, split, labels or images do not exist or fit.
        RuntimeError: a package of the extra ``demo`` or ``data`` is missing, the hub does not give the data set, or
            decoded images cannot be kept.
    """
    # These modules build ImageData, so they import this one; hence not at the top.
    from genflow.data import embedded, folder, hub, npz, shapes, zip

    if split not in ("train", "test", "all"):
        raise ValueError(f"split {split!r} is not one of 'train', 'test', 'all'")
    path = expanded(source)
    is_zip = path.suffix.lower() == ".zip" and path.is_file()
    if labels and (source in EMBEDDED or not (path.is_dir() or is_zip)):
        raise ValueError(f"a file of labels goes with a folder or zip of images, and {str(source)!r} is none")
    match source:
        case "digits":
            return _stored(embedded.digits(split), decoding)
        case "mnist5k":
            size = decoding.size or embedded.MNIST_SIDE
            return _stored(embedded.mnist5k(split, size=size, cache=cache), decoding)
        case "shapes":
            return _stored(shapes.shapes_split(split), decoding)
        case str() if source.startswith(hub.PREFIX):
            return hub.hub_images(source, split, decoding=decoding, cache=cache)
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() in (".npz", ".zip")):
        raise ValueError(_unknown_source(source, path))
    if split == "test":
        raise ValueError(
            f"{path} has no held-out split: keep test images in a folder or file of their own and give its path"
        )
    if path.is_dir() and any((path / name).is_file() for name in hub.SAVED):
        raise ValueError(f"{path} is a data set that save_to_disk wrote: give {on_disk_source(source)}")
    if path.is_dir():
        return folder.image_folder(path, decoding=decoding, labels=labels, cache=cache)
    if is_zip:
        return zip.image_zip(path, decoding=decoding, labels=labels, cache=cache)
    return _stored(npz.image_npz(path), decoding)


def _unknown_source(source: str | Path, path: Path) -> str:
    if path.suffix.lower() == ".parquet" and path.is_file():
        return f"{path} is a data set in parquet: give {on_disk_source(source)}"
    if is_image(path.name) and path.is_file():
        return f"{path} is one image: give the folder that it lies in"
    if path.is_file():
        return f"{path} is a file, but neither .zip nor .npz: give one of these, or a folder of images"
    near = difflib.get_close_matches(str(source), EMBEDDED, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return (
        f"no images called {str(source)!r}{hint} (embedded: {', '.join(EMBEDDED)};"
        " or give an existing folder, of images or of pairs (see genflow pairs), or .zip"
        " of images, a .npz file, or hf:NAME)"
    )


def _stored(data: ImageData, decoding: Decoding) -> ImageData:
    """Refuse pixels that are not as asked for."""
    channels, height, width = data.image_shape
    if decoding.size is not None and (height, width) != (decoding.size, decoding.size):
        raise ValueError(
            f"{data.name} holds {height}x{width} images and is not resized: leave out size={decoding.size}, "
            "or export the images to a folder (folders are resized)"
        )
    if decoding.channels not in (0, channels):
        raise ValueError(
            f"{data.name} holds images of {channels} channel{'s' * (channels > 1)} and is not converted: "
            f"leave out channels={decoding.channels}, or export the images to a folder (folders are converted)"
        )
    return data
