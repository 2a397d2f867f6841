"""Many encoded images into one memory map of pixels: decoded once, by threads, and kept in the cache."""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from genflow.data.cache import IMAGES, Kept, keep, write_meta
from genflow.data.decoding import DECODER, Broken, Decoded, Decoding, Refused, decode
from genflow.data.digests import digest
from genflow.data.paths import shown
from genflow.data.provenance import Stored
from genflow.data.refusals import Findings

_THREADS = max(2, min(8, os.cpu_count() or 2))
_AHEAD = _THREADS + 2  # groups of images at work at once, which bounds the memory
_GROUP_BYTES = 2**19  # pixels of a group: threads cost more than they bring if each task is one small image

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Image files yet to be decoded.

    Args:
        where: their folder, zip or data set, for messages.
        count: how many.
        name: what to call image k in messages (a list of a million paths would take a lot of memory).
        read: the bytes of image k; raises ``OSError`` if they cannot be had. Called by threads.
        identity: what names their content, in hexadecimal: other bytes, another identity.
        check: called when all are decoded; raises ``ValueError`` if what was read may not be what ``identity`` names.
    """

    where: str
    count: int
    name: Callable[[int], str]
    read: Callable[[int], bytes]
    identity: str
    check: Callable[[], None] = lambda: None


def decode_once(encoded: Encoded, decoding: Decoding, cache: Path) -> tuple[Kept, str]:
    """Return all images (N, C, H, W), a read-only memory map, with what they were, and the key they are kept under.

    The key is a digest of the images' content and of ``decoding``. Images that are in the cache are not decoded again.

    Raises:
        ValueError: images that cannot be decoded (all are counted, ten named); else images that differ in size or
            channels or need an option (the first of each kind is named, and all options that are needed).
        RuntimeError: there is no room for them in the cache folder, or it cannot be written.
    """
    key = digest(json.dumps([DECODER, encoded.identity, dataclasses.astuple(decoding)]).encode()).hex()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of large images and odd metadata: all sound
            return keep(cache / "images" / key, lambda folder: _decode_into(folder, encoded, decoding)), key
    except OSError as error:
        advice = "make room there" if error.errno in _FULL else "let it be written"
        raise RuntimeError(
            f"cannot keep the {_bytes_needed(encoded, decoding):,} bytes of decoded images of {encoded.where} in the"
            f" cache folder {cache} ({error.strerror or error}): {advice}, or set the environment variable"
            " GENFLOW_CACHE to a folder that can be written and has room"
        ) from error


def _decode_into(folder: Path, encoded: Encoded, decoding: Decoding) -> None:
    """Write all images one after the other: memory does not grow with their number, and a full disk is an error.

    (Pages of a memory map count as memory until they are written, and a full disk then ends the process.)
    """
    count, shape = encoded.count, (0,)
    findings, sources = Findings(encoded.where), _Sources()
    decoded = tqdm(_all_decoded(encoded, decoding), "decoding", count, leave=False, disable=count <= 2000)
    with (folder / IMAGES).open("wb", buffering=2**20) as file:
        for index, found in enumerate(decoded):
            if isinstance(found, Decoded):
                sources.add(found)
            match found:
                case Broken():
                    findings.broken(found)
                case Refused():
                    findings.sound(shown(encoded.name(index)), found.shape, found.wanting)
                case _ if index == 0:
                    shape = found.shape
                    findings.sound(shown(encoded.name(index)), shape)
                    _check_room(folder, count * found.pixels.nbytes)
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                    file.write(found.pixels.data)
                case _ if findings or found.shape != shape:
                    findings.sound(shown(encoded.name(index)), found.shape)
                case _:
                    file.write(found.pixels.data)
    encoded.check()
    findings.refuse()
    write_meta(folder, (count, *shape), sources.stored(decoding))


class _Sources:
    """What the files of a set were, gathered image by image."""

    def __init__(self) -> None:
        self._codecs: set[str] = set()
        self._kinds: set[str] = set()
        self._short, self._long = 2**63, 0
        self._resized = False

    def add(self, found: Decoded) -> None:
        self._codecs.add(found.codec)
        self._kinds.add(found.kind)
        self._short = min(self._short, found.sides[0])
        self._long = max(self._long, found.sides[1])
        self._resized |= found.resized

    def stored(self, decoding: Decoding) -> Stored:
        resize = f"bicubic antialiased {decoding.size}x{decoding.size}" if self._resized else "none"
        return Stored("+".join(sorted(self._codecs)), tuple(sorted(self._kinds)), (self._short, self._long), resize)


def _all_decoded(encoded: Encoded, decoding: Decoding) -> Iterator[Decoded | Broken | Refused]:
    """Results in order, a bounded way ahead; Pillow lets go of Python's lock while it decodes.

    Pixels of another shape than the first image's are not kept: a small first image would have groups of large ones.
    """
    count, first = encoded.count, _decoded(encoded, decoding, 0)
    shape = None if isinstance(first, Broken) else first.shape
    size = 1 if shape is None else max(1, min(64, _GROUP_BYTES // math.prod(shape)))

    def one(index: int) -> Decoded | Broken | Refused:
        found = _decoded(encoded, decoding, index)
        if isinstance(found, Decoded) and shape is not None and found.shape != shape:
            return Refused(encoded.name(index), (), found.shape)
        return found

    def group(start: int) -> list[Decoded | Broken | Refused]:
        return [one(index) for index in range(start, min(start + size, count))]

    pool = ThreadPoolExecutor(_THREADS)
    pending: collections.deque[Future[list[Decoded | Broken | Refused]]] = collections.deque()
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


def _decoded(encoded: Encoded, decoding: Decoding, index: int) -> Decoded | Broken | Refused:
    name = shown(encoded.name(index))
    try:
        return decode(encoded.read(index), name, decoding)
    except (Broken, Refused) as error:
        return error
    except OSError as error:
        return Broken(f"{name} ({error.strerror or error})")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free:,} bytes are free")


def _bytes_needed(encoded: Encoded, decoding: Decoding) -> int:
    for index in range(encoded.count):
        found = _decoded(encoded, decoding, index)
        if not isinstance(found, Broken):
            return encoded.count * math.prod(found.shape)
    return 0
