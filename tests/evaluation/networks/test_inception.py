"""Inception in one pass: what torch-fidelity's network gives for the same weights, in all three outputs."""

import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from inception import make_inception_weights
from torch.utils._python_dispatch import TorchDispatchMode

from genflow.data.images import load_images
from genflow.evaluation.features import FeatureNetwork, load_features, sha256
from genflow.evaluation.frechet import frechet_distance
from genflow.evaluation.networks.inception import INCEPTION_FILE, InceptionFeatures
from genflow.evaluation.statistics import FeatureStats


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_CACHE", str(tmp_path_factory.getbasetemp() / "genflow-cache"))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of the right shape that tell images apart, with norms that do a thing."""
    path = make_inception_weights(tmp_path_factory.mktemp("inception") / "weights.pth")
    state = torch.load(path)
    generator = torch.Generator().manual_seed(1)
    for name, values in state.items():
        if name.endswith(("bn.weight", "bn.running_var")):
            values.uniform_(0.8, 1.2, generator=generator)
        if name.endswith(("bn.bias", "bn.running_mean")):
            values.normal_(std=0.1, generator=generator)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(weights) -> FeatureNetwork:
    return load_features("inception", weights)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(load_images("shapes", "test").images[:12].copy())


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.reference
def test_all_outputs_are_torch_fidelitys(weights, network, images):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(weights))
    seen: list[torch.Tensor] = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda _module, _given, made: seen.append(made.clone()))
    vectors, logits = theirs(images)
    found = network.outputs(images)
    assert found.vectors.shape == (12, network.dims) == (12, 2048)
    assert found.spatial is not None
    assert found.logits is not None
    assert {t.dtype for t in (found.vectors, found.spatial, found.logits)} == {torch.float32}
    assert float(vectors.std(dim=0).max()) > 1e-3 * float(vectors.abs().max()), "the network tells images apart"
    assert relative(found.vectors, vectors) < 1e-4
    assert relative(found.logits, logits) < 1e-4
    # as ADM's evaluator: channels last, the first seven of them, one long row
    spatial = seen[0].permute(0, 2, 3, 1).numpy()[..., :7].reshape(12, -1)
    assert spatial.shape == found.spatial.shape == (12, 2023)
    assert relative(found.spatial, torch.from_numpy(spatial)) < 1e-4
    distance = frechet_distance(FeatureStats.of(found.vectors[:, :64]), FeatureStats.of(vectors[:, :64]))
    spread = frechet_distance(FeatureStats.of(vectors[:6, :64]), FeatureStats.of(vectors[6:, :64]))
    assert abs(distance) < 1e-6 * spread


@pytest.mark.parametrize("shape", [(8, 8), (64, 40), (299, 299), (350, 620)])
def test_images_of_any_size_grey_or_not(weights, network, shape):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    grey = torch.randint(0, 256, (2, 1, *shape), dtype=torch.uint8)
    rgb = grey.expand(-1, 3, -1, -1)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    found = network.features(grey)
    assert torch.equal(found, network.features(rgb.contiguous()))
    assert relative(found, theirs(rgb)[0]) < 1e-4


def test_an_image_does_not_see_the_others(network, images):
    whole = network.outputs(images[:4])
    changed = network.outputs(torch.cat([images[:2], 255 - images[2:4]]))
    alone = network.outputs(images[1:2])
    for name in ("vectors", "spatial", "logits"):
        one, two, three = (getattr(found, name) for found in (whole, changed, alone))
        assert torch.equal(one[:2], two[:2]), "batches of one size are computed alike, to the bit"
        assert relative(three, one[1:2]) < 1e-5
        assert not one.requires_grad
    assert torch.equal(network.features(images[:4]), whole.vectors)


class Largest(TorchDispatchMode):
    """Watches how large the largest tensor gets that is made within."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.nbytes)
        return made


def test_a_large_batch_takes_no_more_memory_of_a_cpu(network, images):
    with Largest() as of_eight:
        first = network.outputs(images[:8])
    with Largest() as of_twelve:
        whole = network.outputs(images)
    # the largest maps there are, 64 of 147x147, of eight images
    assert of_eight.size == of_twelve.size == 8 * 64 * 147 * 147 * 4
    rest = network.outputs(images[8:])
    for name in ("vectors", "spatial", "logits"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(first, name), getattr(rest, name)]))


def test_surroundings_do_not_change_it(network, images):
    expected = network.outputs(images[:2])
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network.outputs(images[:2])
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.conv.fp32_precision = "none"
        torch.backends.cudnn.conv.fp32_precision = "none"
    assert torch.equal(found.vectors, expected.vectors)
    assert found.logits is not None
    assert expected.logits is not None
    assert torch.equal(found.logits, expected.logits)


def test_bfloat16_is_another_identity_and_close(weights, network, images):
    fast = load_features("inception", weights, dtype=torch.bfloat16)
    assert (fast.identity.dtype, network.identity.dtype) == ("bfloat16", "float32")
    exact, rounded = network.outputs(images[:4]), fast.outputs(images[:4])
    for name in ("vectors", "spatial", "logits"):
        one, two = getattr(exact, name), getattr(rounded, name)
        assert two.dtype == torch.float32
        assert 1e-5 < float((two - one).norm() / one.norm()) < 0.05


def test_identity_and_loading(weights, network):
    identity = network.identity
    assert (identity.name, identity.weights) == ("inception", sha256(weights))
    assert (identity.resize, identity.quantisation) == ("bilinear 299x299 (TensorFlow 1)", "uint8")
    state = torch.get_rng_state()
    InceptionFeatures(weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_images_are_refused(network):
    fine = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for wrong in (fine[0], fine[:, :2], fine.float(), fine.to(torch.int64), fine.permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"takes uint8 images \(B, 1 or 3, H, W\), got torch") as caught:
            network.outputs(wrong)
        assert "quantise" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_weights_offline_is_one_clear_line(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")

    def offline(*_arguments, **_named):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(RuntimeError) as caught:
        load_features("inception")
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "checkpoints" / INCEPTION_FILE) in message
    assert "--weights" in message


def test_unusable_weights_and_missing_packages_are_named(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(RuntimeError, match=r"nowhere\.pth is not a file"):
        InceptionFeatures(tmp_path / "nowhere.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match=r"other\.pth does not hold the weights of torch-fidelity") as caught:
        InceptionFeatures(tmp_path / "other.pth")
    assert "\n" not in str(caught.value)
    assert "Conv2d_1a_3x3" in str(caught.value)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(RuntimeError, match="pip install torch-fidelity"):
        InceptionFeatures(tmp_path / "other.pth")
