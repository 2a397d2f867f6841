"""DINOv2: what the published code computed with the same weights, its preprocessing, and refusals."""

import hashlib
import json
import math
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens.weights import fill
from safetensors.torch import save_file

from genflow.evaluation.features import DINOV2, load_features, sha256
from genflow.evaluation.networks import dinov2
from genflow.evaluation.networks.dinov2 import (
    TRANSFORMERS,
    DinoFeatures,
    Transformer,
    VisionTransformer,
    interpolate_positions,
)
from genflow.evaluation.networks.numerics import full_precision

GOLDENS = Path(__file__).parents[2] / "goldens" / "dinov2"  # made by goldens/make_dinov2.py
CASES = ("mlp", "swiglu")
NAME = "dinov2-vit-s-14"


def golden(case: str) -> tuple[Transformer, dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
    """Sizes and tensors of a golden, its images, and the published outputs."""
    about = json.loads((GOLDENS / f"{case}.json").read_text(encoding="utf-8"))
    weights = fill(about["shapes"])
    weights["pos_embed"] *= about["positions_scale"]
    sizes = about["configuration"]
    transformer = Transformer(sizes["embed_dim"], sizes["depth"], sizes["num_heads"], case)
    images = 5 * fill({"images": (math.prod(about["images"]),)})["images"].reshape(about["images"])
    with np.load(GOLDENS / f"{case}.npz") as data:
        return transformer, weights, images, {key: torch.from_numpy(data[key]) for key in ("out", "positions")}


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """A file of the golden's weights, whose network goes by the name of the smallest real one."""
    sizes, weights, _, _ = golden("mlp")
    monkeypatch.setitem(TRANSFORMERS, NAME, sizes)
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(weights, path)
    return path


def some_images(count: int = 4, height: int = 20, width: int = 30) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("case", CASES)
def test_computes_what_the_published_network_does(case, device):
    sizes, weights, images, published = golden(case)
    network = VisionTransformer(sizes)
    network.load_state_dict(weights)
    network = network.for_size(224).to(device)
    with full_precision(device):
        out = network(images.to(device)).cpu()
    assert published["out"].std() > 0.5
    torch.testing.assert_close(network.pos_embed.cpu(), published["positions"], rtol=0, atol=1e-6)
    torch.testing.assert_close(out, published["out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "tensor",
    ["cls_token", "pos_embed", "blocks.1.attn.qkv.bias", "blocks.0.ls1.gamma", "blocks.1.ls2.gamma", "norm.bias"],
)
def test_the_golden_would_notice_a_tensor_that_is_not_used(tensor):
    sizes, weights, images, published = golden("mlp")
    network = VisionTransformer(sizes)
    network.load_state_dict(weights | {tensor: torch.zeros_like(weights[tensor])})
    with torch.no_grad():
        out = network.for_size(224)(images[:1])
    assert (out - published["out"][:1]).abs().max() > 1e-2


def test_positions_are_those_of_the_table_where_it_fits_and_smooth_where_not():
    table = torch.randn(1, 1 + 37**2, 3)
    assert torch.equal(interpolate_positions(table, 37), table)
    constant = torch.ones(1, 1 + 37**2, 2)
    torch.testing.assert_close(interpolate_positions(constant, 16), torch.ones(1, 257, 2))
    rows = torch.arange(37.0).repeat_interleave(37)  # a ramp from top to bottom stays nearly one
    ramp = interpolate_positions(torch.cat([torch.zeros(1), rows])[None, :, None], 16)[0, 1:, 0].unflatten(0, (16, 16))
    torch.testing.assert_close(ramp, ramp[:, :1].expand(16, 16))
    torch.testing.assert_close(ramp.diff(dim=0), torch.full((15, 16), 37 / 16.1), rtol=0, atol=0.15)


def test_real_networks_have_the_published_tensors():
    published = json.loads((GOLDENS / "real.json").read_text(encoding="utf-8"))
    assert tuple(published) == tuple(TRANSFORMERS) == DINOV2
    counts = [about["parameters"] for about in published.values()]
    assert counts == [22_056_576, 86_580_480, 304_368_640, 1_136_480_768]
    for name, about in published.items():
        with torch.device("meta"):
            network = VisionTransformer(TRANSFORMERS[name])
        assert sum(p.numel() for p in network.parameters()) == about["parameters"]
        lines = sorted(f"{key} {list(value.shape)}" for key, value in network.state_dict().items())
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == about["tensors"]


def test_identity_and_vectors(small):
    state = torch.get_rng_state()
    network = load_features(NAME, small)
    assert torch.equal(torch.get_rng_state(), state), "initial weights would take random numbers"
    assert network.identity.name == NAME
    assert network.identity.weights == sha256(small)
    assert network.identity.resize == "bilinear 224x224 (TensorFlow 1)"
    assert (network.identity.quantisation, network.identity.dtype, network.dims) == ("uint8", "float32", 48)
    images = some_images()
    found = network.outputs(images)
    assert found.vectors.shape == (4, 48)
    assert found.vectors.dtype == torch.float32
    assert not found.vectors.requires_grad
    assert found.spatial is None
    assert found.logits is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.features(images), found.vectors)
    one_by_one = torch.cat([network.features(image[None]) for image in images])
    torch.testing.assert_close(one_by_one, found.vectors, rtol=0, atol=1e-5)
    grey = images[:, :1]
    assert torch.equal(network.features(grey), network.features(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match=f"the {NAME} network takes uint8 images"):
        network.features(images.float())


def test_bfloat16_is_another_identity_and_close(small):
    exact, fast = load_features(NAME, small), load_features(NAME, small, dtype=torch.bfloat16)
    assert fast.identity != exact.identity
    assert fast.identity.dtype == "bfloat16"
    images = some_images()
    vectors = fast.features(images)
    assert vectors.dtype == torch.float32
    assert 0 < (vectors - exact.features(images)).abs().max() < 0.2


def test_safetensors_hold_the_same_network(small, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(golden("mlp")[1], path)
    images = some_images()
    assert torch.equal(load_features(NAME, path).features(images), load_features(NAME, small).features(images))


@pytest.mark.reference
@pytest.mark.parametrize("shape", [(20, 30), (224, 224), (300, 260)])
def test_preprocessing_is_torch_fidelitys(small, monkeypatch, shape):
    """torch-fidelity's extractor around our transformer gives what ours gives: resize, range and order are the same."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_dinov2")
    sizes, weights, _, _ = golden("mlp")
    transformer = VisionTransformer(sizes)
    transformer.load_state_dict(weights)
    monkeypatch.setenv("XFORMERS_DISABLED", "1")  # set by theirs, and put back here
    monkeypatch.setattr(torch.hub, "load", lambda *_: transformer.for_size(224))
    theirs = module.FeatureExtractorDinoV2(NAME, ["dinov2"])
    images = some_images(2, *shape)
    torch.testing.assert_close(load_features(NAME, small).features(images), theirs(images)[0], rtol=0, atol=1e-5)


def test_missing_weights_offline_is_one_clear_line(tmp_path, monkeypatch):
    def offline(*_arguments, **_named):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(RuntimeError) as caught:
        load_features("dinov2-vit-l-14")
    message = str(caught.value)
    assert "\n" not in message
    assert "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth" in message
    assert str(tmp_path / "checkpoints" / "dinov2_vitl14_pretrain.pth") in message
    assert "--weights" in message
    with pytest.raises(RuntimeError, match=r"--weights .*absent\.pth"):
        load_features(NAME, tmp_path / "absent.pth")


def refusal(path: Path) -> str:
    with pytest.raises(RuntimeError) as caught:
        DinoFeatures(NAME, path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_other_weights_are_named(small, tmp_path):
    weights = golden("mlp")[1]
    path = tmp_path / "other.pth"
    torch.save(weights | {"register_tokens": torch.zeros(1, 4, 48)}, path)
    assert f"does not hold the weights of {NAME} (dinov2_vits14_pretrain.pth)" in refusal(path)
    assert "register_tokens" in refusal(path)
    torch.save({key: value for key, value in weights.items() if "norm1" not in key}, path)
    assert "blocks.0.norm1.weight" in refusal(path)
    torch.save(weights | {"cls_token": torch.zeros(1, 1, 40)}, path)
    assert "cls_token" in refusal(path)
    torch.save(golden("swiglu")[1], path)
    assert "blocks.0.mlp.fc1.weight" in refusal(path)
    path.write_bytes(b"no weights at all")
    assert "is not a file of plain weights" in refusal(path)


def test_other_dtypes_are_refused(small):
    with pytest.raises(ValueError, match=r"not in torch\.float16"):
        dinov2.DinoFeatures(NAME, small, dtype=torch.float16)
