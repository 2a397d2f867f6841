import colorsys

import numpy as np
import pytest

from genflow.data.images import load_images
from genflow.data.shapes import CLASS_NAMES, HUE_JITTER, HUES, hsv_to_rgb, shapes


def test_images_do_not_depend_on_how_many_are_drawn():
    long = shapes(2100, seed=3)
    for count in (0, 1, 7, 1000, 1001):
        short = shapes(count, seed=3)
        assert np.array_equal(short.images, long.images[:count])
        assert np.array_equal(short.labels, long.labels[:count])


def test_streams_differ_by_seed_and_split():
    seen = {
        image.tobytes() for seed in (0, 1) for split in ("train", "test") for image in shapes(500, seed, split).images
    }
    assert len(seen) == 2000


def test_default_sizes_and_balance():
    train, test, everything = (load_images("shapes", part) for part in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (6000, 3000, 9000)
    assert np.array_equal(everything.images[6000:], test.images)
    assert np.bincount(train.labels).tolist() == [600] * len(CLASS_NAMES)
    assert train.class_names == CLASS_NAMES
    assert train.images.dtype == np.uint8
    assert train.image_shape == (3, 32, 32)


def classify(images: np.ndarray) -> np.ndarray:
    """Class of each image from pixels alone: the nearest hue of its most saturated pixels."""
    rgb = images.astype(np.float64)
    chroma = rgb.max(axis=1) - rgb.min(axis=1)  # (N, 32, 32)
    strongest = np.argsort(chroma.reshape(len(images), -1), axis=1)[:, -10:]
    flat = rgb.reshape(len(images), 3, -1)
    found = np.empty(len(images), dtype=np.int64)
    for n, places in enumerate(strongest):
        red, green, blue = flat[n][:, places].mean(axis=1) / 255
        hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
        apart = np.abs((hue - np.array(HUES) + 180) % 360 - 180)
        assert apart.min() < HUE_JITTER + 2, "the colour is the class's own, within its jitter"
        found[n] = apart.argmin()
    return found


def test_labels_can_be_read_off_the_colours():
    data = shapes(1000, seed=5)
    assert np.array_equal(classify(data.images), data.labels)


def test_shapes_stay_inside_and_are_neither_tiny_nor_huge():
    data = shapes(2000, seed=7)
    rgb = data.images.astype(np.int64)
    covered = rgb.max(axis=1) - rgb.min(axis=1) > 90  # shape pixels are saturated, ground is not
    border = covered.copy()
    border[:, 1:-1, 1:-1] = False
    assert not border.any()
    area = covered.sum(axis=(1, 2))
    assert area.min() > 25
    assert area.max() < 450


def test_edges_are_anti_aliased_and_area_is_that_of_the_formula():
    # Class 0 is a disc: its cover sums to pi r^2, and its extent in x is 2 r.
    data = shapes(200, seed=9).subset(np.arange(0, 200, 10))
    rgb = data.images.astype(np.float64)
    red = rgb[:, 0] - (rgb[:, 1] + rgb[:, 2]) / 2
    cover = np.clip(red / np.quantile(red, 0.999, axis=(1, 2), keepdims=True), 0, 1)
    width = cover.max(axis=1).sum(axis=1)
    area = cover.sum(axis=(1, 2))
    ratio = area / (np.pi * (width / 2) ** 2)
    assert np.abs(np.median(ratio) - 1) < 0.1
    soft = ((cover > 0.15) & (cover < 0.85)).sum(axis=(1, 2))
    assert soft.min() >= 8


def test_hsv_agrees_with_the_standard_library():
    rng = np.random.default_rng(0)
    hsv = rng.random((100, 3))
    ours = hsv_to_rgb(hsv[:, 0] * 720 - 180, hsv[:, 1], hsv[:, 2])
    theirs = [colorsys.hsv_to_rgb((h * 2 - 0.5) % 1, s, v) for h, s, v in hsv]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="count=-1"):
        shapes(-1)
    with pytest.raises(ValueError, match="seed=-2"):
        shapes(1, seed=-2)
