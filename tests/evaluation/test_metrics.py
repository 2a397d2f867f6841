import pytest
import torch

from genflow.evaluation.metrics import floor_distances, nearest_distances


def floor(train: torch.Tensor, held_out: torch.Tensor, *, repeats: int = 5, seed: int = 0) -> float:
    distances = floor_distances(train, held_out, repeats=repeats, seed=seed)
    return sum(distances) / len(distances)


def memorising_ratio(samples: torch.Tensor, train: torch.Tensor, held_out: torch.Tensor) -> float:
    return float(nearest_distances(samples, train).mean() / nearest_distances(held_out, train).mean())


def test_floor_shrinks_with_the_number_of_images_and_repeats_by_seed():
    generator = torch.Generator().manual_seed(0)
    train, held_out = torch.randn(4000, 6, generator=generator), torch.randn(1000, 6, generator=generator)
    small = floor(train, held_out[:100], seed=1)
    large = floor(train, held_out, seed=1)
    assert 0 < large < small / 4
    assert floor(train, held_out, seed=1) == large
    assert floor(train, held_out, seed=2) != large
    distances = floor_distances(train, held_out, repeats=5, seed=1)
    assert len(set(distances)) == 5
    assert large == pytest.approx(sum(distances) / 5)


def test_floor_of_all_training_images_against_themselves_is_zero():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert floor(x, x) < 1e-8
    with pytest.raises(ValueError, match="at least as many"):
        floor(x[:10], x)
    with pytest.raises(ValueError, match="repeats >= 1"):
        floor(x, x, repeats=0)


def images(count: int, seed: int, shape: tuple[int, ...] = (3, 5, 4)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_nearest_distances_equal_brute_force(chunk):
    samples, train = images(20, 1), images(33, 2)
    a, b = samples.double().flatten(1) / 127.5, train.double().flatten(1) / 127.5
    direct = (a[:, None] - b[None]).norm(dim=-1).amin(dim=1)
    found = nearest_distances(samples, train, chunk=chunk)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), direct, rtol=1e-5, atol=0)


def test_memorising_ratio_of_copies_of_real_and_of_far_images():
    train, held_out = images(200, 1) // 4, images(100, 2) // 4
    assert memorising_ratio(train[5:50], train, held_out) == 0
    assert memorising_ratio(held_out, train, held_out) == 1
    assert memorising_ratio(images(100, 3) // 4, train, held_out) == pytest.approx(1, abs=0.05)
    assert memorising_ratio(255 - held_out, train, held_out) > 3
