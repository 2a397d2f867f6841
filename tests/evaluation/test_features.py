import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genflow.assets import asset
from genflow.data.embedded import fingerprint
from genflow.data.images import load_images
from genflow.evaluation import features as module
from genflow.evaluation.features import (
    INCEPTION_FILE,
    DigitFeatures,
    InceptionFeatures,
    load_features,
    load_loss_network,
    read_metadata,
)
from genflow.evaluation.metrics import class_accuracy, floor, frechet_distance
from genflow.evaluation.statistics import FeatureStats
from genflow.pixels import to_unit

NAMES = ("digits", "mnist5k")
LEAST_ACCURACY = {"digits": 0.98, "mnist5k": 0.975}


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
    measured = class_accuracy(logits, torch.from_numpy(held_out.labels))
    assert measured == pytest.approx(network.metadata["held_out_accuracy"], abs=1e-3)
    assert measured >= LEAST_ACCURACY[name]


@pytest.mark.parametrize("name", NAMES)
def test_loss_network_accuracy_is_the_recorded_one(name):
    network, held_out = load_loss_network(name), load_images(name, "test")
    logits = in_batches(lambda part: network(to_unit(part)), torch.from_numpy(held_out.images))
    recorded = read_metadata(asset(f"features/{name}-loss.safetensors"))["held_out_accuracy"]
    measured = class_accuracy(logits, torch.from_numpy(held_out.labels))
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
    least = floor(real, unseen)

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
    assert digits.identity == f"digits:{module.sha256(asset('features/digits.safetensors'))}"


def test_loss_network_is_frozen_but_lets_gradients_through():
    network = load_loss_network("digits")
    x = to_unit(pixels("digits", "train")[:4]).requires_grad_()
    maps = network.maps(x)
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 8), (4, 4), (2, 2)]
    sum(m.square().mean() for m in maps).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_wrong_images_and_names_are_refused():
    digits = load_features("digits")
    with pytest.raises(ValueError, match=r"takes uint8 images \(B, 1, 8, 8\), got torch.uint8 \(2, 1, 28, 28\)"):
        digits.features(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        digits.features(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="allowed are digits, mnist5k, inception"):
        load_features("clip")
    with pytest.raises(ValueError, match="come with the package"):
        load_features("digits", Path("x.pth"))
    with pytest.raises(ValueError, match="no packaged classifier for 'shapes'"):
        DigitFeatures("shapes")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no packaged loss network"):
        load_loss_network("shapes")  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory) -> Path:
    """Weights of the right shape: convolutions Kaiming-normal, as default ones collapse."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.reference
def test_inception_equals_torch_fidelitys_own(inception_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = torch.from_numpy(load_images("shapes", "test").images[:3])
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(inception_weights))
    network = load_features("inception", inception_weights)
    found = network.features(images)
    assert found.shape == (3, network.dims)
    assert torch.equal(found, theirs(images)[0])
    assert float(found.std(dim=0).max()) > 0
    grey = images[:, :1]
    assert torch.equal(network.features(grey), network.features(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(network.features(images[1:2]), found[1:2], rtol=0, atol=1e-5)
    assert network.identity.startswith("inception:")
    with pytest.raises(ValueError, match="B, 1 or 3, H, W"):
        network.features(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))


def test_missing_inception_weights_offline_is_one_clear_line(tmp_path, monkeypatch):
    def offline(*_arguments, **_named):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(RuntimeError) as caught:
        load_features("inception")
    message = str(caught.value)
    assert "\n" not in message
    assert INCEPTION_FILE in message
    assert str(tmp_path / "checkpoints" / INCEPTION_FILE) in message
    assert "--weights" in message
    assert list((tmp_path / "checkpoints").iterdir()) == []


class _Trap:
    """Pickles to a call that leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_inception_weights_never_run_code(tmp_path):
    pytest.importorskip("torch_fidelity")
    path, mark = tmp_path / "evil.pth", tmp_path / "was-run"
    torch.save({"weight": _Trap(mark)}, path)
    with pytest.raises(RuntimeError, match=r"evil\.pth is not a file of plain weights"):
        InceptionFeatures(path)
    assert not mark.exists()


def test_unusable_inception_weights_are_named(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(RuntimeError, match=r"nowhere\.pth is not a file"):
        InceptionFeatures(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(RuntimeError, match="is not a file of plain weights"):
        InceptionFeatures(tmp_path / "text.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match=r"other\.pth does not hold the weights of torch-fidelity") as caught:
        InceptionFeatures(tmp_path / "other.pth")
    assert "\n" not in str(caught.value)
