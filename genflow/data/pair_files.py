"""Reflow pairs on the disk: what a folder of them holds, and who may add to it.

    PAIRS/manifest.json                 what the pairs are and how they were made; checksums once all are there
    PAIRS/pairs-00000012.safetensors    those of seeds 12 x 1,024 to 13 x 1,024 - 1, whole or absent

A shard holds ``seeds`` (N,) uint64, consecutive, ``images`` (N, C, H, W) uint8 and ``labels`` (N,) int32: 3,084 bytes a
pair of 32x32 in colour. The noise of a pair is that of its seed; only where noise has no seed, as that of real images
carried back along a teacher's flow, there is ``noise`` (N, C, H, W) float16, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genflow.files import atomic_file, write_text
from genflow.sampling.noise import GENERATOR, generator_checksum

SHARD = 1024  # consecutive seeds a file, always the same ones
STORED = "stored"  # instead of a generator's name: the noise lies in the shards
MANIFEST = "manifest.json"
_FORMAT = "genflow pairs 1"
_LONG = 30  # characters of a value in a message
_AGAIN = "remove it, and give the command that made it again"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of pairs is: all that its bytes depend on, and how far it goes.

    Args:
        made: how the pairs were made, as JSON: the teacher, its solver, the rule of labels. A folder is continued only
            by who makes pairs alike.
        image_shape: (C, H, W) of images and noise.
        num_classes: labels are below it, or equal to it for "no class"; 0 is a set without labels.
        generator: the name of the generator of noise from seeds, or ``STORED``.
        generator_checksum: of the generator's first values; "" for stored noise.
        first_seed: the first seed, or number of an image where noise is stored.
        count: how many pairs there are to be.
        shards: checksum of each shard by file name, once all are there.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=False)
    made: dict[str, Any]
    image_shape: tuple[int, int, int]
    num_classes: int
    generator: str
    generator_checksum: str
    first_seed: int
    count: int
    shards: dict[str, str] = field(default_factory=dict)
    format: str = _FORMAT

    @classmethod
    def of_seeds(
        cls, *, made: dict[str, Any], image_shape: tuple[int, int, int], num_classes: int, first_seed: int, count: int
    ) -> Manifest:
        """Describe pairs whose noise is that of their seeds.

        Raises ``ValueError`` for less than one pair, and for seeds outside [0, 2^64).
        """
        if count < 1:
            raise ValueError(f"the number of pairs must be at least 1, got {count}")
        if first_seed < 0 or first_seed + count > 2**64:
            raise ValueError(f"seeds must be in [0, 2^64), got {first_seed} to {first_seed + count - 1}")
        return cls(
            made=json.loads(json.dumps(made)),  # as it will be read: lists for tuples
            image_shape=image_shape,
            num_classes=num_classes,
            generator=GENERATOR,
            generator_checksum=generator_checksum(),
            first_seed=first_seed,
            count=count,
        )

    @classmethod
    def of_images(
        cls, *, made: dict[str, Any], image_shape: tuple[int, int, int], num_classes: int, count: int
    ) -> Manifest:
        """Describe pairs whose noise was found for images that were there, and lies beside them: number k is image k.

        Raises ``ValueError`` for less than one pair.
        """
        seeded = cls.of_seeds(made=made, image_shape=image_shape, num_classes=num_classes, first_seed=0, count=count)
        return replace(seeded, generator=STORED, generator_checksum="")

    @property
    def teacher(self) -> str:
        """The hash of the weights of the model that made them; "" if the manifest does not tell."""
        match self.made:
            case {"teacher": {"weights": str(weights)}}:
                return weights
            case _:
                return ""

    @property
    def numbers(self) -> range:
        """The numbers of its shards."""
        return range(self.first_seed // SHARD, (self.first_seed + self.count - 1) // SHARD + 1)

    def seeds(self, number: int) -> range:
        """The seeds of shard ``number``."""
        end = self.first_seed + self.count
        return range(max(self.first_seed, number * SHARD), min(end, (number + 1) * SHARD))

    @property
    def identity(self) -> dict[str, Any]:
        """What stays when pairs are added."""
        return {k: v for k, v in asdict(self).items() if k not in ("count", "shards")}


_MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True, eq=False)
class Shard:
    """What one file holds, mapped into memory; ``noise`` only where it has no seed. ``checksum`` names all of it."""

    seeds: npt.NDArray[np.uint64]
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    noise: npt.NDArray[np.float16] | None
    checksum: str

    def __len__(self) -> int:
        return len(self.seeds)

    def first(self, count: int) -> Shard:
        """The first ``count`` pairs: what the file would hold if it ended there."""
        if count == len(self):
            return self
        noise = None if self.noise is None else self.noise[:count]
        parts = self.seeds[:count], self.images[:count], self.labels[:count], noise
        return Shard(*parts, checksum=_checksum(_tensors(*parts)))


def shard_path(folder: Path, number: int) -> Path:
    """Where the shard of this number lies."""
    return folder / f"pairs-{number:08d}.safetensors"


def read_manifest(folder: Path) -> Manifest | None:
    """Return what is written in a folder, None if there is nothing.

    Raises ``ValueError`` for a manifest that is damaged, of another kind or of a newer genflow.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = ""
    try:
        written = json.loads(text)["format"]
        if written != _FORMAT:
            raise ValueError(f"{path} is of format {written!r}, and this genflow reads {_FORMAT!r}")
        return _MANIFEST.validate_json(text)
    except (json.JSONDecodeError, KeyError, TypeError, ValidationError):
        raise ValueError(
            f"{path} is damaged, and the pairs beside it are of use only with it: put a copy of it back, or remove"
            " the folder and make the pairs again"
        ) from None


def begin(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest to go on with in a folder: of as many pairs as are asked for, or there already.

    Nothing is written yet. Raises ``ValueError`` naming what differs if the folder holds other pairs, or pairs of
    nobody knows whom.
    """
    there = read_manifest(folder)
    if there is None:
        foreign = next(iter(sorted(folder.glob("pairs-*.safetensors"))), None)
        if foreign is not None:
            raise ValueError(
                f"{foreign} is there already, and no {MANIFEST} that says how it was made: give another --out"
            )
        return manifest
    old, new = (each.made | {k: v for k, v in each.identity.items() if k != "made"} for each in (there, manifest))
    other = [f"{key} ({was} there, {now} here)" for key, was, now in _differences(old, new)]
    if other:
        raise ValueError(
            f"{folder} holds pairs of another {' and '.join(other)}: give another --out, or the same as its {MANIFEST}"
        )
    return there if manifest.count <= there.count else manifest


def _differences(old: dict[str, Any], new: dict[str, Any], within: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (what, value there, value here), in words, of all that differs; what follows from that is left out."""
    for key in dict.fromkeys((*new, *old)):
        was, now = old.get(key), new.get(key)
        if was == now or (key in ("times", "network_calls") and _solver(old) != _solver(new)):
            continue
        name = f"{within}{key.replace('_', ' ')}"
        if isinstance(was, dict) and isinstance(now, dict):
            yield next(_differences(was, now, f"{name} "))  # one says that it is another
        else:
            yield name, _in_words(was), _in_words(now)


def _solver(made: dict[str, Any]) -> tuple[Any, Any]:
    return made.get("sampler"), made.get("steps")


def _in_words(value: Any) -> str:
    """Return a value of a manifest, in short."""
    match value:
        case None | "":
            return "none"
        case dict():
            return "some"
        case str() if len(value) > _LONG and " " not in value:
            return value[:12]  # a fingerprint
        case str():
            return value
        case _:
            text = json.dumps(value)
            return text if len(text) <= _LONG else f"{text[: _LONG - 4]} ..."


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write what a folder holds, atomically, if it is not written already."""
    if read_manifest(folder) != manifest:
        write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")


def lacking(folder: Path, manifest: Manifest) -> list[int]:
    """Return the numbers of the shards that are absent or shorter than they are to be; all others are verified.

    Raises ``ValueError`` naming a damaged one.
    """
    there = read_shards(folder, manifest)
    return [k for k in manifest.numbers if k not in there or len(there[k]) < len(manifest.seeds(k))]


def finish(folder: Path, manifest: Manifest) -> None:
    """Write the checksums of all shards into the manifest, if all are there: the set is then complete."""
    paths = [shard_path(folder, number) for number in manifest.numbers]
    if all(path.is_file() for path in paths):
        shards = {path.name: _said(path) for path in paths}
        write_manifest(folder, replace(manifest, shards=shards))


def write_shard(
    folder: Path,
    seeds: Sequence[int],
    images: npt.NDArray[np.uint8],
    labels: Sequence[int] | npt.NDArray[np.integer],
    noise: npt.NDArray[np.floating] | None = None,
) -> None:
    """Write the pairs of consecutive seeds that lie in one shard: whole or, if interrupted, not at all.

    Shapes: ``images`` (N, C, H, W), ``labels`` (N,), ``noise`` as images, kept as float16; None for that of the seeds.
    Raises ``ValueError`` for anything else.
    """
    numbers = {seed // SHARD for seed in seeds}
    tensors = _tensors(
        np.array(seeds, np.uint64),
        np.ascontiguousarray(images),
        np.array(labels, np.int32),
        None if noise is None else np.ascontiguousarray(noise, np.float16),
    )
    wrong = _wrong(tensors, images.shape[1:], stored=noise is not None)
    if len(numbers) != 1 or wrong:
        raise ValueError(f"these are no pairs of one shard: {wrong or 'their seeds lie in several'}")
    path = shard_path(folder, numbers.pop())
    with atomic_file(path) as partial:
        save_file(tensors, partial, {"sha256": _checksum(tensors)})  # several entries would be written in any order


def read_shards(folder: Path, manifest: Manifest) -> dict[int, Shard]:
    """Return the shards that are there, by number, all verified.

    Raises ``ValueError`` naming one that is damaged, or not of this manifest.
    """
    numbers = [number for number in manifest.numbers if shard_path(folder, number).is_file()]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # checksums let go of Python's lock
        return dict(zip(numbers, pool.map(lambda number: _read(folder, number, manifest), numbers), strict=True))


def _read(folder: Path, number: int, manifest: Manifest) -> Shard:
    path, stored = shard_path(folder, number), manifest.generator == STORED
    said = _said(path)
    try:
        with safe_open(path, "pt") as file:  # of torch's, since numpy's copies: these stay on the disk
            tensors = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 (is no dict)
    except (SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}): {_AGAIN}") from None
    wrong = _wrong(tensors, manifest.image_shape, stored=stored)
    if not wrong and _checksum(tensors) != said:
        wrong = "its content is not what was written"
    if not wrong and manifest.shards.get(path.name, said) != said:
        wrong = f"it is another than the one in {MANIFEST}"
    if wrong:
        raise ValueError(f"{path} is damaged ({wrong}): {_AGAIN}")
    shard = Shard(tensors["seeds"], tensors["images"], tensors["labels"], tensors.get("noise"), said)
    asked = manifest.seeds(number)
    if shard.seeds[0] != asked[0] or len(shard) > len(asked):
        raise ValueError(f"{path} holds other seeds than {MANIFEST} says, from {shard.seeds[0]} on: {_AGAIN}")
    outside = (shard.labels < 0) | (shard.labels > manifest.num_classes)
    if outside.any():
        at = int(outside.argmax())
        raise ValueError(
            f"{path}: label {shard.labels[at]} of seed {shard.seeds[at]} is out of range, {manifest.num_classes}"
            f" classes allow 0 to {manifest.num_classes - 1}, and {manifest.num_classes} for none"
        )
    return shard


def _said(path: Path) -> str:
    """Return the checksum in a shard's header, which is read only if the file has the length that it says."""
    try:
        with safe_open(path, "np") as file:
            return (file.metadata() or {})["sha256"]
    except (SafetensorError, KeyError) as error:
        said = "it has no checksum" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path} is damaged or cut short ({said}): {_AGAIN}") from None


def _tensors(
    seeds: npt.NDArray[Any], images: npt.NDArray[Any], labels: npt.NDArray[Any], noise: npt.NDArray[Any] | None
) -> dict[str, npt.NDArray[Any]]:
    found = {"seeds": seeds, "images": images, "labels": labels}
    return found if noise is None else found | {"noise": noise}


def _wrong(tensors: dict[str, npt.NDArray[Any]], image_shape: Sequence[int], *, stored: bool) -> str:
    """Say what keeps tensors from being pairs of one shard; "" if nothing does."""
    seeds = tensors.get("seeds", np.zeros(0, np.uint64))
    count, shape = len(seeds), tuple(image_shape)
    wanted = {"seeds": (np.uint64, (count,)), "images": (np.uint8, (count, *shape)), "labels": (np.int32, (count,))}
    if stored:
        wanted["noise"] = (np.float16, (count, *shape))
    if tensors.keys() != wanted.keys():
        return f"it holds {', '.join(sorted(tensors))} instead of {', '.join(sorted(wanted))}"
    for name, (dtype, size) in wanted.items():
        if tensors[name].dtype != dtype or tensors[name].shape != size:
            return f"its {name} are {tensors[name].dtype} {tensors[name].shape} instead of {np.dtype(dtype)} {size}"
    if count == 0 or (seeds != seeds[0] + np.arange(count, dtype=np.uint64)).any():
        return "its seeds are not consecutive"
    return ""


def _checksum(tensors: dict[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        digest.update(json.dumps([name, values.dtype.str, values.shape]).encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
