"""From the bytes of an image file to pixels: one image, one kind of result, or a refusal that says what would do."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageColor, ImageFile, WebPImagePlugin

DECODER = 2  # part of every cache's name: raise it when the same bytes and options give other pixels

_FORMATS = (
    "PNG",
    "JPEG",
    str(WebPImagePlugin.WebPImageFile.format),
    "BMP",
)  # all that Pillow reads would include EPS, which runs a program
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_GREY = ("1", "L", "LA")
_KINDS = {"1": "black and white", "P": "palette", "PA": "palette", "CMYK": "cmyk"}
_ALPHA = ("LA", "PA", "RGBA")
_MODES = {0: None, 1: "L", 3: "RGB"}
_TURNS = {  # by the orientation that EXIF holds
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoding:
    """How encoded images become pixels (C, H, W) uint8.

    In this order: 16-bit values v become round(255 v / 65535); a transparent image of colour c and opacity a lies on
    the background b as round((a c + (255 - a) b) / 255); colours are converted; the image is turned upright as its
    EXIF orientation says; the central square is cut out and resized (bicubic, with antialiasing).

    Args:
        size: height and width in pixels; None takes images as they are.
        channels: 1 converts all to grey (ITU-R 601 luma), 3 to RGB; 0 leaves grey grey, makes RGB of palettes,
            and refuses other colours, such as CMYK.
        background: a colour by name or as #rrggbb; "" refuses transparency, of which an opaque image has none.
        scale_16_bit: scale 16-bit images to 8 bits; otherwise they are refused.

    Raises:
        ValueError: a size, number of channels or colour that does not exist.
    """

    size: int | None = None
    channels: Literal[0, 1, 3] = 0
    background: str = ""
    scale_16_bit: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size={self.size} must be a positive number of pixels")
        if self.channels not in (0, 1, 3):
            raise ValueError(f"channels={self.channels} must be 1 (grey), 3 (RGB) or 0 (as they are)")
        if self.background:
            self.backdrop()

    def backdrop(self) -> tuple[int, int, int]:
        """Return the background's red, green and blue, 0..255."""
        try:
            colour = ImageColor.getrgb(self.background)
        except ValueError:
            colour = ()
        if len(colour) != 3 or max(colour) > 255:
            raise ValueError(
                f"background {self.background!r} is not a colour: give a name such as white, or #rrggbb such as #8080ff"
            )
        return colour[0], colour[1], colour[2]


AS_STORED = Decoding()  # no option set


class Broken(ValueError):
    """An image that cannot be decoded."""


class Refused(ValueError):
    """An image that is sound, but of a kind that is not taken as it is.

    Args:
        name: what to call it.
        wanting: its kinds, each with the option that takes it.
        shape: (C, H, W) that it would have.
    """

    def __init__(self, name: str, wanting: Sequence[tuple[str, str]], shape: tuple[int, ...]) -> None:
        kinds, options = [kind for kind, _ in wanting], [option for _, option in wanting]
        super().__init__(f"{name} has {' and '.join(kinds)}: {' '.join(options)}")
        self.wanting, self.shape = tuple(wanting), shape


class Decoded(NamedTuple):
    """One image, and what its file was; codec and kind are named as in ``Stored``."""

    pixels: npt.NDArray[np.uint8]
    """(C, H, W), C-contiguous."""
    codec: str
    kind: str
    """Of its stored pixels."""
    sides: tuple[int, int]
    """Of the stored image, the shorter first."""
    resized: bool
    """Cropped or resized."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of what it has become."""
        return self.pixels.shape


def decode(encoded: bytes, name: str, decoding: Decoding) -> Decoded:
    """Return the pixels of one PNG, JPEG, WebP or BMP file, and what it was.

    It is turned upright as its EXIF orientation says; of an animation the first picture is taken.

    Raises:
        Broken: the file is damaged, cut short, too large or not an image of these formats.
        Refused: the kind of image needs an option that is not set; the message names it.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            flat, kind = _flatten(image, encoded, name, decoding)
            turn = _turn(image)
            codec = "jpeg" if image.format == "MPO" else str(image.format).lower()  # MPO: a JPEG with others behind it
            if codec == "webp" and b"VP8L" in encoded[:4096]:  # the chunk that holds pixels without loss
                codec = "webp-lossless"
    except (Refused, Broken, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise Broken(f"{name} (not a PNG, JPEG, WebP or BMP image)") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise Broken(f"{name} (sound, but too large: it has over {limit:,} pixels)") from error
    except _BROKEN as error:
        raise Broken(f"{name} ({error})") from error
    if turn is not None:
        flat = flat.transpose(turn)
    side, longest = min(flat.size), max(flat.size)
    resized = decoding.size is not None and flat.size != (decoding.size, decoding.size)
    if decoding.size is not None and resized:
        left, top = (flat.width - side) // 2, (flat.height - side) // 2
        flat = resize(flat.crop((left, top, left + side, top + side)), decoding.size)
    pixels = np.asarray(flat)
    pixels = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return Decoded(pixels, codec, kind, (side, longest), resized)


def resize(square: Image.Image, size: int) -> Image.Image:
    """Return a square image with this side: bicubic, with antialiasing."""
    return square.resize((size, size), Image.Resampling.BICUBIC)


def _flatten(image: Image.Image, encoded: bytes, name: str, decoding: Decoding) -> tuple[Image.Image, str]:
    """Return the image in mode L or RGB, which has been decoded in full, and the kind of its stored pixels."""
    stored = _stored_as(image)
    deep = image.mode.startswith("I;16") or stored.endswith((";16B", ";16L", ";16N"))
    transparent = image.mode in _ALPHA or "transparency" in image.info
    if deep or transparent or image.mode not in ("L", "RGB"):
        image, kind = _plain(image, encoded, name, decoding, deep=deep, transparent=transparent)
    else:
        kind = "grey" if image.mode == "L" else "rgb"
    image.load()
    mode = _MODES[decoding.channels]
    return (image if mode in (None, image.mode) else image.convert(mode)), kind


def _plain(
    image: Image.Image, encoded: bytes, name: str, decoding: Decoding, *, deep: bool, transparent: bool
) -> tuple[Image.Image, str]:
    """Return an image that is not plain grey or RGB in mode L or RGB, and its kind, or refuse it."""
    grey = image.mode in _GREY or image.mode.startswith("I;16") or _stored_as(image) == "LA;16B"
    stored = image
    if deep:
        image = _eight_bits(image, encoded, name)
    elif transparent and image.mode == "L":
        _scale_colour_key(image)
    opaque = not transparent or _is_opaque(image)
    kind = _KINDS.get(stored.mode, "grey" if grey else "rgb") + " 16 bit" * deep + " transparent" * (not opaque)
    wanting = [
        *([("transparency", "--data.background white")] * (not opaque and not decoding.background)),
        *([("16 bits a channel", "--data.scale-16-bit")] * (deep and not decoding.scale_16_bit)),
        *([("CMYK colours", "--data.channels 3")] * (image.mode == "CMYK" and not decoding.channels)),
    ]
    if wanting:
        raise Refused(name, wanting, _shape(image.size, _turn(stored), decoding, grey=grey))
    if transparent:
        image = _lay_on(image, decoding.backdrop() if decoding.background else (0, 0, 0), grey)
    if image.mode in ("CMYK", "P"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB"):
        raise Broken(f"{name} (mode {image.mode}, which has no exact 8-bit equivalent)")
    return image, kind


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what turns a decoded image upright."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (*_BROKEN, TypeError, KeyError, AttributeError):
        return None  # a picture is sound whatever is wrong with what is said about it


def _shape(
    size: tuple[int, int], turn: Image.Transpose | None, decoding: Decoding, *, grey: bool
) -> tuple[int, int, int]:
    """Return the shape of an image that is refused, if it were not."""
    turned = turn in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
    width, height = size[::-1] if turned else size
    return decoding.channels or (1 if grey else 3), decoding.size or height, decoding.size or width


def _is_opaque(image: Image.Image) -> bool:
    return bool(np.asarray(image.convert("RGBA"))[..., 3].min() == 255)


def _lay_on(image: Image.Image, backdrop: tuple[int, int, int], grey: bool) -> Image.Image:
    """Return an image without transparency: RGB, or L where both the image and what it lies on are grey."""
    pixels = np.asarray(image.convert("RGBA")).astype(np.uint32)
    colour, opacity = pixels[..., :3], pixels[..., 3:]
    # a sum divided by 255 is never halfway between two integers, so that this rounding is exact
    laid = (opacity * colour + (255 - opacity) * np.array(backdrop, np.uint32) + 127) // 255
    if grey and len(set(backdrop)) == 1:
        laid = laid[..., 0]
    return Image.fromarray(laid.astype(np.uint8))


def _scale_colour_key(image: Image.Image) -> None:
    """Bring the transparent value of a PNG of 2 or 4 bits to the scale of its decoded pixels."""
    factor = {"L;2": 85, "L;4": 17}.get(_stored_as(image))
    if factor is not None:
        image.info["transparency"] *= factor


def _eight_bits(image: Image.Image, encoded: bytes, name: str) -> Image.Image:
    """Return a 16-bit image scaled to 8 bits, in mode L, RGB or RGBA."""
    deep = _sixteen_bits(image, encoded, name)  # (H, W, C)
    pixels = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, odd: no ties
    if "transparency" in image.info:  # one value is wholly transparent
        opacity = np.where((deep == image.info["transparency"]).all(axis=-1), 0, 255).astype(np.uint8)
        return Image.fromarray(np.dstack([np.broadcast_to(pixels, (*opacity.shape, 3)), opacity]))
    if pixels.shape[-1] == 2:
        return Image.fromarray(pixels[..., [0, 0, 0, 1]])
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _sixteen_bits(image: Image.Image, encoded: bytes, name: str) -> npt.NDArray[np.uint16]:
    """Return all 16 bits of an image (H, W, C), of which Pillow keeps eight where there are several channels."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    stored = _stored_as(image)
    if image.format == "PNG" and stored in ("RGB;16B", "RGBA;16B"):
        # what is stored with the high byte first, read as if the low byte were first, gives the low bytes
        high = _read_as(encoded, stored).astype(np.uint16)
        return 256 * high + _read_as(encoded, stored.removesuffix("B") + "L")
    if image.format == "PNG" and stored == "LA;16B":
        return _read_as(encoded, "RGBA").view(">u2").astype(np.uint16)  # four bytes a pixel, as they are
    raise Broken(f"{name} (16 bits a channel as {image.format} {image.mode}, which is read from PNG only)")


def _read_as(encoded: bytes, stored: str) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
        assert isinstance(image, ImageFile.ImageFile)
        image.tile = [tile._replace(args=stored) for tile in image.tile]
        return np.asarray(image)


def _stored_as(image: Image.Image) -> str:
    """How the file stores pixels: Pillow keeps it alone or first in a tile's arguments."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return ""
    arguments = image.tile[0].args
    return str(arguments[0]) if isinstance(arguments, tuple) and arguments else str(arguments)
