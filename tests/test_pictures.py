import pytest
import torch

from genflow.pictures import grid, read_image, write_image


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
