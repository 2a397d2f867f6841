"""Data sets made here and read from disk; the hub itself is never asked."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image as Picture

from genflow.data import hub
from genflow.data.decoding import Decoding
from genflow.data.images import ImageData, load_images

datasets = pytest.importorskip("datasets")
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value  # noqa: E402

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Picture.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rows(**columns: tuple[list, object]) -> Dataset:
    given = {"img": ([{"bytes": png(p), "path": None} for p in PIXELS], Image()), **columns}
    values = {name: column for name, (column, _) in given.items()}
    return Dataset.from_dict(values, features=Features({name: kind for name, (_, kind) in given.items()}))


NAMED = (LABELS, ClassLabel(names=["ant", "bee", "cow"]))


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


@pytest.fixture
def load(tmp_path):
    def load(source: str, split: str = "train", **options: object) -> ImageData:
        return load_images(f"hf:{tmp_path}/{source}", split, cache=tmp_path / "cache", **options)  # pyright: ignore[reportArgumentType]

    return load


def same(data: ImageData, chosen: slice = slice(None)) -> bool:
    return np.array_equal(data.images.transpose(0, 2, 3, 1), PIXELS[chosen])


def test_saved_set_gives_its_images_and_labels(tmp_path, load):
    rows(fine=NAMED).save_to_disk(tmp_path / "set")
    data = load("set")
    assert same(data)
    assert isinstance(data.images, np.memmap)
    assert data.labels is not None
    assert data.labels.tolist() == LABELS
    assert data.class_names == ("ant", "bee", "cow")
    assert load("set?label=").labels is None
    assert load("set", decoding=Decoding(size=3, channels=1)).image_shape == (1, 3, 3)
    with pytest.raises(ValueError, match="no split 'test'"):
        load("set", "test")


def test_splits_are_chosen(tmp_path, load):
    whole = rows(fine=NAMED)
    splits = {"train": whole.select(range(3)), "test": whole.select([3, 4]), "extra": whole.select([5])}
    DatasetDict(splits).save_to_disk(tmp_path / "set")  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert same(load("set"), slice(0, 3))
    assert same(load("set", "test"), slice(3, 5))
    assert same(load("set?split=extra"), slice(5, 6))
    assert same(load("set?split=extra", "all"), slice(5, 6))
    assert same(load("set?split=extra", "test"), slice(3, 5)), "what is held out is never the split trained on"
    assert load("set?split=test").name == "set-test"
    with pytest.raises(ValueError, match="no split 'valid', but train, test, extra"):
        load("set?split=valid")
    with pytest.raises(ValueError, match=r"splits train, test, extra: choose one by \?split="):
        load("set", "all")


def test_a_view_of_rows_is_read_in_its_order(tmp_path, load):
    rows(fine=NAMED).select([4, 2, 2]).save_to_disk(tmp_path / "set")
    data = load("set")
    assert np.array_equal(data.images.transpose(0, 2, 3, 1), PIXELS[[4, 2, 2]])
    assert data.labels is not None
    assert data.labels.tolist() == [1, 2, 2]


def test_parquet_files_and_folders(tmp_path, load):
    rows(fine=NAMED).to_parquet(tmp_path / "set.parquet")
    assert same(load("set.parquet"))
    assert load("set.parquet").class_names == ("ant", "bee", "cow")
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows(fine=NAMED).to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    rows(fine=NAMED).select([5]).to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    assert same(load("set"))
    assert same(load("set", "test"), slice(5, 6))


def test_parquet_of_others_is_read_when_its_columns_are_named(tmp_path, load):
    """Plain bytes, names as labels, and nothing that says which is which."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"data": [png(p) for p in PIXELS], "kind": ["b", "a", "c"] * 2, "number": LABELS})
    parquet.write_table(table, tmp_path / "x.parquet")
    data = load("x.parquet?image=data&label=kind")
    assert same(data)
    assert data.class_names == ("a", "b", "c")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 2] * 2
    assert load("x.parquet?image=data&label=number").class_names == ("0", "1", "2")
    with pytest.raises(ValueError, match=r"no column marked as images: name one by .image=, of data, kind, number"):
        load("x.parquet")
    with pytest.raises(ValueError, match=r"the column 'number' holds .* not images"):
        load("x.parquet?image=number")


def test_cache_goes_by_content(tmp_path, load):
    rows(fine=NAMED).save_to_disk(tmp_path / "set")
    first = load("set")
    (tmp_path / "set").rename(tmp_path / "moved")
    assert load("moved").content == first.content
    file = next((tmp_path / "moved").glob("*.arrow"))
    raw = file.read_bytes()
    assert raw.count(png(PIXELS[2])) == 1
    file.write_bytes(raw.replace(png(PIXELS[2]), png(PIXELS[2])[:-2] + b"zz"))  # a bad checksum at the end is let pass
    assert load("moved").content != first.content


def test_broken_rows_are_named_together(tmp_path, load):
    broken: list[object] = [{"bytes": png(p), "path": None} for p in PIXELS]
    broken[1], broken[4], broken[5] = (
        None,
        {"bytes": b"garbage", "path": None},
        {"bytes": png(PIXELS[5])[:-60], "path": None},
    )
    rows(img=(broken, Image())).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=r"3 of the images in hf:.*set") as caught:
        load("set")
    assert "row 1 (no image)" in str(caught.value)
    assert "row 4 (not a PNG, JPEG, WebP or BMP image)" in str(caught.value)
    assert "row 5 (" in str(caught.value)


@pytest.mark.parametrize(
    ("query", "columns", "message"),
    [
        ("", {"other": rows()["img"]}, "several image columns, img, other: name one by .image="),
        ("", {"coarse": LABELS}, "several label columns: name one by .label=, of fine, coarse"),
        ("?image=x", {}, "no image column 'x', but img, fine"),
        ("?label=x", {}, "no label column 'x', but img, fine"),
        ("?labels=fine", {}, "unknown option 'labels', did you mean 'label'.*split, image, label, subset"),
        ("?label=fine&label=img", {}, "gives an option twice"),
        ("?label=img", {}, "the column 'img' holds .* labels are whole numbers"),
        ("?label=gap", {"gap": [0, 1, 3, 0, 1, 3]}, "'gap' holds labels up to 3, but no image of class 2"),
        ("?label=gap", {"gap": [0, 1, -1, 0, 1, 1]}, "row 2 has no label in the column 'gap'"),
        ("?label=real", {"real": [0.5] * 6}, "the column 'real' holds .* labels are whole numbers"),
        ("?subset=x", {}, "a folder of save_to_disk has no subsets"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, load, query: str, columns: dict, message: str):
    kinds = {"other": Image(), "coarse": NAMED[1], "gap": Value("int64"), "real": Value("float32")}
    given = {name: (list(values), kinds[name]) for name, values in columns.items()}
    rows(fine=NAMED, **given).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=message) as caught:
        load(f"set{query}")
    assert "\n" not in str(caught.value)


def test_an_empty_set_is_refused(tmp_path, load):
    rows().select([]).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(ValueError, match="no rows in its split 'train'"):
        load("set.parquet")


def test_names_that_the_hub_does_not_give(tmp_path, caplog, capfd):
    with pytest.raises(
        RuntimeError, match=r"cannot load the data set 'nobody/nothing' of the hub \(.*\): check the name"
    ) as caught:
        load_images("hf:nobody/nothing", cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert not caplog.records
    assert "Retrying" not in capfd.readouterr().err
    with pytest.raises(ValueError, match="names no data set"):
        load_images("hf:?split=train", cache=tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"cannot read .*folder as a data set"):
        load_images(f"hf:{tmp_path / 'folder'}", cache=tmp_path)


def test_a_name_is_of_the_hub_and_a_path_of_the_disk_whatever_lies_here(tmp_path, monkeypatch):
    """So that a run's configuration means the same in another folder."""
    monkeypatch.chdir(tmp_path)
    rows().to_parquet(tmp_path / "photos")
    with pytest.raises(RuntimeError, match=r"'photos' of the hub .* a set on disk is hf:\./photos"):
        load_images("hf:photos", cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="there is no data set nowhere on disk"):
        load_images("hf:./nowhere", cache=tmp_path / "cache")
    (tmp_path / "photos").rename(tmp_path / "photos.parquet")
    assert len(load_images("hf:./photos.parquet", cache=tmp_path / "cache")) == len(rows())


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r'pip install "genflow\[data\]"'):
        load_images("hf:cifar10", cache=tmp_path)


def test_parquet_of_the_same_size_and_time_is_told_by_its_bytes(tmp_path, load):
    """``datasets`` knows files by name, size and time; so the Arrow files that it makes are kept by our digest."""
    path = tmp_path / "set.parquet"
    rows().to_parquet(path)
    assert same(load("set.parquet"))
    raw, stat = path.read_bytes(), path.stat()
    other = png(PIXELS[2])
    changed = other.replace(b"IDAT", b"IDAT", 1)
    picture = np.asarray(Picture.open(io.BytesIO(other))).copy()
    for value in range(256):  # a picture of other pixels that takes as many bytes
        picture[0, 0, 0] = value
        if value != PIXELS[2][0, 0, 0] and len(png(picture)) == len(other):
            changed = png(picture)
            break
    assert changed != other
    path.write_bytes(raw.replace(other, changed))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    seen = load("set.parquet").images.transpose(0, 2, 3, 1)
    assert np.array_equal(seen[2], np.asarray(Picture.open(io.BytesIO(changed))))
    assert np.array_equal(np.delete(seen, 2, 0), np.delete(PIXELS, 2, 0))


@pytest.mark.parametrize("known", [False, True])
def test_a_set_that_changes_while_it_is_read_is_refused(tmp_path, load, monkeypatch, known: bool):
    """Its images may be in the cache, but its rows are read."""
    path = tmp_path / "set.parquet"
    rows().to_parquet(path)
    if known:
        load("set.parquet")
    original = hub._load

    def late(*arguments):
        rows().select([0, 1]).to_parquet(path)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "_load", late)
        with pytest.raises(ValueError, match=r"set\.parquet changed while it was read"):
            load("set.parquet")
    assert not list((tmp_path / "cache" / "datasets").iterdir())
    assert same(load("set.parquet"), slice(0, 2))


def test_rows_that_hold_paths_are_refused(tmp_path, load):
    """They depend on the working directory, and what lies there may change unseen."""
    (tmp_path / "x.png").write_bytes(png(PIXELS[0]))
    given = [{"bytes": png(PIXELS[0]), "path": None}, {"bytes": None, "path": "x.png"}]
    table = Dataset.from_dict(
        {"img": given}, features=Features({"img": {"bytes": Value("binary"), "path": Value("string")}})
    )
    table.to_parquet(tmp_path / "set.parquet")
    with pytest.raises(ValueError, match=r"the column 'img' holds paths of files .* embed the images") as caught:
        load("set.parquet?image=img")
    assert "\n" not in str(caught.value)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.png").write_bytes(png(PIXELS[0]))
    with pytest.raises(ValueError, match="or give the folder of the files, without hf:"):
        load("folder")


def test_an_empty_split_leaves_the_others(tmp_path, load):
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows(fine=NAMED).to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    rows(fine=NAMED).select([]).to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    assert same(load("set"))
    assert same(load("set", "all"))
    with pytest.raises(ValueError, match="no rows in its split 'test'"):
        load("set", "test")


@pytest.mark.parametrize("name", ["label", "labels"])
def test_whole_numbers_called_labels_are_labels(tmp_path, load, name: str):
    rows(**{name: (LABELS, Value("int64")), "height": (LABELS, Value("int64"))}).save_to_disk(tmp_path / "set")
    data = load("set")
    assert data.labels is not None
    assert data.labels.tolist() == LABELS
    assert load("set?label=").labels is None


def test_other_columns_are_not_labels(tmp_path, load):
    kinds = {"label": ([0.5] * 6, Value("float32")), "height": (LABELS, Value("int64"))}
    rows(**kinds).save_to_disk(tmp_path / "set")
    assert load("set").labels is None
    both = {name: (LABELS, Value("int64")) for name in ("label", "labels")}
    rows(**both).save_to_disk(tmp_path / "both")
    assert load("both").labels is None


def test_zips_and_users_that_do_not_exist_are_named(tmp_path, load):
    (tmp_path / "x.zip").touch()
    with pytest.raises(ValueError, match=r"x\.zip is no data set .* leave out hf:"):
        load("x.zip")
    with pytest.raises(ValueError, match="cannot find '~nosuchuser/x'"):
        load_images("hf:~nosuchuser/x", cache=tmp_path)
