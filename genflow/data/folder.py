"""Folders of images, decoded once into a memory map that is used again the next time.

    FOLDER/cat/*.png, FOLDER/dog/*.jpg   sorted sub-folder names are the classes
    FOLDER/*.png                         unlabelled

The cache holds ``images.npy`` (N, C, H, W) uint8, ``labels.npy`` and ``meta.json`` under a name
made from the list of files with their sizes and times of change, so that a changed folder is
decoded anew. It is written under a temporary name and renamed: half a cache never exists under its
final name.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from tqdm import tqdm

from genflow.data.images import ImageData, cache_folder

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_LAYOUT = 1  # part of the cache's name: raise it when decoding changes
_THREADS = max(2, min(8, os.cpu_count() or 2))
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_GREY_MODES, _RGB_MODES = ("1", "L"), ("RGB", "P")
_SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class _Listing:
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Header:
    channels: int
    width: int
    height: int


def image_folder(folder: str | Path, *, size: int | None = None, cache: Path | None = None) -> ImageData:
    """Load a folder of png, jpg, jpeg, webp or bmp files through the cache.

    All grey gives C = 1, otherwise RGB. With ``size`` each image is cropped to its central square
    and resized with antialiasing (bicubic); without it all must have one size and one kind.
    Rotation stored in EXIF is ignored, hidden files are skipped.

    Shapes: images (N, C, H, W), a read-only memory map; labels (N,) or None.

    Args:
        folder: class sub-folders, or images directly inside.
        size: height and width in pixels.
        cache: where caches are kept (default ``cache_folder()``).

    Raises:
        ValueError: no images, both layouts at once, files that cannot be decoded (up to ten are
            named), several sizes or kinds without ``size``, transparency or 16-bit pixels.
    """
    root = Path(folder).expanduser()
    if size is not None and size < 1:
        raise ValueError(f"size={size} must be a positive number of pixels")
    listing = _list(root)
    kept = cache_folder(cache) / "folders" / f"{root.resolve().name}-{_key(root, listing, size)}"
    if not (kept / "meta.json").is_file():
        _build(root, listing, size, kept)
    images = np.load(kept / "images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(kept / "labels.npy", allow_pickle=False)
    meta = json.loads((kept / "meta.json").read_text(encoding="utf-8"))
    return ImageData(
        images,
        labels if meta["labelled"] else None,
        tuple(meta["class_names"]),
        root.resolve().name,
    )


def _list(root: Path) -> _Listing:
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    visible = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    loose = tuple(entry for entry in visible if _is_image(entry))
    classes = {entry.name: _images_below(entry) for entry in visible if entry.is_dir()}
    labelled = any(classes.values())
    if loose and labelled:
        first = next(name for name, files in classes.items() if files)
        raise ValueError(
            f"{root} holds images directly inside ({loose[0].name}) and in sub-folders ({first}): "
            "move all into class sub-folders, or none"
        )
    if loose:
        return _Listing(loose, None, ())
    if not labelled:
        raise ValueError(f"{root} holds no images (looked for {', '.join(SUFFIXES)})")
    if classes.keys() <= _SPLIT_NAMES:
        raise ValueError(
            f"{root} holds {', '.join(classes)}, which are parts of a data set rather than "
            f"classes: give one of them, for instance {root / next(iter(classes))}"
        )
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise ValueError(
            f"{root / empty[0]} holds no images (looked for {', '.join(SUFFIXES)}), but each "
            "sub-folder counts as a class: remove it or fill it"
        )
    files = tuple(file for below in classes.values() for file in below)
    labels = tuple(label for label, below in enumerate(classes.values()) for _ in below)
    return _Listing(files, labels, tuple(classes))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _images_below(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in folder.rglob("*") if _is_image(file)))


def _key(root: Path, listing: _Listing, size: int | None) -> str:
    stats = [(file, file.stat()) for file in listing.files]
    files = [(str(file.relative_to(root)), s.st_size, s.st_mtime_ns) for file, s in stats]
    identity = [_LAYOUT, str(root.resolve()), size, listing.class_names, files]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _build(root: Path, listing: _Listing, size: int | None, kept: Path) -> None:
    shape = _common_shape(root, listing.files, size)
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}-{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        _decode_into(root, listing.files, shape, size, temporary / "images.npy")
        np.save(temporary / "labels.npy", np.array(listing.labels or (), dtype=np.int64))
        meta = {
            "folder": str(root.resolve()),
            "size": size,
            "labelled": listing.labels is not None,
            "class_names": listing.class_names,
        }
        (temporary / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")
        try:
            temporary.rename(kept)
        except OSError:
            if not (kept / "meta.json").is_file():
                raise
            # Another process finished the same cache first: its files are equal, use them.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode_into(root: Path, files: tuple[Path, ...], shape: tuple[int, int, int], size: int | None, out: Path) -> None:
    images = np.lib.format.open_memmap(out, "w+", dtype=np.uint8, shape=(len(files), *shape))
    broken: list[str] = []
    decoded = _threaded(lambda file: _decode(file, shape[0], size), files)
    for index, pixels in enumerate(tqdm(decoded, "decoding", len(files), leave=False, disable=len(files) <= 2000)):
        if isinstance(pixels, str):
            broken.append(pixels)
        else:
            images[index] = pixels
    if broken:
        raise ValueError(_broken_message(root, broken))
    images.flush()


def _threaded(function: Callable[[Path], _Result], files: tuple[Path, ...]) -> Iterator[_Result]:
    """Results in order, computed by threads (Pillow lets go of the lock), a bounded way ahead."""
    chunk = 64 * _THREADS
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), chunk):
            yield from pool.map(function, files[start : start + chunk])


def _common_shape(root: Path, files: tuple[Path, ...], size: int | None) -> tuple[int, int, int]:
    """Channels, height and width of the whole set, from the headers alone."""
    headers: list[_Header] = []
    broken: list[str] = []
    for header in _threaded(_header, files):
        if isinstance(header, str):
            broken.append(header)
        else:
            headers.append(header)
    if broken:  # decode the others too, so that one message names all
        rest = _threaded(lambda file: _decode(file, 3, 1), files)
        raise ValueError(_broken_message(root, [text for text in rest if isinstance(text, str)]))
    channels = max(header.channels for header in headers)
    if size is not None:
        return channels, size, size
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if header != first:
            raise ValueError(
                f"{file} is {_words(header)}, but {files[0]} is {_words(first)}: images must agree "
                "in size and kind; --data.size 64 (or another number) centre-crops and resizes "
                "all, and turns grey into RGB where both occur"
            )
    return channels, first.height, first.width


def _words(header: _Header) -> str:
    return f"{header.width}x{header.height} {'grey' if header.channels == 1 else 'RGB'}"


def _header(file: Path) -> _Header | str:
    try:
        with Image.open(file) as image:
            channels, (width, height) = _channels(file, image), image.size
    except _Refused:
        raise
    except (*_BROKEN, Image.DecompressionBombError) as error:
        return _reason(file, error)
    return _Header(channels, width, height)


class _Refused(ValueError):
    """An image that is sound, but of a kind that is not taken."""


def _channels(file: Path, image: ImageFile.ImageFile) -> int:
    """One for grey, three for colour; refuses what has no exact uint8 equivalent."""
    sixteen_bit = any(_raw_mode(tile[3]).endswith((";16B", ";16L", ";16N")) for tile in image.tile)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        raise _Refused(
            f"{file} has transparency (mode {image.mode}): flatten it onto a background first, "
            "for instance  magick FILE -background white -flatten FILE"
        )
    if image.mode in _GREY_MODES and not sixteen_bit:
        return 1
    if image.mode in _RGB_MODES and not sixteen_bit:
        return 3
    depth = " with 16 bits a channel" if sixteen_bit else ""
    raise _Refused(
        f"{file} has mode {image.mode}{depth}: convert it to 8-bit grey or RGB first, "
        "for instance  magick FILE -depth 8 -colorspace sRGB FILE"
    )


def _raw_mode(arguments: tuple[object, ...] | str | None) -> str:
    """How the file stores pixels: Pillow keeps it alone or first in a tile's arguments."""
    return str(arguments[0]) if isinstance(arguments, tuple) and arguments else str(arguments)


def _decode(file: Path, channels: int, size: int | None) -> npt.NDArray[np.uint8] | str:
    try:
        with Image.open(file) as image:
            flat = image.convert("L" if channels == 1 else "RGB")
    except (*_BROKEN, Image.DecompressionBombError) as error:
        return _reason(file, error)
    if size is not None:
        side = min(flat.size)
        left, top = (flat.width - side) // 2, (flat.height - side) // 2
        square = flat.crop((left, top, left + side, top + side))
        flat = square.resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(flat, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _reason(file: Path, error: BaseException) -> str:
    unknown = isinstance(error, Image.UnidentifiedImageError)
    return f"{file} ({'not an image' if unknown else error})"


def _broken_message(root: Path, broken: list[str]) -> str:
    named = "; ".join(broken[:10])
    more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
    return f"{len(broken)} of the files in {root} cannot be decoded, repair or remove them: {named}{more}"
