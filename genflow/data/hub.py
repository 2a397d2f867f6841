"""Data sets of the Hugging Face hub, and such sets on disk, by the package ``datasets``.

hf:NAME                                          train split; image and label columns found by their features
hf:NAME?split=test&image=img&label=fine_label    or named
hf:PATH                                          a save_to_disk folder; a folder or file of parquet
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from genflow.data.building import Encoded, decode_once
from genflow.data.columns import image_column, image_reader, label_column, read_labels
from genflow.data.decoding import AS_STORED, Decoding
from genflow.data.digests import digest, digest_file, digest_files
from genflow.data.images import ImageData, Split, cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf:"
_OPTIONS = ("split", "image", "label", "subset")


def hub_images(
    source: str, split: Split = "train", *, decoding: Decoding = AS_STORED, cache: Path | None = None
) -> ImageData:
    """Load a data set of the hub, or one on disk, through the cache.

    ``split=`` says what stands for "train" and "all" (default: train, or a set's only split); "test" is always the
    split of that name. ``image=`` and ``label=`` name columns, ``label=`` alone takes no labels, ``subset=`` is the
    configuration. Labels are a ClassLabel column, whole numbers from 0, or strings. Sets on disk are known by the
    bytes of their files, sets of the hub by the fingerprint that ``datasets`` gives them.

    Shapes: images (N, C, H, W), a read-only memory map; labels (N,) or None.

    Args:
        source: ``hf:NAME`` or ``hf:PATH``, with options as a query.
        split: which part.
        decoding: how encoded images become pixels.
        cache: where caches are kept (default ``cache_folder()``).

    Raises:
        ValueError: an option, split, subset or column that does not exist or is not unique; labels that do not fit;
            images that cannot be decoded or that differ.
        RuntimeError: the package ``datasets`` is missing, the hub has no such set or cannot be reached, or decoded
            images cannot be kept in the cache folder.
    """
    name, options = _parse(source)
    kept = cache_folder(cache)
    splits, content = _load(name, options.get("subset"), kept)
    part, rows = _choose_split(source, splits, split, options.get("split"))
    image = image_column(source, rows, options.get("image"))
    labels, class_names = read_labels(source, rows, label_column(source, rows, options.get("label")))
    where = f"{PREFIX}{name} ({part})"
    identity = digest("\0".join((content or rows._fingerprint, part, image)).encode()).hex()
    encoded = Encoded(where, len(rows), lambda k: f"{where} row {k}", image_reader(source, rows, image), identity)
    images, key = decode_once(encoded, decoding, kept)
    return ImageData.labelled(images, labels, class_names, f"{Path(name).name}-{part}", key)


def _parse(source: str) -> tuple[str, dict[str, str]]:
    name, _, query = source.removeprefix(PREFIX).partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if not name:
        raise ValueError(f"{source!r} names no data set: give hf:NAME or hf:PATH")
    if len(options) != len(pairs):
        raise ValueError(f"{source!r} gives an option twice")
    for option in options.keys() - set(_OPTIONS):
        near = difflib.get_close_matches(option, _OPTIONS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{source!r} has the unknown option {option!r}{hint} (allowed: {', '.join(_OPTIONS)})")
    return name, options


def _load(name: str, subset: str | None, cache: Path) -> tuple[dict[str, Dataset], str]:
    """Return all splits, and the digest of the files of a set on disk or ""."""
    try:
        import datasets
    except ImportError as error:
        raise RuntimeError('data sets of the hub need datasets: run  pip install "genflow[data]"') from error

    path = Path(name).expanduser()
    content = _content(path, cache) if path.exists() else ""
    try:
        with _quiet():
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                if subset is not None:
                    raise ValueError("a folder of save_to_disk has no subsets")
                loaded = datasets.load_from_disk(str(path))
            elif path.is_file():
                loaded = datasets.load_dataset("parquet", subset, data_files=str(path))
            else:
                loaded = datasets.load_dataset(str(path) if path.exists() else name, subset)
    except Exception as error:  # datasets raises its own kinds, and those of what it reads with
        line = " ".join(str(error).split()) or type(error).__name__
        if path.exists():
            raise ValueError(f"cannot read {path} as a data set: {line}") from error
        raise RuntimeError(
            f"cannot load the data set {name!r} ({line}): check the name and the connection, or give the path of a set"
            " on disk, hf:PATH"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        return {str(part): rows for part, rows in loaded.items()}, content
    if isinstance(loaded, datasets.Dataset):
        return {str(loaded.split or "all"): loaded}, content
    raise ValueError(f"{name} is a {type(loaded).__name__}, which is not read: give a data set with rows on disk")


def _content(path: Path, cache: Path) -> str:
    if path.is_file():
        return digest_file(path, cache).hex()
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return digest("\0".join(files).encode() + digest_files(path, files, cache).tobytes()).hex()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep five retries from being five lines: the error says the rest."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _choose_split(source: str, splits: dict[str, Dataset], split: Split, named: str | None) -> tuple[str, Dataset]:
    known = ", ".join(splits)
    wanted = "test" if split == "test" else named
    if wanted is None:
        if len(splits) == 1:
            wanted = next(iter(splits))
        elif split == "train":
            wanted = "train"
        else:
            raise ValueError(f"{source} has the splits {known}: choose one by ?split=")
    if wanted not in splits:
        raise ValueError(f"{source} has no split {wanted!r}, but {known}")
    if not len(splits[wanted]):
        raise ValueError(f"{source} has no rows in its split {wanted!r}")
    return wanted, splits[wanted]
