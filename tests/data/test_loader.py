import numpy as np
import pytest
import torch

from genflow.data.images import ImageData
from genflow.data.loader import ImageLoader


def numbered(count: int, classes: int = 4) -> ImageData:
    """Image k holds k in its left half and 255 - k in its right half; its label is k mod classes."""
    left = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    images = np.concatenate([np.broadcast_to(left, (count, 3, 4, 2)), np.broadcast_to(255 - left, (count, 3, 4, 2))], 3)
    return ImageData(images, np.arange(count) % classes, tuple(map(str, range(classes))), "numbered")


def indices(loader: ImageLoader, numbers) -> list[int]:
    return [int(i) for number in numbers for i in loader(number)[2]]


@pytest.mark.parametrize(("count", "batch"), [(24, 8), (25, 7), (100, 3), (1, 1)])
def test_every_epoch_is_each_image_once(count: int, batch: int) -> None:
    loader = ImageLoader(numbered(count), batch_size=batch, seed=0)
    seen = indices(loader, range(-(-3 * count // batch)))
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ_in_their_order() -> None:
    orders = [
        tuple(indices(ImageLoader(numbered(40), batch_size=40, seed=seed), [k])) for seed in (0, 1) for k in (0, 1, 2)
    ]
    assert len(set(orders)) == 6


def test_a_batch_is_a_function_of_its_number_alone() -> None:
    data = numbered(30)
    in_order = [ImageLoader(data, batch_size=7, seed=3, flip=True)(number) for number in range(20)]
    loader = ImageLoader(data, batch_size=7, seed=3, flip=True)
    for number in [*np.random.default_rng(0).permutation(20), 5, 5]:
        for one, other in zip(loader(int(number))[:3], in_order[number][:3], strict=True):
            assert torch.equal(one, other)


def test_a_batch_may_exceed_the_data() -> None:
    images, _, index, _ = ImageLoader(numbered(5), batch_size=13, seed=0)(1)
    assert images.shape == (13, 3, 4, 4)
    seen = indices(ImageLoader(numbered(5), batch_size=13, seed=0), range(5))
    assert [seen.count(k) for k in range(5)] == [13] * 5
    assert index.tolist() == seen[13:26]


@pytest.mark.parametrize("batch", [4, 5, 6])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_see_what_one_with_their_batches_sees(batch: int, processes: int) -> None:
    """Mirroring too, so that the number of processes and of parts of a step changes nothing but rounding."""
    data = numbered(31)
    alone = ImageLoader(data, batch_size=processes * batch, seed=1, flip=True)
    together = [
        ImageLoader(data, batch_size=batch, seed=1, flip=True, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    for number in range(9):
        for whole, *parts in zip(alone(number)[:3], *(loader(number)[:3] for loader in together), strict=True):
            assert torch.equal(whole, torch.cat(parts))


def test_images_and_labels_belong_to_their_indices() -> None:
    data = numbered(50)
    images, labels, index, noise = ImageLoader(data, batch_size=33, seed=0)(2)
    assert noise is None
    assert images.dtype == torch.uint8
    assert labels is not None
    assert torch.equal(images, torch.from_numpy(data.images[index.numpy()]))
    assert torch.equal(labels, index % 4)
    bare = ImageData(data.images, None, (), "unlabelled")
    assert ImageLoader(bare, batch_size=3, seed=0)(0)[1] is None


def test_flip_mirrors_half_of_the_images_and_leaves_the_data_alone() -> None:
    data = numbered(100)
    before = data.images.copy()
    loader = ImageLoader(data, batch_size=1000, seed=0, flip=True)
    flipped = []
    for number in range(4):
        images, _, index, _ = loader(number)
        original = torch.from_numpy(before[index.numpy()])
        mirrored = (images == original.flip(-1)).flatten(1).all(1)
        assert ((images == original).flatten(1).all(1) ^ mirrored).all()  # one or the other, each image as a whole
        flipped.append(mirrored)
    share = torch.cat(flipped).float().mean().item()
    assert abs(share - 0.5) < 4 * 0.5 / 4000**0.5  # four standard deviations
    assert np.array_equal(data.images, before)
    # an image is not always mirrored, and neighbours are independent
    assert abs((flipped[0][1:] == flipped[0][:-1]).float().mean().item() - 0.5) < 0.07
    assert abs((flipped[0] == flipped[1]).float().mean().item() - 0.5) < 0.07


def test_a_read_only_memory_map_is_read(tmp_path) -> None:
    np.save(tmp_path / "images.npy", numbered(20).images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    data = ImageData(mapped, None, (), "mapped")
    left = ImageLoader(data, batch_size=8, seed=0, flip=True)(0).images
    right = ImageLoader(numbered(20), batch_size=8, seed=0, flip=True)(0).images
    assert torch.equal(left, right)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no images to train on"):
        ImageLoader(numbered(3).subset([]), batch_size=1, seed=0)
