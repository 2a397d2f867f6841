import numpy as np
import pytest
import torch
from PIL import Image

from genflow.pictures import grid, read_image, write_drawing, write_image


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels: int, tmp_path) -> None:
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    write_image(tmp_path / "deep" / "image.png", image)
    assert torch.equal(read_image(tmp_path / "deep" / "image.png"), image)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["image.png"]


def test_grid_puts_each_image_in_its_place() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 3) * 10
    picture = grid(images, 3, gap=1)
    assert picture.shape == (3, 5, 11)
    for k in range(5):
        top, left = k // 3 * 3, k % 3 * 4
        assert (picture[:, top : top + 2, left : left + 3] == 10 * k).all()
    assert (picture[:, 2, :] == 255).all()  # the gap
    assert (picture[:, 3:, 8:] == 255).all()  # the place that is left empty


def test_enlarging_keeps_flat_images_flat_and_the_range() -> None:
    flat = torch.full((1, 1, 4, 4), 77, dtype=torch.uint8)
    assert (grid(flat, 1, scale=6) == 77).all()
    harsh = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    harsh[..., ::2] = 255
    assert grid(harsh, 1, scale=6).shape == (1, 24, 24)  # overshoot is clipped, not wrapped
    assert grid(harsh, 1, scale=6)[0, 12, 2] > 200


def test_a_drawing_of_few_hues_keeps_them_and_its_greys_grey(tmp_path) -> None:
    torch.manual_seed(0)
    grey = torch.randint(0, 256, (1, 60, 60), dtype=torch.uint8).expand(3, -1, -1).clone()
    grey[:, :, 30:] = torch.tensor([33, 120, 125], dtype=torch.uint8)[:, None, None]
    write_drawing(tmp_path / "a.png", grey)
    write_image(tmp_path / "b.png", grey)
    with Image.open(tmp_path / "a.png") as written:
        seen = torch.from_numpy(np.array(written.convert("RGB")).transpose(2, 0, 1)).int()
    assert len(seen.flatten(1).unique(dim=1).T) <= 48
    assert (seen[:, :, 30:] - grey[:, :, 30:].int()).abs().max() <= 2
    assert (seen[:, :, :30].amax(dim=0) - seen[:, :, :30].amin(dim=0)).max() <= 8
    assert (seen - grey.int()).abs().max() <= 16
    assert (tmp_path / "a.png").stat().st_size < 0.7 * (tmp_path / "b.png").stat().st_size
