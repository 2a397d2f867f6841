"""Feature networks by name: what is asked for is what comes, and nothing heavy before."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from genflow.evaluation.features import FEATURES, FeatureNetwork, Outputs, load_features, sha256
from genflow.evaluation.networks.digits import DigitFeatures
from genflow.evaluation.networks.pixels import PixelFeatures
from genflow.evaluation.protocol import NetworkIdentity

LOADABLE = ("inception", "clip-vit-l-14", "dinov2-vit-l-14")
OTHERS = ("digits", "mnist5k", "efficientnet-lite0", "pixels", "package.module:function")


class Doubled(FeatureNetwork):
    """The least that a network must be."""

    def __init__(self) -> None:
        self.identity = NetworkIdentity(
            name="doubled", weights="", resize="none", quantisation="uint8", dtype="float32", dims=4
        )
        self.device = torch.device("cpu")

    def outputs(self, images: torch.Tensor) -> Outputs:
        return Outputs(2.0 * images.flatten(1))


def test_a_network_is_its_identity_and_its_outputs():
    network, images = Doubled(), torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2)
    assert (network.name, network.dims) == ("doubled", 4)
    assert torch.equal(network.features(images), network.outputs(images).vectors)
    outputs = network.outputs(images)
    assert outputs.spatial is None
    assert outputs.logits is None
    with pytest.raises(FrozenInstanceError):
        outputs.vectors = images  # pyright: ignore[reportAttributeAccessIssue]


def test_names_give_networks_of_that_name():
    for name in ("digits", "mnist5k"):
        network = load_features(name)
        assert isinstance(network, DigitFeatures)
        assert network.name == name
        assert network.device == torch.device("cpu")
    assert isinstance(load_features("pixels", image_shape=(1, 2, 2)), PixelFeatures)


@pytest.mark.parametrize("name", FEATURES)
def test_every_name_is_known(name, tmp_path):
    """With weights that are not there, or where none belong, the refusal is of those, never of the name."""
    with pytest.raises((ValueError, RuntimeError)) as caught:
        load_features(name, tmp_path / "absent.pth")
    assert "--weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused_with_all_that_are_known():
    with pytest.raises(ValueError, match="no features called 'clip'") as caught:
        load_features("clip")
    message = str(caught.value)
    assert "\n" not in message
    assert all(name in message for name in (*FEATURES, "module:function"))
    assert len(set(FEATURES)) == len(FEATURES) == 18


@pytest.mark.parametrize("name", OTHERS)
def test_weights_are_refused_where_none_belong(name):
    with pytest.raises(ValueError, match=r"--weights is for inception, clip-\* and dinov2-\*"):
        load_features(name, Path("x.pth"), image_shape=(1, 8, 8))


@pytest.mark.parametrize("name", ["digits", "mnist5k", "pixels", "package.module:function"])
def test_bfloat16_is_refused_where_nothing_is_gained(name):
    with pytest.raises(ValueError, match="float32 only; bfloat16 is for inception"):
        load_features(name, dtype=torch.bfloat16, image_shape=(1, 8, 8))


@pytest.mark.parametrize("name", FEATURES)
def test_other_dtypes_are_refused(name, tmp_path):
    weights = None
    if name.startswith(("inception", "clip", "dinov2")):
        weights = tmp_path / "w.pth"
        torch.save({"weight": torch.zeros(2)}, weights)
    with pytest.raises(ValueError, match=r"not in torch\.float16"):
        load_features(name, weights, dtype=torch.float16, image_shape=(1, 8, 8))


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_loading_a_small_network_imports_no_large_one():
    script = """
import sys
from genflow.evaluation.features import load_features
import genflow.evaluation.networks.inception, genflow.evaluation.networks.clip, genflow.evaluation.networks.dinov2
import genflow.evaluation.networks.efficientnet, genflow.evaluation.networks.custom
load_features("digits")
heavy = {"torch_fidelity", "torchvision", "efficientnet_lite_pytorch", "diffusers", "sklearn"}
sys.exit(", ".join(heavy & sys.modules.keys()) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
