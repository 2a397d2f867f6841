"""Folders of images.

FOLDER/cat/*.png, FOLDER/dog/*.jpg   sorted sub-folder names are the classes
FOLDER/*.png                         unlabelled
FOLDER/dataset.json                  EDM's labels, whatever the sub-folders
"""

from __future__ import annotations

import os
from pathlib import Path

from genflow.data.building import Encoded, decode_once
from genflow.data.cache import Kept
from genflow.data.decoding import AS_STORED, Decoding
from genflow.data.digests import Changed, digest, digest_files, forget
from genflow.data.images import ImageData, cache_folder
from genflow.data.labels import EDM_LABELS, read_labels_file
from genflow.data.listing import Listing, is_hidden, is_image, list_images
from genflow.data.paths import expanded, shown


def image_folder(
    folder: str | Path, *, decoding: Decoding = AS_STORED, labels: str | Path = "", cache: Path | None = None
) -> ImageData:
    """Load a folder of png, jpg, jpeg, jfif, webp or bmp files through the cache, which knows them by content.

    Hidden files are skipped, images of other formats left out with a line on stderr. Images must agree in size and
    channels, as they are or as ``decoding`` makes them.

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
    root = expanded(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    files, folders = _walk(root)
    own_labels = (root / EDM_LABELS).is_file()
    listing = list_images(
        str(root), files, folders, labels, (lambda name: read_labels_file(root / name)) if own_labels else None
    )
    kept = cache_folder(cache)
    try:
        found, key = _decode(root, listing, decoding, kept, Changed("it changed while it was read"))
    except Changed:  # since the last time, unseen, or this very moment
        forget(root, kept)
        found, key = _decode(root, listing, decoding, kept, OSError("it changed while it was read"))
    return ImageData.labelled(*found, listing.labels, listing.class_names, root.resolve().name, key)


def _decode(root: Path, listing: Listing, decoding: Decoding, cache: Path, changed: Exception) -> tuple[Kept, str]:
    """Return the images, what they were and their key; raise ``changed`` where a file is not what its digest says."""
    held: dict[int, bytes] = {}
    digests = digest_files(root, listing.files, cache, held)

    def name(index: int) -> str:
        return os.path.join(root, listing.files[index])

    def read(index: int) -> bytes:
        content = held.pop(index, None)
        if content is not None:
            return content
        with open(name(index), "rb", buffering=0) as file:
            content = file.read()
        if digest(content) != digests[index].tobytes():
            raise changed
        return content

    encoded = Encoded(str(root), len(listing.files), name, read, digest(digests.tobytes()).hex())
    return decode_once(encoded, decoding, cache)


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Return the relative paths of all files below a folder that are not hidden, and the names of its sub-folders.

    Links to folders are followed, except to one that they lie in.
    """
    files: list[str] = []
    folders: list[str] = []

    def walk(inner: str, above: frozenset[tuple[int, int]]) -> None:
        for entry in [entry for entry in os.scandir(os.path.join(root, inner)) if not is_hidden(entry.name)]:
            path = f"{inner}{entry.name}"
            if entry.is_dir():
                stat = os.stat(entry.path)
                if (stat.st_dev, stat.st_ino) not in above:
                    folders.append(path)
                    walk(f"{path}/", above | {(stat.st_dev, stat.st_ino)})
            elif entry.is_file():
                files.append(path)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                if not is_image(path):  # an image is named with the others that cannot be read
                    raise ValueError(f"{shown(entry.path)} is a link to nothing: remove or mend it")
                files.append(path)

    try:
        stat = os.stat(root)
        walk("", frozenset({(stat.st_dev, stat.st_ino)}))
    except OSError as error:
        raise ValueError(f"cannot list {error.filename}: {error.strerror}") from error
    return files, [folder for folder in folders if "/" not in folder]
