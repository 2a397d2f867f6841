"""Many encoded images into one memory map of pixels: decoded once, by threads, and kept in the cache."""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from genflow.data.cache import IMAGES, keep, write_meta
from genflow.data.decoding import DECODER, Broken, Decoding, Refused, decode
from genflow.data.digests import digest

_THREADS = max(2, min(8, os.cpu_count() or 2))
_AHEAD = _THREADS + 2  # groups of images at work at once, which bounds the memory
_GROUP_BYTES = 2**19  # pixels of a group: threads cost more than they bring if each task is one small image

_Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Image files yet to be decoded.

    Args:
        where: their folder, zip or data set, for messages.
        count: how many.
        name: what to call image k in messages (a list of a million paths would take a lot of memory).
        read: the bytes of image k; raises ``OSError`` if they cannot be had. Called by threads.
        identity: what names their content, in hexadecimal: other bytes, another identity.
    """

    where: str
    count: int
    name: Callable[[int], str]
    read: Callable[[int], bytes]
    identity: str


def decode_once(encoded: Encoded, decoding: Decoding, cache: Path) -> tuple[_Pixels, str]:
    """Return all images (N, C, H, W), a read-only memory map, and the key that they are kept under.

    The key is a digest of the images' content and of ``decoding``. Images that are in the cache are not decoded again.

    Raises:
        ValueError: images that cannot be decoded (all are counted, ten named), differ in size or channels, or need
            an option.
        RuntimeError: there is no room for them in the cache folder, or it cannot be written.
    """
    key = digest(json.dumps([DECODER, encoded.identity, dataclasses.astuple(decoding)]).encode()).hex()
    try:
        return keep(cache / "images" / key, lambda folder: _decode_into(folder, encoded, decoding)), key
    except OSError as error:
        raise RuntimeError(
            f"cannot keep the {_bytes_needed(encoded, decoding):,} bytes of decoded images of {encoded.where} in the"
            f" cache folder {cache} ({error.strerror or error}): make room there, or set the environment variable"
            " GENFLOW_CACHE to a folder that can be written and has room"
        ) from error


def _decode_into(folder: Path, encoded: Encoded, decoding: Decoding) -> None:
    """Write all images one after the other: memory does not grow with their number, and a full disk is an error.

    (Pages of a memory map count as memory until they are written, and a full disk then ends the process.)
    """
    count = encoded.count
    first: tuple[int, _Pixels] | None = None
    broken: list[str] = []
    decoded = tqdm(_all_decoded(encoded, decoding), "decoding", count, leave=False, disable=count <= 2000)
    with (folder / IMAGES).open("wb", buffering=2**20) as file:
        for index, pixels in enumerate(decoded):
            if isinstance(pixels, Broken):
                broken.append(str(pixels))
                continue
            if first is None:
                first = index, pixels
                _check_room(folder, count * pixels.nbytes)
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *pixels.shape)}
                np.lib.format.write_array_header_1_0(file, header)
            elif pixels.shape != first[1].shape:
                raise Refused(_difference(encoded.name(index), pixels, encoded.name(first[0]), first[1]))
            if not broken:
                file.write(pixels.data)
    if broken:
        named = "; ".join(broken[:10]) + (f" and {len(broken) - 10} more" if len(broken) > 10 else "")
        raise ValueError(
            f"{len(broken)} of the images in {encoded.where} cannot be decoded, repair or remove them: {named}"
        )
    assert first is not None, "an empty set is refused before"
    write_meta(folder, (count, *first[1].shape))


def _all_decoded(encoded: Encoded, decoding: Decoding) -> Iterator[_Pixels | Broken]:
    """Results in order, a bounded way ahead; Pillow lets go of Python's lock while it decodes."""
    count, first = encoded.count, _decoded(encoded, decoding, 0)
    size = 1 if isinstance(first, Broken) else max(1, min(64, _GROUP_BYTES // first.nbytes))

    def group(start: int) -> list[_Pixels | Broken]:
        return [_decoded(encoded, decoding, index) for index in range(start, min(start + size, count))]

    pool = ThreadPoolExecutor(_THREADS)
    pending: collections.deque[Future[list[_Pixels | Broken]]] = collections.deque()
    try:
        yield first
        for start in range(1, count, size):
            pending.append(pool.submit(group, start))
            if len(pending) == _AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(encoded: Encoded, decoding: Decoding, index: int) -> _Pixels | Broken:
    name = encoded.name(index)
    try:
        return decode(encoded.read(index), name, decoding)
    except Broken as error:
        return error
    except OSError as error:
        return Broken(f"{name} ({error.strerror or error})")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free:,} bytes are free")


def _bytes_needed(encoded: Encoded, decoding: Decoding) -> int:
    for index in range(encoded.count):
        pixels = _decoded(encoded, decoding, index)
        if not isinstance(pixels, Broken):
            return encoded.count * pixels.nbytes
    return 0


def _difference(name: str, pixels: _Pixels, first_name: str, first: _Pixels) -> str:
    options = []
    if pixels.shape[1:] != first.shape[1:]:
        options.append("--data.size 64 (or another number) centre-crops and resizes all")
    if len(pixels) != len(first):
        options.append("--data.channels 3 (or 1) converts all")
    return (
        f"{name} is {_words(pixels)}, but {first_name} is {_words(first)}, and images must agree: {', '.join(options)}"
    )


def _words(pixels: _Pixels) -> str:
    channels, height, width = pixels.shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"
