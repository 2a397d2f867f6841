"""Reflow pairs on the disk: whole or refused, small, usable by halves, and with the noise they were made of."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.data import pairs as module
from genflow.data.loader import Ahead, ImageLoader
from genflow.data.pair_files import Manifest, begin, finish, lacking, read_manifest, write_manifest, write_shard
from genflow.data.pairs import Rows, is_pairs, load_pairs
from genflow.sampling.noise import SeededNoise, generator_checksum, random_class, standard_normal

SHAPE = (3, 4, 4)


def manifest(count: int = 5000, first_seed: int = 0, shape: tuple[int, int, int] = SHAPE, **made) -> Manifest:
    made = {"teacher": {"weights": "abc"}, "sampler": "heun", "steps": 18, "labels": "random"} | made
    return Manifest.of_seeds(made=made, image_shape=shape, num_classes=10, first_seed=first_seed, count=count)


def images(seeds: range, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """As a teacher would make them: of their seeds, and no two alike."""
    return np.stack([np.random.default_rng(seed).integers(0, 256, shape, np.uint8) for seed in seeds])


def write(folder: Path, described: Manifest, numbers: list[int] | None = None) -> Manifest:
    """Write these shards, or all."""
    write_manifest(folder, described)
    for number in described.numbers if numbers is None else numbers:
        seeds = described.seeds(number)
        write_shard(folder, seeds, images(seeds, described.image_shape), [random_class(s, 10) for s in seeds])
    finish(folder, described)
    return described


@pytest.mark.parametrize("first", [0, 500, 2**64 - 1100])
def test_what_was_written_is_read(first: int, tmp_path) -> None:
    write(tmp_path, manifest(1100, first))
    data = load_pairs(tmp_path)
    seeds = range(first, first + 1100)
    assert data.seeds.tolist() == list(seeds)
    everything = np.arange(1100)
    assert np.array_equal(data.images[everything], images(seeds))
    assert data.labels is not None
    assert data.labels.tolist() == [random_class(seed, 10) for seed in seeds]
    assert data.complete
    assert (len(data), data.image_shape, data.num_classes) == (1100, SHAPE, 10)
    assert np.array_equal(data.unpaired(7).images, images(seeds[:7]))


def test_a_pair_of_cifar_takes_less_than_3100_bytes(tmp_path) -> None:
    write(tmp_path, manifest(2048, shape=(3, 32, 32)))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size / 2048 < 3086
    assert size / 2048 > 8 + 3072 + 4


def test_noise_is_that_of_the_seeds_bit_by_bit(tmp_path) -> None:
    """In any order, doubled: what ``generate`` starts from."""
    write(tmp_path, manifest(1100, 77))
    data = load_pairs(tmp_path)
    for count in (1, 5, 16, 17, 300):
        index = np.random.default_rng(count).integers(0, 1100, count)
        wanted = SeededNoise(data.seeds[index].tolist(), SHAPE, torch.device("cpu"))(0)
        assert torch.equal(torch.from_numpy(data.noise(index)), wanted)


def test_noise_is_white(tmp_path) -> None:
    """Reference norms of 3,072 normals: mean 55.42, standard deviation 0.71."""
    write(tmp_path, manifest(400, shape=(3, 32, 32)))
    noise = load_pairs(tmp_path).noise(np.arange(400)).reshape(400, -1)
    assert abs(noise.mean()) < 4 / noise.size**0.5
    assert abs(noise.var() - 1) < 4 * (2 / noise.size) ** 0.5
    norms = np.linalg.norm(noise, axis=1)
    assert abs(norms.mean() - 55.42) < 4 * 0.71 / 20
    assert abs(norms.std() - 0.707) < 4 * 0.71 / 28


def test_noise_without_a_seed_is_stored(tmp_path) -> None:
    described = Manifest.of_images(made={}, image_shape=SHAPE, num_classes=10, count=1030)
    write_manifest(tmp_path, described)
    noise = torch.randn(1030, *SHAPE).numpy()
    for number in described.numbers:
        seeds = described.seeds(number)
        write_shard(tmp_path, seeds, images(seeds), [0] * len(seeds), noise[seeds[0] : seeds[-1] + 1])
    finish(tmp_path, described)
    data = load_pairs(tmp_path)
    index = np.array([1029, 3, 3, 1023, 1024])
    assert np.array_equal(data.noise(index), noise[index].astype(np.float16).astype(np.float32))
    assert data.noise(index).dtype == np.float32


def test_images_labels_noise_and_indices_of_a_batch_belong_together(tmp_path) -> None:
    write(tmp_path, manifest(2100))
    data = load_pairs(tmp_path)
    loaded = ImageLoader(data, batch_size=50, seed=1)(3)
    index = loaded.indices.tolist()
    assert torch.equal(loaded.noise, SeededNoise(index, SHAPE, torch.device("cpu"))(0))
    assert np.array_equal(loaded.images.numpy(), np.concatenate([images(range(k, k + 1)) for k in index]))
    assert loaded.labels.tolist() == [random_class(k, 10) for k in index]


def test_batches_made_ahead_are_the_same_in_any_order(tmp_path) -> None:
    write(tmp_path, manifest(300))
    plain = ImageLoader(load_pairs(tmp_path), batch_size=50, seed=1)
    ahead = Ahead(plain)
    for number in (0, 1, 2, 2, 7, 8, 3, 4, 5):
        for one, other in zip(ahead(number), plain(number), strict=True):
            assert torch.equal(one, other)


def test_an_error_ahead_is_raised_by_the_batch_it_belongs_to() -> None:
    def load(number: int):
        if number == 1:
            raise OSError("gone")
        return number

    ahead = Ahead(load)
    assert ahead(0) == 0
    with pytest.raises(OSError, match="gone"):
        ahead(1)
    assert ahead(2) == 2


def test_pairs_are_not_mirrored(tmp_path) -> None:
    write(tmp_path, manifest(10))
    with pytest.raises(ValueError, match="holds pairs, which cannot be mirrored"):
        ImageLoader(load_pairs(tmp_path), batch_size=5, seed=0, flip=True)


def test_a_set_is_usable_while_it_is_written(tmp_path) -> None:
    """By whatever shards are there, in whatever order they came; half-written files are none."""
    write(tmp_path, manifest(5000), [3, 1])
    (tmp_path / ".partial-x").write_bytes(b"half a shard")
    data = load_pairs(tmp_path)
    assert data.seeds.tolist() == [*range(1024, 2048), *range(3072, 4096)]
    assert not data.complete
    assert data.advice.startswith("there are gaps: ")
    assert np.array_equal(
        data.images[np.array([0, 1024])], np.concatenate([images(range(1024, 1025)), images(range(3072, 3073))])
    )


def test_the_first_pairs_are_the_same_set_however_many_follow(tmp_path) -> None:
    write(tmp_path / "a", manifest(1500))
    with pytest.raises(
        ValueError, match=r"holds 1500 pairs in a row from seed 0 on \(of 1500\), and 1501 are asked for"
    ):
        load_pairs(tmp_path / "a", 1501)
    found = {count: load_pairs(tmp_path / "a", count) for count in (1, 1023, 1024, 1025, 1500)}
    assert [len(data) for data in found.values()] == list(found)
    assert len({data.fingerprint for data in found.values()}) == 5
    assert found[1500].fingerprint == load_pairs(tmp_path / "a").fingerprint
    write(tmp_path / "a", manifest(4000))
    for count, data in found.items():
        assert load_pairs(tmp_path / "a", count).fingerprint == data.fingerprint
    write(tmp_path / "b", manifest(4000), [0, 2])
    assert load_pairs(tmp_path / "b", 1024).fingerprint == found[1024].fingerprint
    with pytest.raises(ValueError, match="holds 1024 pairs in a row"):
        load_pairs(tmp_path / "b", 1025)
    with pytest.raises(ValueError, match="at least 1, or 0 for all that are there, got -3"):
        load_pairs(tmp_path / "a", -3)


@pytest.mark.parametrize("change", ["pixel", "label", "made", "first", "classes"])
def test_the_fingerprint_names_all_of_a_set(change: str, tmp_path) -> None:
    write(tmp_path / "a", manifest(20))
    other = manifest(20, steps=19) if change == "made" else manifest(20, 1) if change == "first" else manifest(20)
    write_manifest(tmp_path / "b", other)
    seeds = other.seeds(0)
    pixels, labels = images(seeds), [random_class(s, 10) for s in seeds]
    if change == "pixel":
        pixels[3, 0, 0, 0] ^= 1
    if change == "label":
        labels[3] = (labels[3] + 1) % 10
    write_shard(tmp_path / "b", seeds, pixels, labels)
    one, two = load_pairs(tmp_path / "a"), load_pairs(tmp_path / "b")
    if change == "classes":
        assert one.fingerprint == two.fingerprint
        two = replace(two, labels=None, class_names=())
    assert one.fingerprint != two.fingerprint


def test_any_damaged_byte_is_noticed_and_the_file_named(tmp_path) -> None:
    write(tmp_path, manifest(6, shape=(1, 2, 2)))
    (path,) = tmp_path.glob("pairs-*")
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"pairs-00000000.safetensors"):
            load_pairs(tmp_path)
    path.write_bytes(whole)
    load_pairs(tmp_path)


def test_a_file_cut_short_anywhere_is_noticed_and_named(tmp_path) -> None:
    write(tmp_path, manifest(6, shape=(1, 2, 2)))
    (path,) = tmp_path.glob("pairs-*")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        for look in (load_pairs, lambda folder: lacking(folder, read_manifest(folder))):
            with pytest.raises(ValueError, match=r"pairs-00000000.safetensors is damaged or cut short"):
                look(tmp_path)


def test_a_shard_in_the_place_of_another_is_refused(tmp_path) -> None:
    write(tmp_path, manifest(3000), [0, 1])
    (tmp_path / "pairs-00000001.safetensors").write_bytes((tmp_path / "pairs-00000000.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"pairs-00000001.safetensors holds other seeds than"):
        load_pairs(tmp_path)


def test_a_whole_shard_that_is_not_of_this_set_is_refused(tmp_path) -> None:
    described = write(tmp_path, manifest(3000))
    seeds = described.seeds(1)
    write_shard(tmp_path, seeds, 255 - images(seeds), [0] * len(seeds))
    with pytest.raises(ValueError, match=r"pairs-00000001.safetensors is damaged .it is another than the one"):
        load_pairs(tmp_path)


def test_a_missing_shard_of_a_finished_set_is_named(tmp_path) -> None:
    write(tmp_path, manifest(3000))
    (tmp_path / "pairs-00000001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pairs-00000001.safetensors is missing"):
        load_pairs(tmp_path)
    assert lacking(tmp_path, read_manifest(tmp_path)) == [1]


def test_a_folder_without_pairs_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"holds no manifest.json"):
        load_pairs(tmp_path)
    write_manifest(tmp_path, manifest())
    with pytest.raises(ValueError, match="holds no pairs yet"):
        load_pairs(tmp_path)


@pytest.mark.parametrize("label", [-1, 11])
def test_labels_out_of_range_are_refused(label: int, tmp_path) -> None:
    write_manifest(tmp_path, manifest(5))
    write_shard(tmp_path, range(5), images(range(5)), [0, 10, label, 0, 0])  # 10 is no class
    with pytest.raises(
        ValueError, match=rf"label {label} of seed 2 is out of range, 10 classes allow 0 to 9, and 10 for"
    ):
        load_pairs(tmp_path)


def test_images_of_another_shape_are_refused(tmp_path) -> None:
    write_manifest(tmp_path, manifest(5))
    write_shard(tmp_path, range(5), images(range(5), (1, 4, 4)), [0] * 5)
    with pytest.raises(ValueError, match=r"its images are uint8 \(5, 1, 4, 4\) instead of uint8 \(5, 3, 4, 4\)"):
        load_pairs(tmp_path)


def test_a_changed_generator_of_noise_is_refused(tmp_path, monkeypatch) -> None:
    described = write(tmp_path, manifest(5))
    write_manifest(tmp_path, replace(described, generator="other/2"))
    with pytest.raises(ValueError, match=r"drawn by the generator other/2, and this genflow draws it by philox4x64"):
        load_pairs(tmp_path)
    write_manifest(tmp_path, described)
    load_pairs(tmp_path)
    real = standard_normal
    monkeypatch.setattr("genflow.sampling.noise.standard_normal", lambda *a: np.nextafter(real(*a), np.float32(9)))
    assert generator_checksum() != described.generator_checksum
    with pytest.raises(ValueError, match="this genflow draws other values under this name"):
        load_pairs(tmp_path)
    with pytest.raises(ValueError, match="pairs of another generator checksum"):
        begin(tmp_path, manifest(5))


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "genflow pairs 1"}', "\udc80", ""])
def test_a_damaged_manifest_is_named(text: str, tmp_path) -> None:
    write(tmp_path, manifest(5))
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert is_pairs(tmp_path)
    for look in (load_pairs, lambda folder: begin(folder, manifest(5))):
        with pytest.raises(ValueError, match=r"manifest.json is damaged.*put a copy of it back, or remove the folder"):
            look(tmp_path)


def test_a_newer_format_is_refused(tmp_path) -> None:
    write(tmp_path, manifest(5))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "genflow pairs 2"}))
    with pytest.raises(ValueError, match="is of format 'genflow pairs 2', and this genflow reads 'genflow pairs 1'"):
        load_pairs(tmp_path)


def test_other_folders_are_no_pairs(tmp_path) -> None:
    assert not is_pairs("digits")
    assert not is_pairs(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    assert not is_pairs(tmp_path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (manifest(50, teacher={"weights": "xyz"}), "teacher weights (abc there, xyz here)"),
        (manifest(50, teacher={"weights": "0123456789abcdef" * 4}), "teacher weights (abc there, 0123456789ab here)"),
        (
            manifest(50, steps=19, times=[80.0, 0.0], network_calls=37, labels="none"),
            "steps (18 there, 19 here) and labels (random there, none here)",
        ),
        (
            manifest(50, times=[1 / k for k in range(1, 19)]),
            "times (none there, [1.0, 0.5, 0.3333333333333 ... here)",
        ),
        (manifest(50, images={"fingerprint": "abc"}), "images (none there, some here)"),
        (manifest(50, 1), "first seed (0 there, 1 here)"),
        (manifest(50, shape=(1, 4, 4)), "image shape ([3, 4, 4] there, [1, 4, 4] here)"),
    ],
)
def test_a_folder_of_other_pairs_is_not_continued(other: Manifest, named: str, tmp_path) -> None:
    write(tmp_path, manifest(50))
    with pytest.raises(ValueError, match=re.escape(f"holds pairs of another {named}: give another --out")):
        begin(tmp_path, other)


def test_pairs_of_nobody_knows_whom_are_not_continued(tmp_path) -> None:
    write(tmp_path, manifest(50))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"pairs-00000000.safetensors is there already, and no manifest.json"):
        begin(tmp_path, manifest(50))


def test_a_set_grows_and_never_shrinks(tmp_path) -> None:
    small = write(tmp_path, manifest(1500))
    assert begin(tmp_path, manifest(100)) == read_manifest(tmp_path)
    large = begin(tmp_path, manifest(4000))
    assert (large.count, large.shards) == (4000, {})
    assert lacking(tmp_path, large) == [1, 2, 3]  # shard 1 was cut
    assert lacking(tmp_path, small) == []


def test_what_is_no_shard_is_not_written(tmp_path) -> None:
    four = images(range(4))
    for seeds in ([1023, 1024, 1025, 1026], [1, 2, 2, 3], [1, 2, 3], [4, 3, 2, 1]):
        with pytest.raises(ValueError, match="these are no pairs of one shard"):
            write_shard(tmp_path, seeds, four, [0] * 4)
    with pytest.raises(ValueError, match="its images are float64"):
        write_shard(tmp_path, range(4), four / 2, [0] * 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("first", "count"), [(-1, 5), (2**64 - 4, 5), (0, 0)])
def test_seeds_out_of_range_are_refused(first: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"seeds must be in \[0, 2\^64\)|must be at least 1"):
        manifest(count, first)


def test_rows_are_what_one_array_would_be() -> None:
    whole = np.random.default_rng(0).integers(0, 100, (20, 3, 2))
    rows = Rows([whole[:1], whole[1:12], whole[12:]])
    assert rows.shape == whole.shape
    index = np.random.default_rng(1).integers(0, 20, 300)
    assert np.array_equal(rows[index], whole[index])


def test_classes_are_uniform_and_apart_from_the_noise() -> None:
    drawn = np.array([random_class(seed, 10) for seed in range(10_000)])
    counts = np.bincount(drawn, minlength=10)
    assert len(counts) == 10
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.9  # chi square of 9 degrees of freedom: one in a thousand
    first = np.array([standard_normal(seed, 0, 1)[0] for seed in range(10_000)])
    assert abs(np.corrcoef(drawn, first)[0, 1]) < 0.04
    assert [random_class(seed, 1) for seed in (0, 2**64 - 1)] == [0, 0]
    # so that sets made by other versions are the same sets
    assert module.generator_checksum() == "3661634a67a912ab1d31574c14d3bf86ae0ba3e7afa123ca9b4153ff618122ff"
