"""Pixels of every mode against closed forms; PNGs of 16 bits are written here, since Pillow cannot."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from genflow.data import decoding
from genflow.data.decoding import AS_STORED, Broken, Decoded, Decoding, Refused
from genflow.data.folder import image_folder

RNG = np.random.default_rng(0)
GREY, RGB, GREY_ALPHA, RGB_ALPHA = 0, 2, 4, 6  # colour types of PNG
WHITE = Decoding(background="white")
DEEP = Decoding(scale_16_bit=True)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(rows: list[bytes], size: tuple[int, int], depth: int, colour: int, key: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    body = chunk(b"tRNS", key) if key else b""
    body += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def png_16(values: np.ndarray, colour: int, key: bytes = b"") -> bytes:
    rows = [row.astype(">u2").tobytes() for row in values]
    return png(rows, (values.shape[1], values.shape[0]), 16, colour, key)


def laid(colour: np.ndarray, opacity: np.ndarray, backdrop: tuple[int, ...]) -> np.ndarray:
    """round((a c + (255 - a) b) / 255) in floating point, where it has no ties."""
    a = opacity.astype(np.float64)[..., None] / 255
    return np.rint(a * colour + (1 - a) * np.array(backdrop, np.float64)).astype(np.uint8)


def decode(encoded: bytes, name: str, how: Decoding) -> np.ndarray:
    return decoding.decode(encoded, name, how).pixels


def hwc(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(1, 2, 0)


def test_plain_images_are_as_stored():
    grey, rgb = RNG.integers(0, 256, (5, 7), np.uint8), RNG.integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(decode(saved(Image.fromarray(grey)), "x", AS_STORED), grey[None])
    found = decode(saved(Image.fromarray(rgb)), "x", AS_STORED)
    assert np.array_equal(hwc(found), rgb)
    assert found.flags.c_contiguous
    assert np.array_equal(
        hwc(decode(saved(Image.fromarray(grey)), "x", Decoding(channels=3))), grey[..., None] + [0] * 3
    )
    luma = np.rint(rgb @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(decode(saved(Image.fromarray(rgb)), "x", Decoding(channels=1))[0] - luma).max() <= 1


def test_one_bit_is_black_and_white():
    bits = RNG.integers(0, 2, (6, 9)).astype(bool)
    assert np.array_equal(decode(saved(Image.fromarray(bits)), "x", AS_STORED)[0], 255 * bits)


def test_a_palette_becomes_its_colours():
    palette, index = RNG.integers(0, 256, (16, 3), np.uint8), RNG.integers(0, 16, (6, 5), np.uint8)
    image = Image.fromarray(index, "L").convert("P")
    image.frombytes(index.tobytes())
    image.putpalette(palette.tobytes())
    assert np.array_equal(hwc(decode(saved(image), "x", AS_STORED)), palette[index])
    opacity = RNG.integers(0, 256, 16, np.uint8)
    seen = decode(saved(image, transparency=opacity.tobytes()), "x", Decoding(background="#8080ff"))
    assert np.array_equal(hwc(seen), laid(palette[index], opacity[index], (128, 128, 255)))


@pytest.mark.parametrize(
    ("name", "backdrop"), [("white", (255,) * 3), ("#8080ff", (128, 128, 255)), ("black", (0,) * 3)]
)
def test_every_colour_and_opacity_is_laid_on_exactly(name: str, backdrop: tuple[int, ...]):
    """All 65,536 pairs of value and opacity."""
    value, opacity = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = Image.fromarray(np.dstack([value, 255 - value, value ^ 85, opacity]))
    expected = laid(np.dstack([value, 255 - value, value ^ 85]), opacity, backdrop)
    assert np.array_equal(hwc(decode(saved(image), "x", Decoding(background=name))), expected)


def test_grey_with_opacity_stays_grey_on_grey_only():
    values = RNG.integers(0, 256, (4, 5, 2), np.uint8)
    image = saved(Image.fromarray(values, "LA"))
    on_white = decode(image, "x", WHITE)
    expected = laid(np.repeat(values[..., :1], 3, 2), values[..., 1], (255,) * 3)
    assert on_white.shape == (1, 4, 5)
    assert np.array_equal(on_white[0], expected[..., 0])
    assert np.array_equal(hwc(decode(image, "x", Decoding(background="white", channels=3))), expected)
    assert decode(image, "x", Decoding(background="red")).shape == (3, 4, 5)


def test_a_transparent_colour_is_replaced():
    rgb = RNG.integers(0, 2, (6, 6, 3), np.uint8) * 255
    seen = hwc(decode(saved(Image.fromarray(rgb), transparency=(255, 0, 255)), "x", Decoding(background="#010203")))
    key = (rgb == [255, 0, 255]).all(-1)
    assert np.array_equal(seen, np.where(key[..., None], np.array([1, 2, 3], np.uint8), rgb))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_grey_is_replaced_at_every_depth(depth: int):
    """The key counts in the file's own steps, of which there are 2^depth."""
    levels = 2**depth
    values = np.arange(8).reshape(1, 8) % levels
    packed = bytes(
        int("".join(f"{v:0{depth}b}" for v in values[0, start : start + 8 // depth]), 2)
        for start in range(0, 8, 8 // depth)
    )
    file = png([packed], (8, 1), depth, GREY, key=struct.pack(">H", 1))
    expected = np.where(values == 1, 7, values * (255 // (levels - 1)))
    assert np.array_equal(decode(file, "x", Decoding(background="#070707"))[0], expected)


def scaled(values: np.ndarray) -> np.ndarray:
    return np.rint(values.astype(np.float64) * 255 / 65535).astype(np.uint8)


def test_every_16_bit_grey_is_scaled_exactly():
    values = np.arange(65536).reshape(256, 256)
    assert np.array_equal(decode(png_16(values, GREY), "x", DEEP)[0], scaled(values))


@pytest.mark.parametrize(("colour", "channels"), [(RGB, 3), (RGB_ALPHA, 4), (GREY_ALPHA, 2)])
def test_16_bit_colours_are_scaled_exactly(colour: int, channels: int):
    values = np.random.default_rng(channels).integers(0, 65536, (64, 32, channels))
    values[:4, :, :] = [[[0, 127, 128, 129, 255, 256, 257, 65407][k % 8]] * channels for k in range(32)]
    file = png_16(values, colour)
    seen = hwc(decode(file, "x", Decoding(scale_16_bit=True, background="#204060" if channels != 3 else "")))
    match channels:
        case 3:
            expected = scaled(values)
        case 4:
            expected = laid(scaled(values[..., :3]), scaled(values[..., 3]), (32, 64, 96))
        case _:
            expected = laid(scaled(values[..., [0, 0, 0]]), scaled(values[..., 1]), (32, 64, 96))
    assert np.array_equal(seen, expected)


def test_a_transparent_16_bit_colour_is_compared_in_all_its_bits():
    grey = np.array([[256, 257, 258, 40000]])
    seen = decode(png_16(grey, GREY, struct.pack(">H", 257)), "x", Decoding(background="white", scale_16_bit=True))
    assert seen.tolist() == [[[1, 255, 1, 156]]]
    rgb = np.array([[[1, 2, 3], [1, 2, 4]]]) * 257
    key = struct.pack(">HHH", 257, 514, 771)
    seen = decode(png_16(rgb, RGB, key), "x", Decoding(background="white", scale_16_bit=True))
    assert hwc(seen).tolist() == [[[255, 255, 255], [1, 2, 4]]]


@pytest.mark.parametrize("channels", [1, 3])
def test_cmyk_is_converted_when_channels_are_asked_for(channels: int):
    image = saved(Image.fromarray(RNG.integers(0, 256, (16, 16, 4), np.uint8), "CMYK"), "JPEG", quality=95)
    direct = Image.open(io.BytesIO(image)).convert("RGB")
    if channels == 1:
        direct = direct.convert("L")
    seen = decode(image, "x", Decoding(channels=channels))  # pyright: ignore[reportArgumentType]
    assert np.array_equal(hwc(seen).squeeze(), np.asarray(direct))


def test_size_is_taken_after_compositing():
    rgba = RNG.integers(0, 256, (10, 16, 4), np.uint8)
    flat = laid(rgba[..., :3], rgba[..., 3], (255,) * 3)
    direct = Image.fromarray(flat[:, 3:13]).resize((4, 4), Image.Resampling.BICUBIC)
    seen = decode(saved(Image.fromarray(rgba)), "x", Decoding(background="white", size=4))
    assert np.array_equal(hwc(seen), np.asarray(direct))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (saved(Image.new("RGBA", (4, 4))), "x has transparency: --data.background white"),
        (saved(Image.new("LA", (4, 4))), "x has transparency: --data.background white"),
        (saved(Image.new("P", (4, 4)), transparency=0), "x has transparency: --data.background white"),
        (saved(Image.new("I;16", (4, 4))), "x has 16 bits a channel: --data.scale-16-bit"),
        (png_16(np.zeros((2, 2, 3)), RGB), "x has 16 bits a channel: --data.scale-16-bit"),
        (
            png_16(np.zeros((2, 2, 4)), RGB_ALPHA),
            "x has transparency and 16 bits a channel: --data.background white --data.scale-16-bit",
        ),
        (saved(Image.new("CMYK", (4, 4)), "JPEG"), "x has CMYK colours: --data.channels 3"),
    ],
)
def test_refused_kinds_name_the_option(encoded: bytes, message: str):
    with pytest.raises(Refused, match=message):
        decode(encoded, "x", AS_STORED)


def test_broken_files_are_told_from_refused_ones():
    good = saved(Image.fromarray(RNG.integers(0, 256, (32, 32, 3), np.uint8)))
    for encoded, message in [
        (b"", r"x \(not a PNG, JPEG, WebP or BMP image\)"),
        (b"garbage", r"x \(not a PNG, JPEG, WebP or BMP image\)"),
        (good[:-60], "x .*truncated"),
        (good[:20], "x "),
    ]:
        with pytest.raises(Broken, match=message):
            decode(encoded, "x", AS_STORED)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "TGA", "EPS", "ICO"])
def test_formats_that_are_not_read_are_refused_whatever_their_name(kind: str):
    """Pillow knows them by their bytes, and has Ghostscript run EPS."""
    encoded = saved(Image.new("RGB", (16, 16)), kind)
    with pytest.raises(Broken, match=r"x\.png \(not a PNG, JPEG, WebP or BMP image\)"):
        decode(encoded, "x.png", AS_STORED)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "WEBP", "BMP"])
def test_formats_that_are_read(kind: str):
    image = Image.new("RGB", (16, 16), (9, 9, 9))
    assert (decode(saved(image, kind), "x", AS_STORED) == 9).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(kind: str, orientation: int):
    """Against Pillow's own; the size is cut out of what is upright."""
    pixels = np.kron(RNG.integers(0, 256, (3, 2, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = saved(Image.fromarray(pixels), kind, exif=exif)
    with Image.open(io.BytesIO(encoded)) as image:
        upright = ImageOps.exif_transpose(image)
    assert np.array_equal(hwc(decode(encoded, "x", AS_STORED)), np.asarray(upright))
    if kind == "PNG":
        direct = upright.crop((4, 0, 20, 16) if upright.width == 24 else (0, 4, 16, 20)).resize((8, 8), 3)
        assert np.array_equal(hwc(decode(encoded, "x", Decoding(size=8))), np.asarray(direct))


def test_a_damaged_orientation_does_not_damage_the_image():
    encoded = saved(Image.new("RGB", (4, 4)), exif=b"Exif\0\0garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(encoded, "x", AS_STORED).shape == (3, 4, 4)


def test_refused_images_know_the_shape_they_would_have():
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode, channels in (("RGBA", 3), ("LA", 1)):
        with pytest.raises(Refused) as caught:
            decode(saved(Image.new(mode, (6, 4)), exif=exif), "x", AS_STORED)
        assert caught.value.shape == (channels, 6, 4)


def test_what_is_opaque_everywhere_is_not_transparent():
    rgb = RNG.integers(0, 256, (5, 4, 3), np.uint8)
    alpha = np.full((5, 4, 1), 255, np.uint8)
    assert np.array_equal(hwc(decode(saved(Image.fromarray(np.dstack([rgb, alpha]))), "x", AS_STORED)), rgb)
    grey = np.dstack([rgb[..., :1], alpha])
    assert np.array_equal(decode(saved(Image.fromarray(grey, "LA")), "x", AS_STORED)[0], rgb[..., 0])
    deep = np.dstack([257 * rgb.astype(np.int64), 257 * alpha.astype(np.int64)])
    assert np.array_equal(hwc(decode(png_16(deep, RGB_ALPHA), "x", DEEP)), rgb)
    alpha[2, 3] = 254
    with pytest.raises(Refused, match="transparency"):
        decode(saved(Image.fromarray(np.dstack([rgb, alpha]))), "x", AS_STORED)


def test_large_images_are_decoded_and_too_large_ones_are_not_called_damaged(monkeypatch, tmp_path):
    """Pillow warns from MAX_IMAGE_PIXELS on (an error in these tests) and raises at twice as many."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "set").mkdir()
    Image.new("L", (12, 12)).save(tmp_path / "set" / "a.png")
    assert image_folder(tmp_path / "set", cache=tmp_path / "cache").image_shape == (1, 12, 12)
    Image.new("L", (20, 20)).save(tmp_path / "set" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png \(sound, but too large: it has over 200 pixels\)"):
        image_folder(tmp_path / "set", cache=tmp_path / "cache")


def traced(image: Image.Image, kind: str = "PNG", how: Decoding = AS_STORED, **options: object) -> Decoded:
    return decoding.decode(saved(image, kind, **options), "x", how)


def test_codecs_are_told_by_content():
    image = Image.new("RGB", (6, 4))
    for kind, codec in [("PNG", "png"), ("JPEG", "jpeg"), ("MPO", "jpeg"), ("WEBP", "webp"), ("BMP", "bmp")]:
        assert decoding.decode(saved(image, kind), "x.png", AS_STORED).codec == codec


def test_kinds_of_stored_pixels():
    """What is opaque everywhere, or a palette of greys, is told as it is stored."""
    anything = Decoding(channels=3, background="white", scale_16_bit=True)
    clear = Image.fromarray(np.full((4, 4, 4), 100, np.uint8), "RGBA")
    opaque = Image.new("RGBA", (4, 4), (1, 2, 3, 255))
    found = {
        "grey": traced(Image.new("L", (4, 4)), how=anything),
        "rgb": traced(Image.new("RGB", (4, 4)), how=anything),
        "black and white": traced(Image.new("1", (4, 4)), how=anything),
        "palette": traced(Image.new("P", (4, 4)), how=anything),
        "palette transparent": traced(Image.new("P", (4, 4)), transparency=0, how=anything),
        "cmyk": traced(Image.new("CMYK", (4, 4)), "JPEG", anything),
        "rgb transparent": traced(clear, how=anything),
        "grey transparent": traced(Image.new("LA", (4, 4)), how=anything),
        "grey 16 bit": traced(Image.new("I;16", (4, 4)), how=anything),
        "rgb 16 bit": decoding.decode(png_16(np.zeros((2, 2, 3)), RGB), "x", anything),
        "rgb 16 bit transparent": decoding.decode(png_16(np.zeros((2, 2, 4)), RGB_ALPHA), "x", anything),
    }
    assert [one.kind for one in found.values()] == list(found)
    assert {traced(opaque).kind, traced(opaque, how=anything).kind, traced(opaque, "WEBP").kind} == {"rgb"}


def test_what_was_resized_is_told_from_what_had_the_size():
    wide, square = Image.new("L", (12, 8)), Image.new("L", (8, 8))
    assert traced(wide)[2:] == ("grey", (8, 12), False)
    assert traced(wide, how=Decoding(size=8)).resized, "cropped alone"
    assert traced(square, how=Decoding(size=4)).resized
    assert not traced(square, how=Decoding(size=8)).resized
    turned = Image.Exif()
    turned[0x0112] = 6
    assert not traced(square, how=Decoding(size=8), exif=turned).resized


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "wite"}, "background 'wite' is not a colour: give a name such as white"),
        ({"background": "#80808"}, "background '#80808' is not a colour"),
        ({"background": "#80808080"}, "is not a colour"),
        ({"background": "rgb(300, 0, 0)"}, "is not a colour"),
        ({"size": 0}, "size=0 must be a positive number"),
        ({"size": -3}, "size=-3"),
        ({"channels": 4}, "channels=4 must be 1"),
    ],
)
def test_options_that_do_not_exist(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Decoding(**options)
