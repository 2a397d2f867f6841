import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.data.decoding import AS_STORED, Decoding
from genflow.data.images import ImageData, load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


IMAGES = {f"0000{n // 2}/img0000000{n}.png": png(pixels) for n, pixels in enumerate(PIXELS)}


@pytest.fixture
def load(tmp_path: Path):
    def load(path: Path, decoding: Decoding = AS_STORED, labels: str = "") -> ImageData:
        return load_images(path, decoding=decoding, labels=labels, cache=tmp_path / "cache")

    return load


def same(data: ImageData) -> bool:
    return np.array_equal(data.images.transpose(0, 2, 3, 1), PIXELS)


def test_edm_layout(tmp_path, load):
    labels = {"labels": [[name, 3 - n] for n, name in enumerate(IMAGES)]}
    path = pack(tmp_path / "edm.zip", {**IMAGES, "dataset.json": json.dumps(labels).encode()})
    data = load(path)
    assert same(data)
    assert data.labels is not None
    assert data.labels.tolist() == [3, 2, 1, 0]
    assert data.class_names == ("0", "1", "2", "3")
    assert data.name == "edm"
    assert load(pack(path, {**IMAGES, "dataset.json": b'{"labels": null}'})).labels is None


def test_sub_folders_are_classes_where_nothing_else_labels(tmp_path, load):
    data = load(
        pack(tmp_path / "a.zip", {**IMAGES, "notes.txt": b"", "__MACOSX/00000/._x.png": b"", "00000/.x.png": b""})
    )
    assert same(data)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.class_names == ("00000", "00001")
    table = tmp_path / "t.csv"
    table.write_text("file,label\n" + "".join(f"{name},{n % 2}\n" for n, name in enumerate(IMAGES)))
    assert load(tmp_path / "a.zip", labels=str(table)).class_names == ("0", "1")


def test_flat_is_unlabelled_and_one_folder_around_all_is_the_root(tmp_path, load):
    assert load(pack(tmp_path / "a.zip", {name.replace("/", "-"): c for name, c in IMAGES.items()})).labels is None
    assert load(pack(tmp_path / "b.zip", {f"set/{n}": c for n, c in IMAGES.items()})).class_names == ("00000", "00001")
    labels = json.dumps({"labels": [[name, 0] for name in IMAGES]}).encode()
    data = load(pack(tmp_path / "c.zip", {f"set/{n}": c for n, c in {**IMAGES, "dataset.json": labels}.items()}))
    assert same(data)
    assert data.class_names == ("0",)


def test_decoded_as_a_folder_would_be(tmp_path, load):
    path = pack(tmp_path / "a.zip", IMAGES)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    options = Decoding(size=4, channels=1)
    assert np.array_equal(load(path, options).images, load(tmp_path / "folder", options).images)


def test_a_rewritten_zip_is_decoded_anew_and_a_copy_is_not(tmp_path, load):
    first = load(pack(tmp_path / "a.zip", IMAGES))
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes())
    assert load(tmp_path / "b.zip").content == first.content
    changed = {**IMAGES, "00000/img00000000.png": png(255 - PIXELS[0])}
    again = load(pack(tmp_path / "a.zip", changed))
    assert np.array_equal(again.images[0].transpose(1, 2, 0), 255 - PIXELS[0])
    assert again.fingerprint != first.fingerprint


def flip(path: Path, place: int, bits: int = 0xFF) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(content)


def test_bad_members_are_named_together(tmp_path, load):
    path = pack(tmp_path / "a.zip", {**IMAGES, "00002/bad.png": b"garbage", "00002/cut.png": png(PIXELS[0])[:-70]})
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("00001/img00000002.png").header_offset
    flip(path, start + 30 + len("00001/img00000002.png") + 60)
    with pytest.raises(ValueError, match=r"3 of the images in .*a.zip cannot be decoded") as caught:
        load(path)
    message = str(caught.value)
    assert "a.zip/00001/img00000002.png (Bad CRC-32" in message
    assert "a.zip/00002/bad.png (not a PNG, JPEG, WebP or BMP image)" in message
    assert "a.zip/00002/cut.png" in message


def test_zips_that_are_refused(tmp_path, load):
    path = tmp_path / "a.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"cannot read .*a\.zip as a zip file"):
        load(path)
    pack(path, IMAGES)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cannot read .*a\.zip as a zip file"):
        load(path)
    pack(path, {"readme.txt": b"hello"})
    with pytest.raises(ValueError, match=r"a\.zip holds no images"):
        load(path)
    pack(path, {**IMAGES, "loose.png": IMAGES["00000/img00000000.png"]})
    with pytest.raises(ValueError, match=r"directly inside \(loose\.png\)"):
        load(path)
    pack(path, {**IMAGES, "dataset.json": b"{"})
    with pytest.raises(ValueError, match=r"a\.zip/dataset\.json is not JSON"):
        load(path)
    pack(path, IMAGES)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("00000/img00000000.png", b"")
    with pytest.raises(ValueError, match=r"holds 00000/img00000000\.png twice"):
        load(path)
    with pytest.raises(ValueError, match="no held-out split"):
        load_images(path, "test")


def test_an_encrypted_zip_is_refused(tmp_path, load):
    """The flag is set by hand, in the local header and in the directory."""
    path = pack(tmp_path / "a.zip", {"x.png": png(PIXELS[0])})
    flip(path, 6, 1)
    flip(path, path.read_bytes().index(b"PK\1\2") + 8, 1)
    with pytest.raises(ValueError, match=r"holds x\.png encrypted"):
        load(path)


def test_a_zip_of_one_folder_is_read_as_that_folder(tmp_path, load):
    flat = {f"photos/{n}.png": content for n, content in enumerate(IMAGES.values())}
    data = load(pack(tmp_path / "flat.zip", {**flat, "readme.txt": b""}))
    assert same(data)
    assert data.labels is None
    table = tmp_path / "t.csv"
    table.write_text("file,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(4)))
    assert load(tmp_path / "flat.zip", labels=str(table)).class_names == ("0", "1")
    with pytest.raises(
        ValueError, match=r"mixed\.zip holds images directly inside \(0\.png\) and in sub-folders \(x\)"
    ):
        load(pack(tmp_path / "mixed.zip", {**flat, "photos/x/9.png": png(PIXELS[0])}))
    one = {name.replace("photos/", "photos/cat/"): content for name, content in flat.items()}
    assert load(pack(tmp_path / "one.zip", one)).class_names == ("cat",)


def test_names_of_careless_packers(tmp_path, load):
    """UTF-8 without its flag, as many Unix packers write it, and the backslashes of old Windows ones."""
    path = pack(tmp_path / "a.zip", {"Katze?/1.png": png(PIXELS[0]), "?h/2.png": png(PIXELS[1])})
    content = path.read_bytes()
    content = content.replace(b"Katze?/", "Katzé/".encode()).replace(b"?h/2.", "é/2.".encode())
    path.write_bytes(content)
    assert load(path).class_names == ("Katzé", "é")
    path = pack(tmp_path / "b.zip", {"cat|1.png": png(PIXELS[0]), "dog|2.png": png(PIXELS[1])})
    path.write_bytes(path.read_bytes().replace(b"cat|", b"cat\\").replace(b"dog|", b"dog\\"))
    assert load(path).class_names == ("cat", "dog")
    path = pack(tmp_path / "c.zip", {"Str?/1.png": png(PIXELS[0])})
    path.write_bytes(path.read_bytes().replace(b"Str?", b"Str\x84"))  # cp437, and not UTF-8
    assert load(pack(tmp_path / "d.zip", {"x/y.png": png(PIXELS[0])})).labels is None
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["Strä/1.png"]
    assert len(load(path)) == 1


@pytest.mark.parametrize("when", ["opening", "opening, but known", "decoding"])
def test_a_zip_that_is_replaced_meanwhile_is_refused_and_not_kept(tmp_path, load, monkeypatch, when: str):
    """By a rename, as atomic writers do; the old zip may stay open."""
    path = pack(tmp_path / "a.zip", IMAGES)
    other = pack(tmp_path / "b.zip", {name: png(255 - pixels) for name, pixels in zip(IMAGES, PIXELS, strict=True)})
    if when == "opening, but known":
        load(path)
    module = "genflow.data.zip"
    name = "list_images" if when == "decoding" else "digest_file"
    original = getattr(__import__(module, fromlist=[name]), name)

    def late(*arguments):
        found = original(*arguments)
        other.replace(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{name}", late)
        with pytest.raises(ValueError, match=r"a\.zip changed while it was read"):
            load(path)
    assert len(list((tmp_path / "cache").glob("images/*/decoded"))) == ("known" in when)
    assert np.array_equal(load(path).images.transpose(0, 2, 3, 1), 255 - PIXELS)
