"""CLIP's image encoders: torch-fidelity's numbers, from every format of weights, without its loader."""

import urllib.error
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genflow.evaluation.features import CLIP, load_features, sha256
from genflow.evaluation.networks import clip
from genflow.evaluation.networks.clip import ENCODERS, ClipFeatures, Encoder, sizes

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_clip")

SMALL = {
    "clip-vit-b-32": Encoder(dims=24, size=48, width=64, blocks=(2,), patch=16),
    "clip-rn50": Encoder(dims=24, size=64, width=8, blocks=(1, 2, 1, 1)),
}
# heads are of 64 channels: a ResNet of width 8 has 256 at its end, so four


class _Whole(torch.nn.Module):
    """Shaped like what OpenAI's archives hold: an image encoder beside the rest."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        layers = encoder.blocks if encoder.patch is None else encoder.blocks[0]
        self.visual = fidelity.CLIPVisual(encoder.dims, encoder.size, layers, encoder.width, encoder.patch).visual
        self.text_projection = torch.nn.Parameter(torch.randn(16, encoder.dims))
        self.positional_embedding = torch.nn.Parameter(torch.randn(5, 16))
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)


@pytest.fixture(params=list(SMALL))
def name(request, monkeypatch) -> str:
    """A published name, which means a small encoder during the test."""
    monkeypatch.setitem(ENCODERS, request.param, SMALL[request.param])
    return request.param


@pytest.fixture
def whole(name) -> torch.nn.Module:
    torch.manual_seed(0)
    module = _Whole(SMALL[name]).eval().requires_grad_(False)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    fidelity.convert_weights(module)  # to float16, as published
    return module


@pytest.fixture
def archive(whole, name, tmp_path) -> Path:
    path = tmp_path / "published.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = torch.zeros(1, 3, SMALL[name].size, SMALL[name].size)
        torch.jit.save(torch.jit.trace(whole.float(), shown), path)
    fidelity.convert_weights(whole)
    return path


def some_images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 40, 70), dtype=torch.uint8)


@pytest.mark.reference
def test_equals_torch_fidelitys_extractor(name, archive):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = fidelity.FeatureExtractorCLIP(name, ["clip"], str(archive))
    network, images = load_features(name, archive), some_images(11)
    expected = theirs(images)[0]
    found = network.outputs(images)
    assert found.vectors.shape == (11, network.dims) == (11, 24)
    assert found.spatial is None
    assert found.logits is None
    assert expected.std(dim=0).mean() > 1e-3
    torch.testing.assert_close(found.vectors, expected, rtol=1e-5, atol=1e-5)


def test_every_format_gives_the_same_network(name, whole, archive, tmp_path):
    state = {key: value.clone() for key, value in whole.state_dict().items()}
    torch.save(state, tmp_path / "whole.pt")
    save_file(
        {key: value for key, value in state.items() if key.startswith("visual.")}, tmp_path / "visual.safetensors"
    )
    images = some_images()
    expected = load_features(name, archive).features(images)
    for file in ("whole.pt", "visual.safetensors"):
        network = load_features(name, tmp_path / file)
        assert network.identity.weights == sha256(tmp_path / file)
        torch.testing.assert_close(network.features(images), expected, rtol=0, atol=1e-6)


def test_batch_surroundings_dtype_and_grey(name, archive):
    state = torch.get_rng_state()
    network = load_features(name, archive)
    assert torch.equal(torch.get_rng_state(), state), "initial weights would take random numbers"
    size = SMALL[name].size
    assert network.identity.resize == f"bilinear {size}x{size} (TensorFlow 1)"
    images = some_images()
    whole = network.features(images)
    one_by_one = torch.cat([network.features(image[None]) for image in images])
    torch.testing.assert_close(one_by_one, whole, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.features(images), whole)
    grey = images[:, :1]
    assert torch.equal(network.features(grey), network.features(grey.expand(-1, 3, -1, -1)))
    fast = load_features(name, archive, dtype=torch.bfloat16)
    assert fast.identity.dtype == "bfloat16"
    rounded = fast.features(images)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - whole).norm() < 0.1 * whole.norm()


def test_the_nine_names_are_torch_fidelitys_and_of_published_sizes():
    assert tuple(ENCODERS) == CLIP == tuple(fidelity.MODEL_METADATA)
    parameters = {}
    for name, encoder in ENCODERS.items():
        layers = encoder.blocks if encoder.patch is None else encoder.blocks[0]
        with torch.device("meta"):
            network = fidelity.CLIPVisual(encoder.dims, encoder.size, layers, encoder.width, encoder.patch)
        assert sizes(network.state_dict()) == encoder, name
        parameters[name] = sum(p.numel() for p in network.parameters())
    # of OpenAI's model card and the paper's table 19 and 20, where these are given in millions
    assert parameters["clip-vit-b-32"] == 87_849_216
    assert parameters["clip-vit-l-14"] == 303_966_208
    assert parameters["clip-rn50"] == 38_316_896


def refusal(name: str, path: Path) -> str:
    with pytest.raises(RuntimeError) as caught:
        ClipFeatures(name, path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_other_weights_are_named(name, whole, tmp_path):
    path, state = tmp_path / "other.pt", whole.state_dict()
    torch.save(state, path)
    assert "does not hold the weights of clip-vit-l-14: it needs Encoder" in refusal("clip-vit-l-14", path)
    torch.save({"weight": torch.zeros(2)}, path)
    assert "no CLIP image encoder" in refusal(name, path)
    torch.save(state | {"visual.more": torch.zeros(2)}, path)
    assert "visual.more" in refusal(name, path)
    lost = next(key for key in state if key.startswith("visual.") and key.endswith("bias"))
    torch.save({key: value for key, value in state.items() if key != lost}, path)
    assert lost in refusal(name, path)


def test_missing_weights_offline_is_one_clear_line(tmp_path, monkeypatch):
    def offline(*_arguments, **_named):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(RuntimeError) as caught:
        load_features("clip-vit-l-14")
    message = str(caught.value)
    assert "\n" not in message
    assert "ViT-L-14.pt" in message
    assert str(tmp_path / "checkpoints" / "clip-vit-l-14-b8cca3fd41ae0c99") in message
    assert "--weights" in message


def test_other_dtypes_are_refused(name, archive):
    with pytest.raises(ValueError, match=r"not in torch\.float16"):
        clip.ClipFeatures(name, archive, dtype=torch.float16)
