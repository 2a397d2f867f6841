"""Which columns of a data set hold the images and the labels, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genflow.data.labels import number_classes

if TYPE_CHECKING:
    from datasets import Dataset


def image_column(source: str, rows: Dataset, named: str | None) -> str:
    """Return the column that is named, else the only one of images.

    Raises ``ValueError`` if there is no such column, or not one alone.
    """
    from datasets import Image

    if named is not None:
        return _existing(source, rows, named, "image")
    found = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    if len(found) == 1:
        return found[0]
    said = f"several image columns, {', '.join(found)}" if found else "no column marked as images"
    raise ValueError(f"{source} has {said}: name one by ?image=, of {', '.join(rows.column_names)}")


def label_column(source: str, rows: Dataset, named: str | None) -> str | None:
    """Return the column that is named, none for "", else the only one of class labels, if there is one.

    Without class labels it is the column of whole numbers called label or labels, if there is one of these.

    Raises ``ValueError`` if there is no such column, or several.
    """
    from datasets import ClassLabel

    if named is not None:
        return _existing(source, rows, named, "label") if named else None
    found = [column for column, feature in rows.features.items() if isinstance(feature, ClassLabel)]
    if len(found) > 1:
        raise ValueError(f"{source} has several label columns: name one by ?label=, of {', '.join(found)}")
    if not found:
        found = [name for name in ("label", "labels") if _is_whole(rows.features.get(name))]
    return found[0] if len(found) == 1 else None


def _is_whole(feature: object) -> bool:
    from datasets import Value

    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))


def read_labels(source: str, rows: Dataset, column: str | None) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...]]:
    """Return the class of each row and the names of the classes; None and () without a column.

    The column holds ClassLabels, whole numbers 0 … K - 1, or names. Raises ``ValueError`` for anything else, and for
    rows without a label (None or -1).
    """
    from datasets import ClassLabel

    if column is None:
        return None, ()
    table: Any = rows.select_columns([column]).with_format("arrow")[:]
    values: list[Any] = table.column(0).to_pylist()
    feature = rows.features[column]
    bare = [place for place, value in enumerate(values) if value is None or value == -1]
    if bare:
        raise ValueError(
            f"{source}: row {bare[0]} has no label in the column {column!r}, nor have {len(bare) - 1} others: "
            "take another split, or no labels (?label=)"
        )
    if isinstance(feature, ClassLabel):
        return np.array(values, np.int64), tuple(feature.names)
    if {type(value) for value in values} not in ({int}, {str}):
        raise ValueError(
            f"{source}: the column {column!r} holds {feature}, but labels are whole numbers, names or a ClassLabel"
        )
    labels, names = number_classes(values, f"{source}: the column {column!r}")
    return np.array(labels, np.int64), names


def image_reader(source: str, rows: Dataset, column: str, *, on_disk: bool) -> Callable[[int], bytes]:
    """Return a function that gives the encoded bytes of the image in row k.

    It raises ``OSError`` for a row without an image. Raises ``ValueError`` if the column cannot hold images, or, for a
    set on disk, holds paths: the digest of the set does not know what lies there.
    """
    import pyarrow.compute
    from datasets import Image

    try:
        stored = rows.select_columns([column]).cast_column(column, Image(decode=False)).with_format("arrow")
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's errors are among them
        raise ValueError(f"{source}: the column {column!r} holds {rows.features[column]}, not images") from error

    images: Any = stored.data.column(column)
    compute: Any = pyarrow.compute  # its functions are made at import, so that no type is known
    content, path = (compute.struct_field(images, field) for field in ("bytes", "path"))
    if on_disk and compute.any(compute.and_(content.is_null(), path.is_valid())).as_py():
        raise ValueError(
            f"{source}: the column {column!r} holds paths of files instead of images: embed the images (save_to_disk"
            " and to_parquet do), or give the folder of the files, without hf:"
        )

    def read(index: int) -> bytes:
        row: Any = stored[index]
        image = row.column(0)[0].as_py()
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise OSError("no image")
        return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]

    return read


def _existing(source: str, rows: Dataset, column: str, option: str) -> str:
    if column not in rows.column_names:
        raise ValueError(f"{source} has no {option} column {column!r}, but {', '.join(rows.column_names)}")
    return column
