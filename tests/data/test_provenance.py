"""What images were is found by decoding them, kept beside their pixels, and no part of what names them."""

import json
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.data import building
from genflow.data.decoding import Decoding
from genflow.data.images import ImageData, load_images
from genflow.data.provenance import ARRAYS, Provenance, Stored, is_grey

RNG = np.random.default_rng(0)


@pytest.fixture
def load(tmp_path):
    def load(source: str, **options: object) -> ImageData:
        return load_images(tmp_path / source, decoding=Decoding(**options), cache=tmp_path / "cache")  # pyright: ignore[reportArgumentType]

    return load


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of images that are decoded."""
    found: list[str] = []
    original = building._decoded

    def count(encoded: building.Encoded, decoding: Decoding, index: int):
        found.append(encoded.name(index))
        return original(encoded, decoding, index)

    monkeypatch.setattr(building, "_decoded", count)
    return found


def save(path: Path, kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 9).save(path, kind)


def meta(cache: Path) -> Path:
    (found,) = cache.glob("images/*/decoded/meta.json")
    return found


def test_a_set_of_one_kind(tmp_path, load):
    save(tmp_path / "set" / "a.png")
    save(tmp_path / "set" / "b.png")
    data = load("set")
    assert data.stored == Stored("png", ("rgb",), (8, 8), "none")
    assert data.provenance == Provenance("png", ("rgb",), (8, 8), "none", colour="rgb")
    assert load("set", size=8, channels=3).provenance == data.provenance, "nothing had to be done"


def test_names_of_files_do_not_matter(tmp_path, load):
    save(tmp_path / "set" / "a.png", "JPEG")
    save(tmp_path / "set" / "b.bmp", "PNG")
    assert load("set").provenance.codec == "jpeg+png"


def test_one_image_among_many_is_enough(tmp_path, load):
    for k in range(300):
        save(tmp_path / "set" / f"{k:03}.png")
    save(tmp_path / "set" / "150.png", "WEBP", "L", (8, 10))
    data = load("set", size=8, channels=3)
    assert data.stored == Stored("png+webp", ("rgb",), (8, 10), "bicubic antialiased 8x8"), "WebP has no grey"
    save(tmp_path / "set" / "150.png", "PNG", "L")
    data = load("set", channels=3)
    assert data.stored == Stored("png", ("grey", "rgb"), (8, 8), "none")
    assert data.provenance.colour == "rgb + converted"
    assert load("set", channels=1).provenance.colour == "grey + converted"


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_every_other_kind_counts_as_converted(tmp_path, load, mode: str):
    save(tmp_path / "set" / "a.png", "JPEG" if mode == "CMYK" else "PNG", mode)
    data = load("set", channels=3, background="white", scale_16_bit=True)
    assert data.provenance.colour == "rgb + converted"


def test_a_second_start_knows_it_without_decoding(tmp_path, load, decoded):
    save(tmp_path / "set" / "a.png", "JPEG", size=(20, 10))
    first = load("set", size=4)
    assert len(decoded) == 1
    second = load("set", size=4)
    assert len(decoded) == 1
    assert second.stored == first.stored == Stored("jpeg", ("rgb",), (10, 20), "bicubic antialiased 4x4")


@pytest.mark.parametrize("damage", ["absent", "of another kind", "without sides", "odd sides"])
def test_a_cache_that_does_not_tell_is_made_anew_under_its_key(tmp_path, load, decoded, damage: str):
    """So were caches of before: their runs go on, since a set's fingerprint stays."""
    save(tmp_path / "set" / "a.png")
    first = load("set")
    place = meta(tmp_path / "cache")
    record = json.loads(place.read_text())
    match damage:
        case "absent":
            del record["stored"]
        case "of another kind":
            record["stored"] = "png"
        case "without sides":
            del record["stored"]["sides"]
        case "odd sides":
            record["stored"]["sides"] = [1, 2, 3]
    place.write_text(json.dumps(record))
    again = load("set")
    assert len(decoded) == 2
    assert meta(tmp_path / "cache") == place
    assert again.provenance == first.provenance
    assert again.fingerprint == first.fingerprint


def test_zips_and_arrays(tmp_path, load):
    save(tmp_path / "set" / "a.png", "BMP")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "set" / "a.png", "a.png")
    assert load("set.zip").stored == Stored("bmp", ("rgb",), (8, 8), "none")
    np.savez(tmp_path / "set.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    data = load("set.npz")
    assert data.stored == ARRAYS
    assert (data.provenance.codec, data.provenance.resize, data.provenance.colour) == ("raw", "none", "rgb")
    assert load_images("shapes").stored == ARRAYS


def test_sets_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    save(tmp_path / "x.webp", "WEBP")
    rows = [{"bytes": (tmp_path / "x.webp").read_bytes(), "path": None}] * 2
    made = datasets.Dataset.from_dict({"img": rows}, features=datasets.Features({"img": datasets.Image()}))
    made.to_parquet(tmp_path / "set.parquet")
    for _ in range(2):
        data = load_images(f"hf:{tmp_path}/set.parquet", cache=tmp_path / "cache")
        assert data.stored == Stored("webp", ("rgb",), (8, 8), "none")


def test_subsets_keep_it_and_fingerprints_leave_it_out(tmp_path, load):
    save(tmp_path / "set" / "a.png", "JPEG")
    data = load("set")
    assert data.subset([0, 0]).provenance == data.provenance
    arrays = ImageData(np.asarray(data.images), None, (), "arrays")
    assert arrays.fingerprint == data.subset([0]).fingerprint


def test_it_survives_json():
    for one in (ARRAYS, Stored("jpeg+png", ("cmyk", "rgb"), (3, 700), "bicubic antialiased 64x64")):
        assert Stored.of(json.loads(json.dumps(asdict(one)))) == one


def test_copies_of_a_cache_tell_it_too(tmp_path, load):
    save(tmp_path / "set" / "a.png", "JPEG")
    load("set")
    shutil.copytree(tmp_path / "cache", tmp_path / "other")
    assert load_images(tmp_path / "set", cache=tmp_path / "other").provenance.codec == "jpeg"


def test_colour_is_seen_in_a_sample():
    grey = np.repeat(RNG.integers(0, 256, (1000, 1, 4, 4), dtype=np.uint8), 3, axis=1)
    assert is_grey(grey[:, :1])
    assert is_grey(grey)
    assert is_grey(grey[:0])
    for channel in range(3):
        tinted = grey.copy()
        tinted[:, channel, 2, 1] ^= 1
        assert not is_grey(tinted)
    for places in ([0], [999], range(0, 1000, 2)):
        tinted = grey.copy()
        tinted[places, 0, 0, 0] ^= 1
        assert not is_grey(tinted)
