"""Reflow pairs to train on: an image that a teacher made, and the noise it made it of."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genflow.data.images import EMBEDDED, ImageData
from genflow.data.pair_files import MANIFEST, STORED, Manifest, Shard, read_manifest, read_shards, shard_path
from genflow.data.paths import expanded
from genflow.sampling.noise import GENERATOR, generator_checksum, standard_normal

MOST_PAIRS = 50_000  # whose images stand for all where distances are measured


class Rows:
    """Arrays that count as one, in order: indexed by integers (M,), which copies; nothing else is read.

    Args:
        pieces: at least one array (N, ...) of one dtype, of equal shapes but for N.
    """

    def __init__(self, pieces: list[npt.NDArray[Any]]) -> None:
        self._pieces = pieces
        self._starts = np.array([0, *itertools.accumulate(map(len, pieces))])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """As of one array."""
        return len(self), *self._pieces[0].shape[1:]

    def __getitem__(self, index: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        piece = np.searchsorted(self._starts, index, side="right") - 1
        place = index - self._starts[piece]
        found = np.empty((len(index), *self.shape[1:]), self._pieces[0].dtype)
        for k, (which, where) in enumerate(zip(piece.tolist(), place.tolist(), strict=True)):
            found[k] = self._pieces[which][where]
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class PairData:
    """Pairs of noise and the image that a teacher's flow carries it to; a set of images that knows their noise.

    Args:
        images: (N, C, H, W) uint8, in files mapped into memory.
        seeds: (N,) uint64.
        labels: (N,) int64 in [0, num_classes], where ``num_classes`` is "no class"; None for a set without labels.
        class_names: one name a class; empty when unlabelled.
        name: what to call this set in messages.
        content: what names images, seeds, labels and noise, in hexadecimal.
        manifest: what the folder says of itself.
        stored: (N, C, H, W) float16 noise that has no seed, or None.
    """

    images: Rows
    seeds: npt.NDArray[np.uint64]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    name: str
    content: str
    manifest: Manifest
    stored: Rows | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.manifest.image_shape

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 when unlabelled."""
        return len(self.class_names)

    @property
    def complete(self) -> bool:
        """Whether these are all pairs that the folder is to hold."""
        return len(self) == self.manifest.count

    @property
    def advice(self) -> str:
        """How to take the same pairs again when there are more."""
        if int(self.seeds[-1]) - self.manifest.first_seed < len(self):
            return f"to go on with them when there are more, give --data.pairs {len(self)}"
        return "there are gaps: to be able to go on when there are more, begin with the first N by --data.pairs N"

    @functools.cached_property
    def fingerprint(self) -> str:
        """What names these pairs, in their order, and their classes; in hexadecimal."""
        return hashlib.sha256(json.dumps([self.content, self.class_names]).encode()).hexdigest()[:32]

    def noise(self, index: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Return the noise (M, C, H, W) of the pairs at these places: bit by bit what their images were made of.

        Of seeds it is drawn anew: 60 microseconds a pair of 32x32 in colour, which ``loader.Ahead`` hides.
        """
        if self.stored is not None:
            return self.stored[index].astype(np.float32)
        seeds: list[int] = self.seeds[index].tolist()
        found = np.empty((len(seeds), math.prod(self.image_shape)), np.float32)
        for place, seed in enumerate(seeds):  # one by one: they stay in the processor's cache, and threads only disturb
            found[place] = standard_normal(seed, 0, found.shape[1])
        return found.reshape(-1, *self.image_shape)

    def unpaired(self, most: int) -> ImageData:
        """Return the first images, at most ``most``, copied into memory, without labels."""
        return ImageData(self.images[np.arange(min(most, len(self)))], None, (), self.name)


def is_pairs(source: str | Path) -> bool:
    """Tell whether a path is a folder of pairs, whole or not."""
    folder = expanded(source)
    path = folder / MANIFEST
    if source in EMBEDDED or not path.is_file():  # a folder called digits is ./digits
        return False
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["format"]).startswith("genflow pairs")
    except (ValueError, KeyError, TypeError):
        return any(folder.glob("pairs-*.safetensors"))


def load_pairs(source: str | Path, count: int = 0) -> PairData:
    """Open a folder of pairs, also while it is being written: what is there by now is taken, and verified.

    Args:
        source: the folder that ``genflow pairs`` writes.
        count: take the first so many, by seed, and always the same ones; 0 takes all that are there.

    Raises:
        ValueError: it is no such folder, holds no pairs yet or less than ``count``, which is 0 or more; a shard is
            damaged or, in a folder that was finished, missing (named); labels are out of range; the noise was drawn by
            another generator.
    """
    if count < 0:
        raise ValueError(f"the number of pairs must be at least 1, or 0 for all that are there, got {count}")
    folder = expanded(source)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder} holds no {MANIFEST}: give a folder that genflow pairs writes")
    _check_generator(folder, manifest)
    missing = [name for name in manifest.shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder / missing[0]} is missing: give the command that made it again")
    there = read_shards(folder, manifest)
    if not there:
        raise ValueError(
            f"{folder} holds no pairs yet, only its {MANIFEST}: wait for the first {shard_path(folder, 0).name}"
        )
    shards = list(there.values()) if count == 0 else _first(folder, there, manifest, count)
    return _joined(folder, shards, manifest)


def _joined(folder: Path, shards: list[Shard], manifest: Manifest) -> PairData:
    noise = [shard.noise for shard in shards if shard.noise is not None]
    content = json.dumps([manifest.identity, [shard.checksum for shard in shards]])
    classes = manifest.num_classes
    return PairData(
        images=Rows([shard.images for shard in shards]),
        seeds=np.concatenate([shard.seeds for shard in shards]),
        labels=np.concatenate([shard.labels for shard in shards]).astype(np.int64) if classes else None,
        class_names=tuple(map(str, range(classes))),
        name=str(folder),
        content=hashlib.sha256(content.encode()).hexdigest(),
        manifest=manifest,
        stored=Rows(noise) if noise else None,
    )


def _first(folder: Path, there: dict[int, Shard], manifest: Manifest, count: int) -> list[Shard]:
    """Return the shards of the first ``count`` seeds, the last one cut."""
    taken: list[Shard] = []
    for number in manifest.numbers:
        left = count - sum(map(len, taken))
        if left == 0 or number not in there:
            break
        shard = there[number].first(min(left, len(there[number])))
        taken.append(shard)
        if len(shard) < min(left, len(manifest.seeds(number))):
            break
    found = sum(map(len, taken))
    if found < count:
        raise ValueError(
            f"{folder} holds {found} pairs in a row from seed {manifest.first_seed} on (of {manifest.count}), and"
            f" {count} are asked for: wait for them, or ask for less"
        )
    return taken


def _check_generator(folder: Path, manifest: Manifest) -> None:
    if manifest.generator in (STORED, GENERATOR):
        if manifest.generator == STORED or manifest.generator_checksum == generator_checksum():
            return
        here = "draws other values under this name"
    else:
        here = f"draws it by {GENERATOR}"
    raise ValueError(
        f"the noise of {folder} was drawn by the generator {manifest.generator}, and this genflow {here}: use"
        " the version that made the pairs, or make them again"
    )
