"""Data sets of the Hugging Face hub, and such sets on disk, by the package ``datasets``.

hf:NAME                                          train split; image and label columns found by their features
hf:NAME?split=test&image=img&label=fine_label    or named
hf:./PATH                                        a save_to_disk folder; a folder or file of parquet

What is on disk begins with a dot, a slash or a tilde, so that a source means the same wherever it is read.
"""

from __future__ import annotations

import difflib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl

from genflow.data.building import Encoded, decode_once
from genflow.data.columns import image_column, image_reader, label_column, read_labels
from genflow.data.decoding import AS_STORED, Decoding
from genflow.data.digests import digest, digest_file, digest_files, file_state
from genflow.data.images import ImageData, Split, cache_folder
from genflow.data.paths import expanded, is_on_disk

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

PREFIX = "hf:"
SAVED = ("dataset_dict.json", "state.json")  # one of them lies in a folder of save_to_disk
_OPTIONS = ("split", "image", "label", "subset")


def hub_images(
    source: str, split: Split = "train", *, decoding: Decoding = AS_STORED, cache: Path | None = None
) -> ImageData:
    """Load a data set of the hub, or one on disk, through the cache; its images are PNG, JPEG, WebP or BMP.

    ``split=`` says what stands for "train" and "all" (default: train, or a set's only split); "test" is always the
    split of that name. ``image=`` and ``label=`` name columns, ``label=`` alone takes no labels, ``subset=`` is the
    configuration. Labels are a ClassLabel column, whole numbers from 0, or strings; unless it is named, a column of
    whole numbers counts only if it is called label or labels. Sets on disk are known by the
    bytes of their files, sets of the hub by the fingerprint that ``datasets`` gives them.

    Shapes: images (N, C, H, W), a read-only memory map; labels (N,) or None.

    Args:
        source: ``hf:NAME``, or ``hf:./PATH`` and its like for a path, with options as a query.
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
    path = _on_disk(name) if is_on_disk(name) else None
    files = [] if path is None else _files(path)
    states = _states(path, files)
    content = "" if path is None else _content(path, files, kept)
    arrow = kept / "datasets" / content if content else None

    def check() -> None:
        if _states(path, files) != states:
            if arrow is not None:
                shutil.rmtree(arrow, ignore_errors=True)
            raise ValueError(f"{source} changed while it was read: load it again when it has been written")

    splits = _load(name, path, options.get("subset"), arrow)
    check()
    part, rows = _choose_split(source, splits, split, options.get("split"))
    image = image_column(source, rows, options.get("image"))
    labels, class_names = read_labels(source, rows, label_column(source, rows, options.get("label")))
    where = f"{PREFIX}{name} ({part})"
    identity = digest("\0".join((content or rows._fingerprint, part, image)).encode()).hex()
    read = image_reader(source, rows, image, on_disk=path is not None)
    encoded = Encoded(where, len(rows), lambda k: f"{where} row {k}", read, identity, check)
    found, key = decode_once(encoded, decoding, kept)
    return ImageData.labelled(*found, labels, class_names, f"{Path(name).name}-{part}", key)


def _parse(source: str) -> tuple[str, dict[str, str]]:
    name, _, query = source.removeprefix(PREFIX).partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if not name:
        raise ValueError(f"{source!r} names no data set: give hf:NAME or hf:./PATH")
    if len(options) != len(pairs):
        raise ValueError(f"{source!r} gives an option twice")
    for option in options.keys() - set(_OPTIONS):
        near = difflib.get_close_matches(option, _OPTIONS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{source!r} has the unknown option {option!r}{hint} (allowed: {', '.join(_OPTIONS)})")
    return name, options


def _load(name: str, path: Path | None, subset: str | None, arrow: Path | None) -> dict[str, Dataset]:
    """Return all splits; ``arrow`` is where those of a set in parquet are kept by ``datasets``."""
    try:
        import datasets
    except ImportError as error:
        raise RuntimeError('data sets of the hub need datasets: run  pip install "genflow[data]"') from error

    try:
        with _quiet():
            if path is None or arrow is None:
                return _prepared(datasets.load_dataset_builder(name, subset))
            if any((path / saved).is_file() for saved in SAVED):
                if subset is not None:
                    raise ValueError("a folder of save_to_disk has no subsets")
                loaded = datasets.load_from_disk(str(path))
                if isinstance(loaded, datasets.Dataset):
                    return {str(loaded.split or "all"): loaded}
                return {str(part): rows for part, rows in loaded.items()}
            if path.is_file():
                return _prepared(
                    datasets.load_dataset_builder("parquet", subset, data_files=str(path), cache_dir=str(arrow))
                )
            return _prepared(datasets.load_dataset_builder(str(path), subset, cache_dir=str(arrow)))
    except Exception as error:  # datasets raises its own kinds, and those of what it reads with
        line = " ".join(str(error).split()) or type(error).__name__
        if path is not None:
            raise ValueError(f"cannot read {path} as a data set: {line}") from error
        meant = f"hf:./{name}" if Path(name).exists() else "hf:./PATH"
        raise RuntimeError(
            f"cannot load the data set {name!r} of the hub ({line}): check the name and the connection; a set on disk"
            f" is {meant}"
        ) from error


def _prepared(builder: DatasetBuilder) -> dict[str, Dataset]:
    """Return all splits: ``datasets.load_dataset`` gives none if one has no rows."""
    from datasets import Dataset

    builder.download_and_prepare()
    empty = Dataset.from_dict({column: [] for column in builder.info.features or {}}, builder.info.features)
    return {
        str(part): cast("Dataset", builder.as_dataset(part)) if info.num_examples else empty
        for part, info in (builder.info.splits or {}).items()
    }


def _on_disk(name: str) -> Path:
    path = expanded(name)
    if not path.exists():
        raise ValueError(f"there is no data set {path} on disk")
    if path.is_file() and path.suffix.lower() in (".zip", ".npz"):
        raise ValueError(f"{path} is no data set of the package datasets: leave out {PREFIX}")
    return path


def _states(path: Path | None, files: list[str]) -> list[tuple[int, ...]]:
    return [] if path is None else [file_state(path / file) for file in files]


def _files(path: Path) -> list[str]:
    """Return the files of a set on disk, relative to ``path``; "" is the path itself."""
    if path.is_file():
        return [""]
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def _content(path: Path, files: list[str], cache: Path) -> str:
    if path.is_file():
        return digest_file(path, cache).hex()
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
    full = [part for part, rows in splits.items() if len(rows)]
    wanted = "test" if split == "test" else named
    if wanted is None:
        if len(full) == 1 or len(splits) == 1:
            wanted = (full or list(splits))[0]
        elif split == "train":
            wanted = "train"
        else:
            raise ValueError(f"{source} has the splits {known}: choose one by ?split=")
    if wanted not in splits:
        raise ValueError(f"{source} has no split {wanted!r}, but {known}")
    if not len(splits[wanted]):
        raise ValueError(f"{source} has no rows in its split {wanted!r}")
    return wanted, splits[wanted]
