import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.data import folder as module
from genflow.data.folder import image_folder
from genflow.data.images import load_images


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of RGB images, 12 x 10 pixels, one of them in a deeper folder."""
    rng = np.random.default_rng(0)
    for name in ("cat/1.png", "cat/deep/2.bmp", "dog/1.png", "dog/3.webp", "dog/4.JPG"):
        save(tmp_path / "set" / name, rng.integers(0, 256, (10, 12, 3), dtype=np.uint8))
    (tmp_path / "set" / "dog" / ".hidden.png").write_bytes(b"not an image")
    (tmp_path / "set" / "readme.txt").write_text("not an image either")
    return tmp_path / "set"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def visible(cache: Path) -> list[Path]:
    return sorted((cache / "folders").iterdir()) if (cache / "folders").is_dir() else []


def test_equals_direct_decoding(root, cache):
    data = image_folder(root, cache=cache)
    files = [root / name for name in ("cat/1.png", "cat/deep/2.bmp")]
    files += [root / "dog" / name for name in ("1.png", "3.webp", "4.JPG")]
    assert data.class_names == ("cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.image_shape == (3, 10, 12)
    assert data.name == "set"
    assert isinstance(data.images, np.memmap)
    for image, file in zip(data.images, files, strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), np.asarray(Image.open(file)))


def test_size_crops_the_centre_and_resizes_with_antialiasing(root, cache):
    data = image_folder(root, size=5, cache=cache)
    image = Image.open(root / "cat" / "1.png").crop((1, 0, 11, 10))
    direct = np.asarray(image.resize((5, 5), Image.Resampling.BICUBIC))
    assert np.array_equal(data.images[0].transpose(1, 2, 0), direct)
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    save(root / "cat" / "1.png", np.repeat(stripes[..., None], 3, axis=2))
    small = image_folder(root, size=8, cache=cache).images[0]
    assert np.abs(small.astype(int) - 127).max() < 30, "fine stripes become grey, not aliases"


def test_cache_is_used_again(root, cache, monkeypatch):
    first = image_folder(root, cache=cache)
    (kept,) = visible(cache)
    before = {file: file.stat().st_mtime_ns for file in kept.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(module, "_build", lambda *_: pytest.fail("decoded twice"))
        again = image_folder(root, cache=cache)
    assert np.array_equal(first.images, again.images)
    assert {file: file.stat().st_mtime_ns for file in kept.iterdir()} == before


@pytest.mark.parametrize("change", ["content", "new file", "time", "size"])
def test_changed_folder_is_decoded_anew(root, cache, change):
    image_folder(root, cache=cache)
    file = root / "cat" / "1.png"
    match change:
        case "content":
            save(file, np.zeros((10, 12, 3), np.uint8))
        case "new file":
            save(root / "ant" / "1.png", np.zeros((10, 12, 3), np.uint8))
        case "time":
            os.utime(file, ns=(1, 1))
    data = image_folder(root, size=4 if change == "size" else None, cache=cache)
    assert len(visible(cache)) == 2
    if change == "content":
        assert not data.images[0].any()
    if change == "new file":
        assert data.class_names == ("ant", "cat", "dog")


def test_two_equal_looking_folders_do_not_share_a_cache(tmp_path, cache):
    for name, value in (("a", 1), ("b", 2)):
        file = tmp_path / name / "set" / "x.bmp"
        save(file, np.full((4, 4), value, np.uint8))
        os.utime(file, ns=(0, 0))
    assert image_folder(tmp_path / "a" / "set", cache=cache).images.max() == 1
    assert image_folder(tmp_path / "b" / "set", cache=cache).images.max() == 2


def test_interrupted_build_leaves_nothing(root, cache, monkeypatch):
    decode, calls = module._decode, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_decode", stop)
        with pytest.raises(KeyboardInterrupt):
            image_folder(root, cache=cache)
    assert visible(cache) == []
    assert len(image_folder(root, cache=cache)) == 5


def test_two_writers_at_once_are_harmless(root, cache, monkeypatch):
    barrier = threading.Barrier(2)
    decode_into = module._decode_into

    def together(*arguments):
        decode_into(*arguments)
        barrier.wait(timeout=20)

    monkeypatch.setattr(module, "_decode_into", together)
    found = []
    writers = [threading.Thread(target=lambda: found.append(image_folder(root, cache=cache))) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(found) == 2
    assert np.array_equal(found[0].images, found[1].images)
    assert len(visible(cache)) == 1


def test_flat_folder_is_unlabelled_and_grey_stays_grey(tmp_path, cache):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 6, 6), dtype=np.uint8)
    for n, image in enumerate(pixels):
        save(tmp_path / "flat" / f"{n}.png", image)
    data = load_images(tmp_path / "flat", cache=cache)
    assert data.labels is None
    assert data.class_names == ()
    assert np.array_equal(data.images[:, 0], pixels)


def test_palette_becomes_rgb(tmp_path, cache):
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    (tmp_path / "p").mkdir()
    image.quantize(16).save(tmp_path / "p" / "x.png")
    data = image_folder(tmp_path / "p", cache=cache)
    direct = np.asarray(Image.open(tmp_path / "p" / "x.png").convert("RGB"))
    assert np.array_equal(data.images[0].transpose(1, 2, 0), direct)


def test_small_bmp_is_not_mistaken_for_16_bit(tmp_path, cache):
    save(tmp_path / "b" / "x.bmp", np.zeros((5, 5, 3), np.uint8))  # a row has 16 bytes
    assert image_folder(tmp_path / "b", cache=cache).image_shape == (3, 5, 5)


def test_corrupt_files_are_named_together(root, cache):
    good = (root / "dog" / "4.JPG").read_bytes()
    for n in range(11):
        (root / "dog" / f"bad{n:02}.png").write_bytes(b"garbage")
    (root / "cat" / "half.jpg").write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match="12 of the files") as caught:
        image_folder(root, cache=cache)
    message = str(caught.value)
    assert "half.jpg" in message
    assert "bad08.png (not an image)" in message
    assert "bad09.png" not in message
    assert "and 2 more" in message
    assert visible(cache) == []


def test_truncated_file_alone_is_named(root, cache):
    file = root / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:-80])
    with pytest.raises(ValueError, match=r"1 of the files .*1\.png"):
        image_folder(root, cache=cache)
    assert visible(cache) == []


def test_mixed_sizes_name_both_and_the_fix(root, cache):
    save(root / "dog" / "2.png", np.zeros((7, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"2\.png is 9x7 RGB.*1\.png is 12x10 RGB.*--data\.size"):
        image_folder(root, cache=cache)
    assert image_folder(root, size=8, cache=cache).image_shape == (3, 8, 8)


def test_mixed_kinds_name_both_and_size_makes_rgb(root, cache):
    save(root / "dog" / "2.png", np.full((10, 12), 9, np.uint8))
    with pytest.raises(ValueError, match=r"2\.png is 12x10 grey.*12x10 RGB"):
        image_folder(root, cache=cache)
    data = image_folder(root, size=10, cache=cache)
    assert (data.images[3] == 9).all()


def png_16_bit(path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + b"\1\2" * 6) * 2  # two rows of two RGB pixels, two bytes a channel
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_refused_kinds_name_the_file(tmp_path, cache):
    rgba = Image.new("RGBA", (4, 4))
    palette = Image.new("P", (4, 4))
    for name, write, message in [
        ("alpha.png", rgba.save, "alpha.png has transparency"),
        ("key.png", lambda p: palette.save(p, transparency=0), "key.png has transparency"),
        ("deep.png", Image.new("I;16", (4, 4)).save, "deep.png has mode I"),
        ("deep3.png", png_16_bit, "deep3.png has mode RGB with 16 bits"),
        ("print.jpg", Image.new("CMYK", (4, 4)).save, "print.jpg has mode CMYK"),
    ]:
        path = tmp_path / name.split(".")[0] / name
        path.parent.mkdir()
        write(path)
        with pytest.raises(ValueError, match=message):
            image_folder(path.parent, cache=cache)


def test_layout_errors(root, tmp_path, cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images \(looked for \.png"):
        image_folder(tmp_path / "empty", cache=cache)
    with pytest.raises(ValueError, match="not a folder"):
        image_folder(tmp_path / "nowhere", cache=cache)
    with pytest.raises(ValueError, match="size=0"):
        image_folder(root, size=0, cache=cache)
    (root / "eel").mkdir()
    with pytest.raises(ValueError, match="eel holds no images"):
        image_folder(root, cache=cache)
    (root / "eel").rmdir()
    save(root / "loose.png", np.zeros((10, 12, 3), np.uint8))
    with pytest.raises(ValueError, match=r"directly inside \(loose\.png\) and in sub-folders"):
        image_folder(root, cache=cache)
    save(tmp_path / "parts" / "train" / "x.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="parts of a data set"):
        image_folder(tmp_path / "parts", cache=cache)
