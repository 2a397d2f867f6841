import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.data.decoding import Decoding
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


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("images/*/decoded"))


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
    data = image_folder(root, decoding=Decoding(size=5), cache=cache)
    image = Image.open(root / "cat" / "1.png").crop((1, 0, 11, 10))
    direct = np.asarray(image.resize((5, 5), Image.Resampling.BICUBIC))
    assert np.array_equal(data.images[0].transpose(1, 2, 0), direct)
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    save(root / "cat" / "1.png", np.repeat(stripes[..., None], 3, axis=2))
    small = image_folder(root, decoding=Decoding(size=8), cache=cache).images[0]
    assert np.abs(small.astype(int) - 127).max() < 30, "fine stripes become grey, not aliases"


def test_flat_folder_is_unlabelled_and_grey_stays_grey(tmp_path, cache):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 6, 6), dtype=np.uint8)
    for n, image in enumerate(pixels):
        save(tmp_path / "flat" / f"{n}.png", image)
    data = load_images(tmp_path / "flat", cache=cache)
    assert data.labels is None
    assert data.class_names == ()
    assert np.array_equal(data.images[:, 0], pixels)


def test_small_bmp_is_not_mistaken_for_16_bit(tmp_path, cache):
    save(tmp_path / "b" / "x.bmp", np.zeros((5, 5, 3), np.uint8))  # a row has 16 bytes
    assert image_folder(tmp_path / "b", cache=cache).image_shape == (3, 5, 5)


def test_corrupt_files_are_named_together(root, cache):
    good = (root / "dog" / "4.JPG").read_bytes()
    for n in range(11):
        (root / "dog" / f"bad{n:02}.png").write_bytes(b"garbage")
    (root / "cat" / "half.jpg").write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"12 of the images in .*set") as caught:
        image_folder(root, cache=cache)
    message = str(caught.value)
    assert "half.jpg" in message
    assert "bad08.png (not a PNG, JPEG, WebP or BMP image)" in message
    assert "bad09.png" not in message
    assert "and 2 more" in message
    assert kept(cache) == []


def test_truncated_file_alone_is_named(root, cache):
    file = root / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:-80])
    with pytest.raises(ValueError, match=r"1 of the images .*1\.png"):
        image_folder(root, cache=cache)
    assert kept(cache) == []


def test_mixed_sizes_name_both_and_the_fix(root, cache):
    save(root / "dog" / "2.png", np.zeros((7, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"2\.png is 9x7 RGB.*1\.png is 12x10 RGB.*--data\.size"):
        image_folder(root, cache=cache)
    assert image_folder(root, decoding=Decoding(size=8), cache=cache).image_shape == (3, 8, 8)


def test_mixed_kinds_name_both_and_channels_converts(root, cache):
    save(root / "dog" / "2.png", np.full((10, 12), 9, np.uint8))
    with pytest.raises(ValueError, match=r"2\.png is 12x10 grey.*12x10 RGB.*--data\.channels 3") as caught:
        image_folder(root, cache=cache)
    assert "--data.size" not in str(caught.value)
    data = image_folder(root, decoding=Decoding(channels=3), cache=cache)
    assert (data.images[3] == 9).all()
    assert image_folder(root, decoding=Decoding(channels=1), cache=cache).image_shape == (1, 10, 12)


def test_refused_kinds_name_the_file_and_options_take_them(root, cache):
    Image.new("RGBA", (12, 10), (0, 0, 0, 0)).save(root / "dog" / "2.png")
    with pytest.raises(ValueError, match=r"dog/2\.png has transparency: --data\.background white"):
        image_folder(root, cache=cache)
    data = image_folder(root, decoding=Decoding(background="#0a141e"), cache=cache)
    assert data.images[3, :, 0, 0].tolist() == [10, 20, 30]


def test_a_link_to_nowhere_is_named(root, cache):
    os.symlink(root / "absent.png", root / "cat" / "9.png")
    with pytest.raises(ValueError, match=r"1 of the images .*9\.png \(No such file"):
        image_folder(root, cache=cache)


def test_layout_errors(root, tmp_path, cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images \(looked for \.png"):
        image_folder(tmp_path / "empty", cache=cache)
    with pytest.raises(ValueError, match="not a folder"):
        image_folder(tmp_path / "nowhere", cache=cache)
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


def test_other_split_names_are_told_from_classes(tmp_path, cache):
    for number, names in enumerate(
        [("Training", "Testing"), ("TRAIN", "val", "cat"), ("training", "Test", "dog", "eel")]
    ):
        for name in names:
            save(tmp_path / str(number) / name / "x.png", np.zeros((4, 4), np.uint8))
        with pytest.raises(ValueError, match=f"{names[0]}.*parts of a data set") as caught:
            image_folder(tmp_path / str(number), cache=cache)
        assert "cat" not in str(caught.value)
    save(tmp_path / "vehicles" / "train" / "x.png", np.zeros((4, 4), np.uint8))
    save(tmp_path / "vehicles" / "bus" / "x.png", np.zeros((4, 4), np.uint8))
    assert image_folder(tmp_path / "vehicles", cache=cache).class_names == ("bus", "train")


def test_only_regular_files_are_read(root, cache):
    """A pipe would be waited for."""
    os.mkfifo(root / "cat" / "0.png")
    os.mkfifo(root / "cat" / "deep" / "0.png")
    assert len(image_folder(root, cache=cache)) == 5


def test_links_to_folders_are_followed_at_every_depth_and_loops_end(root, tmp_path, cache):
    save(tmp_path / "elsewhere" / "more.png", np.zeros((10, 12, 3), np.uint8))
    os.symlink(tmp_path / "elsewhere", root / "eel")
    os.symlink(tmp_path / "elsewhere", root / "cat" / "deep" / "linked")
    os.symlink(root, root / "cat" / "deep" / "loop")
    os.symlink(root / "cat", root / "cat" / "self")
    data = image_folder(root, cache=cache)
    assert data.class_names == ("cat", "dog", "eel")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_links_to_nothing_are_never_silent(root, cache):
    os.symlink(root / "absent", root / "eel")
    with pytest.raises(ValueError, match="eel is a link to nothing"):
        image_folder(root, cache=cache)
    (root / "eel").unlink()
    flat = root / "dog"
    os.symlink(root / "absent.png", flat / "9.png")
    with pytest.raises(ValueError, match=r"1 of the images .*9\.png \(No such file"):
        image_folder(flat, cache=cache)


def test_what_a_mac_packs_is_skipped(root, cache):
    save(root / "__MACOSX" / "x.png", np.zeros((4, 4), np.uint8))
    save(root / "cat" / "__MACOSX" / "x.png", np.zeros((4, 4), np.uint8))
    data = image_folder(root, cache=cache)
    assert (len(data), data.class_names) == (5, ("cat", "dog"))


def test_images_of_other_formats_are_left_out_aloud(root, cache, capfd):
    image_folder(root, cache=cache)
    assert capfd.readouterr().err == ""
    for name in ("dog/a.gif", "dog/b.TIF", "cat/c.tif"):
        Image.new("RGB", (12, 10)).save(root / name)
    assert len(image_folder(root, cache=cache)) == 5
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "3 files that look like images were left out (.gif, .tif): convert them" in said
    for file in (root / "dog").glob("[!ab.]*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"holds no images .*; 2 files .*\(\.gif, \.tif\): convert") as caught:
        image_folder(root / "dog", cache=cache)
    assert "\n" not in str(caught.value)


def test_all_options_that_a_set_needs_are_named_at_once(tmp_path, cache):
    root = tmp_path / "set"
    save(root / "a.png", np.zeros((10, 12, 3), np.uint8))
    for n in (1, 2):
        Image.new("RGBA", (12, 10)).save(root / f"b{n}.png")
        Image.new("CMYK", (12, 10)).save(root / f"c{n}.jpg")
        Image.fromarray(np.zeros((10, 12), np.uint16)).save(root / f"d{n}.png")
        save(root / f"e{n}.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match="converts all images") as caught:
        image_folder(root, cache=cache)
    said = str(caught.value)
    for part in (
        "b1.png has transparency",
        "c1.jpg has CMYK",
        "d1.png has 16 bits",
        "e1.png is 5x5 grey, but",
        "a.png is",
    ):
        assert part in said
    assert not any(f"{kind}2." in said for kind in "bcde")
    for option in ("--data.background white", "--data.channels 3", "--data.scale-16-bit", "--data.size 64"):
        assert said.count(option) == 1
    decoding = Decoding(size=4, channels=3, background="white", scale_16_bit=True)
    assert image_folder(root, decoding=decoding, cache=cache).image_shape == (3, 4, 4)
    (root / "z.png").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"1 of the images .*z\.png") as caught:
        image_folder(root, cache=cache)
    assert "--data" not in str(caught.value)


def test_refused_images_count_when_sizes_differ(tmp_path, cache):
    Image.new("RGBA", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGBA", (4, 6)).save(tmp_path / "b.png")
    with pytest.raises(
        ValueError, match=r"a\.png has transparency; .*b\.png is 4x6 RGB.*background white --data\.size"
    ):
        image_folder(tmp_path, cache=cache)


def test_names_that_break_lines_are_quoted(root, cache):
    (root / "dog" / "a\nb.png").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"dog/a\\nb\.png' \(not") as caught:
        image_folder(root, cache=cache)
    assert "\n" not in str(caught.value)
