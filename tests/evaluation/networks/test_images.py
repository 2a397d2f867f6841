"""What networks are shown: TensorFlow 1's resizing, bit by bit, three channels, refusals."""

from collections.abc import Callable, Iterator

import pytest
import torch

from genflow.evaluation.networks.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    resize_like_tensorflow1,
    standardise,
    to_rgb,
)
from genflow.evaluation.networks.numerics import dtype_name, full_precision

SHAPES = [(1, 1), (8, 8), (32, 32), (32, 17), (299, 299), (300, 40), (256, 512), (601, 20), (20, 601), (1000, 700)]


def some_images(height: int, width: int, count: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)


@pytest.mark.reference
@pytest.mark.parametrize("size", [299, 224, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_resize_has_the_bits_of_torch_fidelitys(shape, size):
    module = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = some_images(*shape)
    theirs = module.interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(size, size), align_corners=False)
    ours = resize_like_tensorflow1(images, size)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_resize_reads_the_image_at_multiples_of_the_ratio(shape, device):
    """Written anew, in float64, pixel by pixel of one row and one column."""
    images, size = some_images(*shape), 299
    resized = resize_like_tensorflow1(images.to(device), size).cpu()
    height, width = shape
    for i, j in [(0, 0), (17, 250), (150, 3), (298, 298)]:
        y, x = i * height / size, j * width / size
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        pixels = images.double()
        upper = pixels[:, :, top, left] * (1 - x + left) + pixels[:, :, top, right] * (x - left)
        lower = pixels[:, :, bottom, left] * (1 - x + left) + pixels[:, :, bottom, right] * (x - left)
        expected = upper * (1 - y + top) + lower * (y - top)
        torch.testing.assert_close(resized[:, :, i, j].double(), expected, rtol=0, atol=2e-2)


def test_resize_to_the_own_size_is_the_image_and_leaves_it_alone():
    images = some_images(24, 24)
    before = images.clone()
    assert torch.equal(resize_like_tensorflow1(images, 24), images.float())
    floats = images.float()
    resize_like_tensorflow1(floats, 11)
    assert torch.equal(floats, before.float())
    assert torch.equal(images, before)


def test_standardised_pixels_have_mean_0_and_deviation_1():
    x = (
        torch.randn(2, 3, 50, 50) * torch.tensor(IMAGENET_STD)[:, None, None]
        + torch.tensor(IMAGENET_MEAN)[:, None, None]
    )
    expected = (x / 255 - torch.tensor((0.485, 0.456, 0.406))[:, None, None]) / torch.tensor((0.229, 0.224, 0.225))[
        :, None, None
    ]
    torch.testing.assert_close(standardise(x, IMAGENET_MEAN, IMAGENET_STD), expected, rtol=0, atol=1e-5)


def test_grey_is_repeated_and_other_kinds_are_refused():
    grey = some_images(3, 4, channels=1)
    assert torch.equal(to_rgb(grey, "inception", torch.device("cpu")), torch.cat([grey] * 3, dim=1))
    for wrong in (some_images(3, 4, channels=4), some_images(3, 4)[0], some_images(0, 4), some_images(3, 4).float()):
        with pytest.raises(
            ValueError, match=r"the inception network takes uint8 images \(B, 1 or 3, H, W\), got torch"
        ):
            to_rgb(wrong, "inception", torch.device("cpu"))


@pytest.fixture
def settings() -> Iterator[Callable[[], list[str]]]:
    """What is allowed, and all of it as it was afterwards."""
    backends = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before, generic, legacy = [p.fp32_precision for p in places], backends.fp32_precision, precision()
    yield lambda: [*(p.fp32_precision for p in places), precision()]
    backends.fp32_precision = generic
    torch.set_float32_matmul_precision(legacy if legacy != "contradictory" else "highest")
    for place, value in zip(places, before, strict=True):
        place.fp32_precision = value


def precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer settings contradict it
        return "contradictory"


@pytest.mark.parametrize("way", ["older", "newer", "everything"])
def test_full_precision_undoes_what_is_allowed_elsewhere_and_puts_it_back(device, settings, way):
    x, layer = torch.randn(8, 64, 32, 32, device=device), torch.nn.Conv2d(64, 64, 3, device=device)

    def compute() -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, 0] @ x[:, 1], layer(x)

    with torch.no_grad(), full_precision(device):
        exact = compute()
    match way:
        case "older":
            torch.set_float32_matmul_precision("medium")
        case "newer":
            torch.backends.mkldnn.conv.fp32_precision = "bf16"
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
            torch.backends.cudnn.conv.fp32_precision = "tf32"
        case _:
            torch.backends.fp32_precision = "tf32"
    allowed = settings()
    with torch.autocast(device.type, dtype=torch.bfloat16), full_precision(device):
        assert not torch.is_grad_enabled()
        assert all(map(torch.equal, compute(), exact))
    assert settings() == allowed
    with pytest.raises(KeyError), full_precision(device):
        raise KeyError
    assert settings() == allowed
    assert torch.is_grad_enabled()


def test_two_dtypes_are_known():
    assert [dtype_name(dtype) for dtype in (torch.float32, torch.bfloat16)] == ["float32", "bfloat16"]
    with pytest.raises(ValueError, match=r"torch\.bfloat16, not in torch\.float64"):
        dtype_name(torch.float64)
