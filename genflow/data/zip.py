"""Zip files of images, in EDM's layout (nested folders and a ``dataset.json``) or with a sub-folder per class."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from genflow.data.building import Encoded, decode_once
from genflow.data.decoding import AS_STORED, Decoding
from genflow.data.digests import digest, digest_file, file_state
from genflow.data.images import ImageData, cache_folder
from genflow.data.labels import EDM_LABELS
from genflow.data.listing import is_hidden, is_image, list_images
from genflow.data.paths import expanded, shown

_UTF_8 = 0x800  # the flag that marks a name as such
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)


def image_zip(
    file: str | Path, *, decoding: Decoding = AS_STORED, labels: str | Path = "", cache: Path | None = None
) -> ImageData:
    """Load a zip of png, jpg, jpeg, jfif, webp or bmp files through the cache; nothing is extracted.

    Read as ``image_folder`` reads a folder. Where all images and labels lie in one folder, that folder is the root.

    Shapes: images (N, C, H, W), a read-only memory map; labels (N,) or None.

    Raises:
        ValueError: no zip file, an encrypted or damaged member (up to ten are named), and what ``image_folder``
            refuses.
        RuntimeError: decoded images cannot be kept in the cache folder.
    """
    path, kept = expanded(file), cache_folder(cache)
    state = file_state(path)
    whole = digest_file(path, kept)  # before it is opened: what is read is what was digested if its state stays
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(path.open("rb"))
            archive = stack.enter_context(zipfile.ZipFile(opened))
        except _DAMAGED as error:
            raise ValueError(f"cannot read {path} as a zip file: {error}") from error

        def check() -> None:
            if not (state == file_state(path) == file_state(opened.fileno())):
                raise ValueError(f"{path} changed while it was read: load it again when it has been written")

        check()
        members = _members(path, archive)
        root = _root(list(members))
        inside = {name.removeprefix(root): member for name, member in members.items()}
        folders = {name.split("/")[0] for name in inside if "/" in name and is_image(name)}
        has_labels = EDM_LABELS in inside
        listing = list_images(
            str(path),
            inside,
            folders,
            labels,
            (lambda name: _text(archive, path, inside[name])) if has_labels else None,
        )

        def read(index: int) -> bytes:
            member = inside[listing.files[index]]
            try:
                return archive.read(member)
            except _DAMAGED as error:
                raise OSError(str(error)) from error

        identity = digest(whole + "\0".join(listing.files).encode("utf-8", "surrogatepass")).hex()
        name = lambda index: f"{path}/{root}{listing.files[index]}"
        encoded = Encoded(str(path), len(listing.files), name, read, identity, check)
        found, key = decode_once(encoded, decoding, kept)
    return ImageData.labelled(*found, listing.labels, listing.class_names, path.stem, key)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the files of a zip that are not hidden by name."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = _name(info)
        if name.endswith("/") or any(is_hidden(part) for part in name.split("/")):
            continue
        if is_image(name) or name.split("/")[-1] == EDM_LABELS:
            if info.flag_bits & 1:
                raise ValueError(f"{path} holds {shown(name)} encrypted: pack it again without a password")
            if name in members:
                raise ValueError(f"{path} holds {shown(name)} twice: pack it again")
        members[name] = info
    return members


def _name(info: zipfile.ZipInfo) -> str:
    """Return a member's name where packers break the rules: UTF-8 that is not marked so, backslashes for slashes."""
    name = info.filename
    if not info.flag_bits & _UTF_8:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name if "/" in name else name.replace("\\", "/")


def _root(names: Sequence[str]) -> str:
    """Return the folder that all images and labels lie in, with its slash, or ""."""
    used = [name for name in names if is_image(name) or name.split("/")[-1] == EDM_LABELS]
    tops = {name.split("/")[0] for name in used}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in used) else ""


def _text(archive: zipfile.ZipFile, path: Path, member: zipfile.ZipInfo) -> str:
    try:
        return archive.read(member).decode("utf-8-sig")
    except (*_DAMAGED, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {member.filename} in {path}: {error}") from error
