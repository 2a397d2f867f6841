"""The packaged networks of the embedded digits: as good as recorded, told apart, and told good images from bad."""

from collections.abc import Callable

import pytest
import torch

from genflow.assets import asset
from genflow.data.decoding import Decoding
from genflow.data.embedded import fingerprint
from genflow.data.images import load_images
from genflow.evaluation.features import load_features, sha256
from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.metrics import floor_distances
from genflow.evaluation.networks.digits import DigitFeatures, load_loss_network, read_metadata
from genflow.evaluation.statistics import FeatureStats
from genflow.pixels import to_unit

NAMES = ("digits", "mnist5k")
LEAST_ACCURACY = {"digits": 0.98, "mnist5k": 0.975}


def share_right(logits, labels) -> float:
    return float((logits.argmax(dim=1).numpy() == labels).mean())


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """One cache for the whole session and none in anybody's home: parsing MNIST takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "genflow-cache"))
        yield


def pixels(name: str, split: str) -> torch.Tensor:
    return torch.from_numpy(load_images(name, "train" if split == "train" else "test").images)


def in_batches(function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, size: int = 256) -> torch.Tensor:
    return torch.cat([function(part) for part in images.split(size)])


@pytest.mark.parametrize("name", NAMES)
def test_held_out_accuracy_is_the_recorded_one(name):
    network, held_out = DigitFeatures(name), load_images(name, "test")
    logits = in_batches(network.logits, torch.from_numpy(held_out.images))
    measured = share_right(logits, held_out.labels)
    assert measured == pytest.approx(network.metadata["held_out_accuracy"], abs=1e-3)
    assert measured >= LEAST_ACCURACY[name]


@pytest.mark.parametrize("name", NAMES)
def test_loss_network_accuracy_is_the_recorded_one(name):
    network, held_out = load_loss_network(name), load_images(name, "test")
    logits = in_batches(lambda part: network(to_unit(part)), torch.from_numpy(held_out.images))
    recorded = read_metadata(asset(f"features/{name}-loss.safetensors"))["held_out_accuracy"]
    measured = share_right(logits, held_out.labels)
    assert measured == pytest.approx(recorded, abs=1e-3)
    assert measured >= LEAST_ACCURACY[name]


@pytest.mark.parametrize("name", NAMES)
def test_metadata_name_the_training_data_and_tell_judge_from_loss(name):
    train = load_images(name, "train")
    judge, loss = (read_metadata(asset(f"features/{n}.safetensors")) for n in (name, f"{name}-loss"))
    assert judge["train_sha256"] == loss["train_sha256"] == fingerprint(train.images, train.labels)
    assert judge["architecture"] != loss["architecture"]
    assert judge["seed"] != loss["seed"]


def test_packaged_networks_are_small():
    files = list(asset("features").glob("*.safetensors"))
    assert sorted(file.stem for file in files) == ["digits", "digits-loss", "mnist5k", "mnist5k-loss"]
    assert sum(file.stat().st_size for file in files) < 900_000


@pytest.mark.parametrize("name", NAMES)
def test_batch_size_does_not_matter(name):
    network, images = DigitFeatures(name), pixels(name, "test")[:97]
    whole = network.features(images)
    assert whole.shape == (97, network.dims)
    assert whole.dtype == torch.float32
    assert not whole.requires_grad
    for size in (1, 13, 64):
        torch.testing.assert_close(in_batches(network.features, images, size), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_features_have_unit_variance_on_average_and_tell_good_from_bad(name):
    network, train, held_out = DigitFeatures(name), pixels(name, "train"), pixels(name, "test")
    real, unseen = in_batches(network.features, train), in_batches(network.features, held_out)
    assert float(real.var(dim=0).mean()) == pytest.approx(1, abs=0.02)
    reference = FeatureStats.of(unseen)
    least = sum(floor_distances(real, unseen)) / 5

    generator = torch.Generator().manual_seed(0)
    chosen = train[torch.randperm(len(train), generator=generator)[: len(unseen)]]
    noise = torch.randn(chosen.shape, generator=generator)

    def distance(images: torch.Tensor) -> float:
        return frechet_distance(FeatureStats.of(in_batches(network.features, images)), reference)

    noisy = [distance((chosen + s * noise).round().clamp(0, 255).to(torch.uint8)) for s in (0, 32, 64)]
    assert noisy[0] < 1.3 * least
    assert noisy[1] > 2 * least
    assert noisy[2] > 2 * noisy[1]
    labels = torch.from_numpy(load_images(name, "train").labels)
    assert distance(train[labels != 3][: len(unseen)]) > 1.5 * least, "a lost class is noticed"
    assert distance(255 - chosen) > 10 * least


def test_autocast_around_does_not_change_features():
    network, images = DigitFeatures("digits"), pixels("digits", "test")[:8]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = network.features(images)
    assert torch.equal(inside, network.features(images))


def test_identity_names_the_weights():
    digits, mnist = DigitFeatures("digits"), DigitFeatures("mnist5k")
    assert digits.identity != mnist.identity
    assert digits.identity.weights == sha256(asset("features/digits.safetensors"))
    assert (digits.identity.name, mnist.identity.name) == (digits.name, mnist.name) == NAMES
    assert (digits.identity.resize, digits.identity.quantisation, digits.identity.dtype) == ("none", "uint8", "float32")


def test_one_pass_gives_vectors_and_logits():
    network, images = DigitFeatures("digits"), pixels("digits", "test")[:8]
    outputs = network.outputs(images)
    assert torch.equal(outputs.vectors, network.features(images))
    assert outputs.logits is not None
    assert outputs.logits.shape == (8, 10)
    assert torch.equal(outputs.logits, network.logits(images))
    assert outputs.spatial is None


def test_loss_network_is_frozen_but_lets_gradients_through():
    network = load_loss_network("digits")
    x = to_unit(pixels("digits", "train")[:4]).requires_grad_()
    maps = network.maps(x)
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 8), (4, 4), (2, 2)]
    sum(m.square().mean() for m in maps).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_wrong_images_and_other_sets_are_refused():
    digits = load_features("digits")
    with pytest.raises(ValueError, match=r"takes uint8 images \(B, 1, 8, 8\), got torch.uint8 \(2, 1, 28, 28\)"):
        digits.features(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        digits.features(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="no packaged classifier for 'shapes'"):
        DigitFeatures("shapes")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no packaged loss network"):
        load_loss_network("shapes")  # pyright: ignore[reportArgumentType]


def test_smaller_digits_are_enlarged_and_still_read():
    images = load_images("mnist5k", "test", decoding=Decoding(size=16))
    network = load_features("mnist5k", image_shape=images.image_shape)
    assert network.identity.resize == "bicubic 16 to 28"
    read = network.logits(torch.from_numpy(images.images)).argmax(dim=1).numpy()
    assert (read == images.labels).mean() > 0.98
    with pytest.raises(ValueError, match=r"takes uint8 images \(B, 1, 16, 16\)"):
        network.outputs(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    assert load_features("mnist5k", image_shape=(1, 28, 28)).identity == load_features("mnist5k").identity
