"""Zip files of images, in EDM's layout (nested folders and a ``dataset.json``) or with a sub-folder per class."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from genflow.data.building import Encoded, decode_once
from genflow.data.decoding import AS_STORED, Decoding
from genflow.data.digests import digest, digest_file
from genflow.data.images import ImageData, cache_folder
from genflow.data.labels import EDM_LABELS
from genflow.data.listing import is_image, list_images

_DAMAGED = (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)


def image_zip(
    file: str | Path, *, decoding: Decoding = AS_STORED, labels: str | Path = "", cache: Path | None = None
) -> ImageData:
    """Load a zip of png, jpg, jpeg, webp or bmp files through the cache; nothing is extracted.

    Read as ``image_folder`` reads a folder. Where all lies in one folder that itself holds sub-folders of images or
    a dataset.json, that folder is taken for the root.

    Shapes: images (N, C, H, W), a read-only memory map; labels (N,) or None.

    Raises:
        ValueError: no zip file, an encrypted or damaged member (up to ten are named), and what ``image_folder``
            refuses.
        RuntimeError: decoded images cannot be kept in the cache folder.
    """
    path = Path(file).expanduser()
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise ValueError(f"cannot read {path} as a zip file: {error}") from error
    with archive:
        members = _members(path, archive)
        root = _root(list(members))
        inside = {name.removeprefix(root): member for name, member in members.items()}
        files = [name for name in inside if is_image(name)]
        folders = {name.split("/")[0] for name in files if "/" in name}
        has_labels = EDM_LABELS in inside
        listing = list_images(
            str(path), files, folders, labels, (lambda name: _text(archive, path, inside[name])) if has_labels else None
        )

        def read(index: int) -> bytes:
            member = inside[listing.files[index]]
            try:
                return archive.read(member)
            except _DAMAGED as error:
                raise OSError(str(error)) from error

        kept = cache_folder(cache)
        whole = digest_file(path, kept)
        identity = digest(whole + "\0".join(listing.files).encode("utf-8", "surrogatepass")).hex()
        name = lambda index: f"{path}/{root}{listing.files[index]}"
        encoded = Encoded(str(path), len(listing.files), name, read, identity)
        images, key = decode_once(encoded, decoding, kept)
    return ImageData.labelled(images, listing.labels, listing.class_names, path.stem, key)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the images and labels of a zip by name."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if not is_image(info.filename) and info.filename.split("/")[-1] != EDM_LABELS:
            continue
        if info.flag_bits & 1:
            raise ValueError(f"{path} holds {info.filename} encrypted: pack it again without a password")
        if info.filename in members:
            raise ValueError(f"{path} holds {info.filename} twice: pack it again")
        members[info.filename] = info
    return members


def _root(names: Sequence[str]) -> str:
    """Return the folder that stands for the whole zip, with its slash, or ""."""
    tops = {name.split("/")[0] for name in names}
    if len(tops) != 1 or any("/" not in name for name in names):
        return ""
    top = f"{tops.pop()}/"
    below = [name.removeprefix(top) for name in names]
    nested = all("/" in name for name in below)
    return top if nested or EDM_LABELS in below else ""


def _text(archive: zipfile.ZipFile, path: Path, member: zipfile.ZipInfo) -> str:
    try:
        return archive.read(member).decode("utf-8-sig")
    except (*_DAMAGED, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {member.filename} in {path}: {error}") from error
