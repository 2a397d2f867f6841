"""Procedural colour images with exact labels: ten shapes, each of its own hue, 32x32 pixels.

A shape is given by its signed distance d in pixels (negative inside), so that its anti-aliased
cover is clip(1/2 - d, 0, 1) and the image is

    cover * colour + (1 - cover) * background,

with random position, size, rotation and colour jitter, on a greyish gradient. Everything about
image i follows from (seed, split, i) by a counter-based generator (Philox), never from how many
images are asked for. The distance functions are the usual ones (Inigo Quilez, "2D distance
functions").
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from genflow.data.images import ImageData, Split

Floats = npt.NDArray[np.floating]

SIZE = 32
TRAIN_COUNT, TEST_COUNT = 6000, 3000
CLASS_NAMES = (
    "red disc",
    "orange triangle",
    "yellow star",
    "lime square",
    "green cross",
    "turquoise ring",
    "azure drop",
    "blue moon",
    "violet arrow",
    "pink heart",
)
HUES = (0, 26, 50, 82, 130, 168, 200, 232, 272, 322)
"""Hue of each class in degrees; an image's own hue is within ``HUE_JITTER`` of it."""
HUE_JITTER = 6.0

_RADII = (0.80, 1.10, 1.05, 1.06, 1.00, 0.92, 1.05, 1.0, 1.05, 1.08)
"""Circumradius of each shape relative to the drawn size, so that all look equally large."""
_DRAWS = 16
_CHUNK = 1000


def shapes(count: int, seed: int = 0, split: Split = "train") -> ImageData:
    """Draw the first ``count`` images of a stream; image i has class i mod 10.

    Shapes: images (count, 3, 32, 32), labels (count,). 10,000 images take a few seconds.

    Args:
        count: how many images (for ``all``: of each stream, train before test).
        seed: 0 <= seed < 2^63; every seed has two disjoint streams, train and test.
        split: which stream.

    Raises:
        ValueError: count or seed is out of range.
    """
    if count < 0 or not 0 <= seed < 2**63:
        raise ValueError(f"count={count} and seed={seed} must be >= 0, and seed below 2^63")
    if split == "all":
        return _joined(shapes(count, seed, "train"), shapes(count, seed, "test"))
    stream = np.random.Generator(np.random.Philox(key=[seed, 0 if split == "train" else 1]))
    labels = np.arange(count, dtype=np.int64) % len(CLASS_NAMES)
    images = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        part = labels[start : start + _CHUNK]
        draws = stream.random((len(part), _DRAWS)).astype(np.float32)  # one row an image, in order
        images[start : start + _CHUNK] = _render(draws, part)
    return ImageData(images, labels, CLASS_NAMES, f"shapes-{split}")


def shapes_split(split: Split) -> ImageData:
    """The default set: 6,000 images to train on, 3,000 held out, seed 0."""
    match split:
        case "train":
            return shapes(TRAIN_COUNT, split="train")
        case "test":
            return shapes(TEST_COUNT, split="test")
        case "all":
            return _joined(shapes(TRAIN_COUNT, split="train"), shapes(TEST_COUNT, split="test"))


def _joined(train: ImageData, test: ImageData) -> ImageData:
    assert train.labels is not None
    assert test.labels is not None
    return dataclasses.replace(
        train,
        images=np.concatenate([train.images, test.images]),
        labels=np.concatenate([train.labels, test.labels]),
        name="shapes-all",
    )


def hsv_to_rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """Colours from hue in degrees, saturation and value in [0, 1]: shapes (N,) to (N, 3) in [0, 1].

    Channel n = 5, 3, 1 is v - v s clip(min(k, 4 - k), 0, 1) with k = (n + hue/60) mod 6.
    """
    k = np.mod(np.array([5, 3, 1], dtype=np.float32) + hue[:, None] / 60, 6)
    return value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))


def _render(draws: Floats, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Images (N, 3, 32, 32) from uniform draws (N, 16) and labels (N,)."""
    u = draws.T  # (16, N)
    signed = 2 * u - 1
    radius = (7.0 + 4.5 * u[0]) * np.array(_RADII, dtype=np.float32)[labels]
    margin = SIZE / 2 - np.minimum(radius + 1, SIZE / 2 - 1)
    angle = signed[3] * math.pi
    hue = np.array(HUES, dtype=np.float32)[labels] + HUE_JITTER * signed[4]
    colour = hsv_to_rgb(hue, 0.78 + 0.2 * u[5], 0.8 + 0.2 * u[6])

    pixels = np.arange(SIZE, dtype=np.float32) + 0.5 - SIZE / 2
    x = pixels[None, None, :] - (signed[1] * margin)[:, None, None]
    y = pixels[None, :, None] - (signed[2] * margin)[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    x, y = cos * x + sin * y, cos * y - sin * x  # (N, 32, 32), the shape's own axes
    distance = np.empty((len(labels), SIZE, SIZE), dtype=np.float32)
    for label in range(len(CLASS_NAMES)):
        rows = labels == label
        size = radius[rows][:, None, None]
        distance[rows] = _distance(label, x[rows] / size, y[rows] / size) * size
    cover = np.clip(0.5 - distance, 0, 1)[:, None]  # (N, 1, 32, 32)

    background = _background(u[7:], pixels)
    image = cover * colour[:, :, None, None] + (1 - cover) * background
    return np.floor(image * 255 + 0.5).astype(np.uint8)


def _background(u: Floats, pixels: Floats) -> Floats:
    """A linear gradient between two greyish tones, (N, 3, 32, 32), from uniform draws (>= 7, N)."""
    tint = hsv_to_rgb(360 * u[0], 0.14 * u[1], np.ones_like(u[0]))
    dark, light = 0.12 + 0.5 * u[2], 0.12 + 0.5 * u[3]
    direction = 2 * math.pi * u[4]
    across = np.cos(direction)[:, None, None] * pixels[None, None, :]
    down = np.sin(direction)[:, None, None] * pixels[None, :, None]
    ramp = 0.5 + (across + down) / (math.sqrt(2) * SIZE)  # (N, 32, 32) in [0, 1]
    tone = dark[:, None, None] + (light - dark)[:, None, None] * ramp
    return tone[:, None] * tint[:, :, None, None]


def _distance(label: int, x: Floats, y: Floats) -> Floats:
    """Signed distance to a shape that just fits a circle of radius one; x to the right, y down."""
    match label:
        case 0:
            return np.hypot(x, y) - 1
        case 1:
            return _triangle(x, y)
        case 2:
            return _star(x, y)
        case 3:
            return _box(x, y, math.sqrt(0.5), math.sqrt(0.5))
        case 4:
            return np.minimum(_box(x, y, 0.947, 0.322), _box(x, y, 0.322, 0.947))
        case 5:
            return np.abs(np.hypot(x, y) - 0.76) - 0.24
        case 6:
            return _drop(x, y - 0.3)
        case 7:
            return np.maximum(np.hypot(x, y) - 1, 0.78 - np.hypot(x - 0.5, y))
        case 8:
            return _arrow(x, y)
        case _:
            return _heart(1.12 * x, 1.12 * y) / 1.12


def _box(x: Floats, y: Floats, half_width: float, half_height: float) -> Floats:
    right, down = np.abs(x) - half_width, np.abs(y) - half_height
    outside = np.hypot(np.maximum(right, 0), np.maximum(down, 0))
    return outside + np.minimum(np.maximum(right, down), 0)


def _triangle(x: Floats, y: Floats) -> Floats:
    """Equilateral, point up, as the greatest of three half-plane distances (sharp corners)."""
    side = math.sqrt(0.75) * np.abs(x) - 0.5 * y
    return np.maximum(side, y) - 0.5


def _star(x: Floats, y: Floats) -> Floats:
    """Five points; by symmetry the distance to one half-edge after folding the plane."""
    sector = math.pi / 5
    angle = np.mod(np.arctan2(x, -y) + sector, 2 * sector) - sector
    length = np.hypot(x, y)
    across, along = length * np.sin(np.abs(angle)), length * np.cos(angle)
    inner = 0.47
    edge_x, edge_y = inner * math.sin(sector), inner * math.cos(sector) - 1
    scale = 1 / math.hypot(edge_x, edge_y)
    # Signed distance to the line from the tip (0, 1) to the inner corner, positive outside.
    return (-across * edge_y + (along - 1) * edge_x) * scale


def _drop(x: Floats, y: Floats) -> Floats:
    """A round end of radius 0.68 with tangents that meet in a point above."""
    radius, tip = 0.68, 1.25
    sine = radius / tip
    cosine = math.sqrt(1 - sine**2)
    cone = np.abs(x) * cosine - (y + tip) * sine
    touch = -radius * sine  # height where tangents and circle meet
    return np.where(y < touch, cone, np.hypot(x, y) - radius)


def _arrow(x: Floats, y: Floats) -> Floats:
    head = np.maximum(math.sqrt(0.5) * (np.abs(x) - y - 1), y + 0.05)
    return np.minimum(head, _box(x, y - 0.4, 0.32, 0.55))


def _heart(x: Floats, y: Floats) -> Floats:
    """Two discs and the square between their centres, standing on its corner."""
    x = np.abs(x)
    half, top = 0.5, -0.3
    disc = np.hypot(x - half, y - top) - math.sqrt(0.5) * 0.75
    body = np.maximum(
        math.sqrt(0.5) * (x + (y - top)) - math.sqrt(0.5) * (half + 0.75),
        -math.sqrt(0.5) * (y - top) - math.sqrt(0.5) * x - 0.1,
    )
    return np.minimum(disc, np.where(y - top > x - half, body, disc))
