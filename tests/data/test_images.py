import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.data import Decoding, ImageData, load_images
from genflow.data.images import classes_in
from genflow.pixels import quantize, to_unit


def bytes_256() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8)


def test_quantize_inverts_to_unit_on_every_byte():
    x = to_unit(bytes_256())
    assert x.dtype == torch.float32
    assert x[0] == -1
    assert x[255] == 1
    assert torch.equal(quantize(x), bytes_256())


def test_quantize_rounds_to_the_nearest_byte_and_clips():
    x = to_unit(bytes_256())
    step = 1 / 127.5
    assert torch.equal(quantize(x + 0.49 * step), bytes_256())
    assert torch.equal(quantize(x - 0.49 * step), bytes_256())
    assert torch.equal(quantize(x + 0.51 * step)[:-1], bytes_256()[1:])
    assert quantize(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_conversions_refuse_the_other_kind():
    with pytest.raises(ValueError, match="float32"):
        to_unit(torch.zeros(2))
    with pytest.raises(ValueError, match="uint8"):
        quantize(bytes_256())


def make(count: int = 4) -> ImageData:
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 3, 2, 2)
    return ImageData(images, np.arange(count, dtype=np.int64) % 2, ("a", "b"), "toy")


def test_record_properties_and_subset():
    data = make()
    assert (len(data), data.image_shape, data.num_classes) == (4, (3, 2, 2), 2)
    part = data.subset([3, 0])
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0]
    assert np.array_equal(part.images, data.images[[3, 0]])
    part.images[:] = 0
    assert data.images[3].any(), "a subset is a copy"
    assert len(data.subset([])) == 0


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (np.zeros((2, 1, 2, 2), np.float32), None, (), "uint8"),
        (np.zeros((2, 2, 2), np.uint8), None, (), "uint8"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(3, np.int64), ("a",), "labels must be"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 2]), ("a", "b"), "label 2 of image 1"),
        (np.zeros((2, 1, 2, 2), np.uint8), None, ("a",), "no labels"),
    ],
)
def test_record_refuses_what_does_not_fit(images, labels, names, message):
    with pytest.raises(ValueError, match=message):
        ImageData(images, labels, names, "bad")


def test_fingerprints_tell_sets_apart():
    data = make()
    assert data.fingerprint == make().fingerprint
    changed = data.images.copy()
    changed[-1, -1, -1, -1] ^= 1
    others = [
        dataclasses.replace(data, images=changed),
        dataclasses.replace(data, images=data.images.reshape(4, 3, 4, 1)),
        dataclasses.replace(data, labels=1 - data.labels),
        dataclasses.replace(data, labels=None, class_names=()),
        dataclasses.replace(data, class_names=("a", "c")),
        data.subset([1, 0, 2, 3]),
        data.subset([0, 1, 2]),
    ]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 8
    assert (
        data.subset([0, 1, 2, 3]).fingerprint == dataclasses.replace(data, name="other").fingerprint == data.fingerprint
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_of_either_layout(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 4, 6), dtype=np.uint8)
    np.savez(tmp_path / "first.npz", images=images, labels=np.array([0, 1, 2, 1, 0], np.int32))
    np.savez(tmp_path / "last.npz", images=images.transpose(0, 2, 3, 1))
    first, last = load_images(tmp_path / "first.npz"), load_images(str(tmp_path / "last.npz"))
    assert np.array_equal(first.images, images)
    assert np.array_equal(last.images, images)
    assert first.class_names == ("0", "1", "2")
    assert last.labels is None
    assert first.name == "first"


def test_npz_of_an_array_without_a_name(tmp_path):
    """As ADM's samples lie, with labels that nobody numbered without gaps."""
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", images, np.array([7, 900, 1, 1, 3]))
    data = load_images(tmp_path / "samples.npz")
    assert np.array_equal(data.images, images.transpose(0, 3, 1, 2))
    assert data.labels is None


def test_advice_on_floats_is_the_rule_of_quantize(tmp_path):
    """floor(127.5 x + 128) of x in [-1, 1] is floor(255 u + 0.5) of u = (x + 1) / 2."""
    u = (np.arange(256) + np.array([[-0.49], [0.0], [0.49]])) / 255
    expected = quantize(torch.from_numpy(2 * u - 1)).numpy()
    assert np.array_equal(np.floor(255 * u + 0.5).clip(0, 255), expected)


def test_npz_refusals(tmp_path):
    path = tmp_path / "x.npz"
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for arrays, message in [
        ({"pictures": images}, "no array named 'images'"),
        ({"images": images.astype(np.float32)}, r"float32 numbers, but .* measured as uint8: write floor\(127.5 x"),
        ({"arr_0": images.astype(np.float16)}, r"'arr_0' holds float16 numbers"),
        ({"images": images.astype(np.int32)}, "must be uint8"),
        ({"images": np.zeros((2, 3, 3, 3), np.uint8)}, "either second or last"),
        ({"images": images, "labels": np.zeros(2)}, "'labels' must be integers"),
        ({"images": images, "labels": np.array([0, -1])}, "x.npz holds the label -1: labels count from 0"),
        ({"images": images, "labels": np.array([0, 2**31 + 5])}, "no image of class 1: number the classes"),
        ({"images": images, "labels": np.array([0, 2])}, "x.npz holds labels up to 2, but no image of class 1"),
        ({"images": images, "labels": np.array([0])}, "x.npz: there are 2 images, but 1 labels"),
        ({"images": np.zeros((2, 0, 0, 3), np.uint8)}, r"x.npz: 'images' \(2, 0, 0, 3\) holds no pixels"),
        ({"images": np.array([None, {}], dtype=object)}, "cannot read images"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            load_images(path)
    np.savez_compressed(path, images=np.arange(3 * 64 * 64, dtype=np.uint8).reshape(1, 64, 64, 3))
    packed = path.read_bytes()
    for place in range(60, len(packed) - 200, 3):  # within what is packed
        damaged = bytearray(packed)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot read images"):
            load_images(path)
    path.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match="cannot read images"):
        load_images(path)


def test_unknown_sources_say_what_would_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"mnist5.*did you mean 'mnist5k'.*folder.*npz"):
        load_images("mnist5")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"neither \.zip nor \.npz"):
        load_images(tmp_path / "notes.txt")
    Image.new("L", (4, 4)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"one\.png is one image: give the folder"):
        load_images(tmp_path / "one.png")
    (tmp_path / "x.parquet").touch()
    with pytest.raises(ValueError, match=rf"give hf:{tmp_path}/x\.parquet"):
        load_images(tmp_path / "x.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"give hf:\./x\.parquet"):
        load_images("x.parquet")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").touch()
    with pytest.raises(ValueError, match=r"save_to_disk wrote: give hf:\./saved"):
        load_images("saved")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "x.parquet").touch()
    with pytest.raises(ValueError, match=r"tables holds no images .* give hf:\./tables"):
        load_images("tables")
    with pytest.raises(ValueError, match="cannot find '~nosuchuser/x'"):
        load_images("~nosuchuser/x")
    with pytest.raises(ValueError, match="no held-out split"):
        load_images(tmp_path, "test")
    with pytest.raises(ValueError, match="'valid' is not one of"):
        load_images("digits", "valid")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="32x32 images and is not resized"):
        load_images("shapes", decoding=Decoding(size=16))
    with pytest.raises(ValueError, match="images of 3 channels and is not converted: leave out channels=1"):
        load_images("shapes", decoding=Decoding(channels=1))


def test_images_of_some_classes_are_a_set_with_classes_of_its_own() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    data = ImageData(images, np.arange(12) % 4, ("a", "b", "c", "d"), "letters", content="abc")
    part = data.of_classes([3, 1])
    assert part.images.ravel().tolist() == [1, 3, 5, 7, 9, 11]
    assert part.labels is not None
    assert part.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert (part.class_names, part.name) == (("b", "d"), "letters, classes 1 3")
    assert part.fingerprint == data.of_classes([1, 3]).fingerprint != data.of_classes([1, 2]).fingerprint
    assert classes_in(part.name) == (1, 3)
    assert classes_in(data.name) == classes_in("of, classes 1 and 3") == ()
    with pytest.raises(ValueError, match="letters has classes 0 to 3, and was asked for"):
        data.of_classes([4])
    bare = ImageData(images, None, (), "bare")
    with pytest.raises(ValueError, match="bare has no labels"):
        bare.of_classes([0])
