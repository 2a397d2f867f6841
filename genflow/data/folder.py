"""Folders of images.

FOLDER/cat/*.png, FOLDER/dog/*.jpg   sorted sub-folder names are the classes
FOLDER/*.png                         unlabelled
FOLDER/dataset.json                  EDM's labels, whatever the sub-folders
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from genflow.data.building import Encoded, decode_once
from genflow.data.decoding import AS_STORED, Decoding
from genflow.data.digests import digest, digest_files
from genflow.data.images import ImageData, cache_folder
from genflow.data.labels import EDM_LABELS, read_labels_file
from genflow.data.listing import is_image, list_images


def image_folder(
    folder: str | Path, *, decoding: Decoding = AS_STORED, labels: str | Path = "", cache: Path | None = None
) -> ImageData:
    """Load a folder of png, jpg, jpeg, webp or bmp files through the cache, which knows them by content.

    Hidden files are skipped. Images must agree in size and channels, as they are or as ``decoding`` makes them.

    Shapes: images (N, C, H, W), a read-only memory map; labels (N,) or None.

    Args:
        folder: class sub-folders, or images directly inside; any layout where a file labels them.
        decoding: how image files become pixels.
        labels: file of labels (EDM's dataset.json, or a CSV of file,label); "" uses the folder's own dataset.json,
            else its sub-folders.
        cache: where caches are kept (default ``cache_folder()``).

    Raises:
        ValueError: no images, a layout or labels that do not fit, files that cannot be decoded (up to ten are named),
            images that differ or need an option of ``decoding``.
        RuntimeError: decoded images cannot be kept in the cache folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    files, folders = _walk(root)
    own_labels = (root / EDM_LABELS).is_file()
    listing = list_images(
        str(root), files, folders, labels, (lambda name: read_labels_file(root / name)) if own_labels else None
    )
    kept = cache_folder(cache)
    held: dict[int, bytes] = {}
    digests = digest_files(root, listing.files, kept, held)

    def name(index: int) -> str:
        return os.path.join(root, listing.files[index])

    def read(index: int) -> bytes:
        content = held.pop(index, None)
        if content is not None:
            return content
        with open(name(index), "rb", buffering=0) as file:
            content = file.read()
        if digest(content) != digests[index].tobytes():
            raise OSError("it changed while it was read")
        return content

    encoded = Encoded(str(root), len(listing.files), name, read, digest(digests.tobytes()).hex())
    images, key = decode_once(encoded, decoding, kept)
    return ImageData.labelled(images, listing.labels, listing.class_names, root.resolve().name, key)


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Return the relative paths of all images below a folder, and the names of its sub-folders."""
    try:
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
        folders = [entry.name for entry in entries if entry.is_dir()]
        files = [entry.name for entry in entries if entry.is_file()]
        below = [f"{folder}/{file}" for folder in folders for file in _files_below(root / folder)]
    except OSError as error:
        raise ValueError(f"cannot list {error.filename}: {error.strerror}") from error
    return [file for file in (*files, *below) if is_image(file)], folders


def _files_below(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise error

    for place, _, files in os.walk(folder, onerror=refuse):
        inner = Path(place).relative_to(folder)
        yield from ((inner / file).as_posix() for file in files)
