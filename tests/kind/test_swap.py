"""One gate for all labels: what is left of a label is its row of the label table."""

import copy

import pytest
import torch
from torch import nn

from genflow.kind import Assigned, Closed, KINDConfig, decompose, extract, remove_tailors, with_gate_of
from genflow.nn import DiT, UNet, dit_preset

DIT = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, **dit_preset("tiny")}
UNET = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, "width": 16, "multipliers": (1, 2), "blocks": 1}


def model(which="dit", class_to_tailor=(0, 1, 2, 3)):
    network = DiT(**DIT) if which == "dit" else UNet(**UNET, attention=(8, 4))
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return decompose(network, KINDConfig(class_to_tailor=class_to_tailor)).eval()


def inputs():
    return torch.randn(6, 1, 8, 8), torch.randn(6), torch.tensor([0, 3, 2, 3, 1, 2])


@pytest.mark.parametrize("which", ["dit", "unet"])
def test_learngenes_only_is_the_model_without_its_tailors(which):
    network = model(which)
    x, c, y = inputs()
    closed = with_gate_of(network, None)
    assert torch.equal(closed(x, c), remove_tailors(network)(x, c))
    assert torch.equal(closed(x, c, torch.full_like(y, 4)), remove_tailors(network)(x, c))
    with network.gate.hold(Closed()):
        assert torch.equal(closed(x, c, y), network.backbone(x, c, y))
    assert not torch.equal(closed(x, c, y), closed(x, c, y.flip(0)))  # rows of the label table still speak


@pytest.mark.parametrize("gate", [0, 2])
def test_the_gate_of_another_class_is_the_model_with_its_tailors_exchanged(gate):
    network = model()
    network.gate.mode = "gather"  # the same products, bit for bit
    x, c, y = inputs()
    swapped = with_gate_of(network, gate)(x, c, y)
    exchanged = copy.deepcopy(network)
    with torch.no_grad():
        for linear, source in zip(exchanged.linears().values(), network.linears().values(), strict=True):
            for name in ("tailor_u", "tailor_sigma", "tailor_v"):
                getattr(linear, name).copy_(getattr(source, name)[[gate] * 4])
    assert torch.equal(swapped, exchanged(x, c, y))
    with network.gate.hold(Assigned(torch.full_like(y, gate), "gather")):
        assert torch.equal(swapped, network.backbone(x, c, y))
    own = y == gate
    assert torch.equal(swapped[own], network(x, c, y)[own])
    assert all(not torch.equal(a, b) for a, b in zip(swapped[~own], network(x, c, y)[~own], strict=True))


def test_no_class_stays_learngenes_only_and_the_model_stays_as_it_is():
    network = model()
    before = copy.deepcopy(network.state_dict())
    x, c, _ = inputs()
    nobody = torch.full((6,), 4)
    assert torch.equal(with_gate_of(network, 1)(x, c, nobody), network(x, c, nobody))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))


def test_classes_that_share_a_tailor_have_one_gate_and_those_without_have_none():
    network = model(class_to_tailor=(5, 5, 1, -1))
    x, c, y = inputs()
    assert torch.equal(with_gate_of(network, 0)(x, c, y), with_gate_of(network, 1)(x, c, y))
    assert torch.equal(with_gate_of(network, 3)(x, c, y), with_gate_of(network, None)(x, c, y))


def test_classes_that_were_dropped_have_no_gate_and_stay_away():
    small = extract(model(), {1, 3})
    swapped = with_gate_of(small, 3)
    assert swapped.gate.kept == (1, 3)
    x, c, _ = inputs()
    with pytest.raises(ValueError, match=r"without classes \[0\]"):
        swapped(x, c, torch.tensor([1, 3, 0, 1, 3, 1]))
    with pytest.raises(ValueError, match=r"classes \[1, 3\], and was asked for the gate of 0"):
        with_gate_of(small, 0)
