"""A tailor of "no class": guidance then subtracts more than what all classes share."""

import copy

import pytest
import torch
from safetensors.torch import save
from torch import nn

from genflow.denoiser import Denoiser
from genflow.kind import (
    ClassGate,
    KINDConfig,
    Layout,
    add_tailors,
    decompose,
    extract,
    freeze,
    merge,
    recombine,
    remove_tailors,
    with_gate_of,
)
from genflow.nn import DiT, dit_preset
from genflow.parameterizations import Karras
from genflow.schedules import VE

DIT = {"image_size": (8, 8), "in_channels": 1, "num_classes": 3, **dit_preset("tiny")}


def model():
    dense = DiT(**DIT)
    for parameter in dense.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return decompose(dense, KINDConfig(class_to_tailor=(0, 1, 2), no_class="tailor"))


def inputs(labels):
    torch.manual_seed(7)
    return torch.randn(len(labels), 1, 8, 8), torch.randn(len(labels)), torch.tensor(labels)


def test_no_class_is_one_more_tailor():
    network = model()
    assert network.gate.tailors == (0, 1, 2, 3)
    x, c, y = inputs([3, 0, 3, 1])
    before = network(x, c, y)
    torch.testing.assert_close(network(x, c), network(x, c, torch.full_like(y, 3)))
    other = copy.deepcopy(network)
    with torch.no_grad():
        for linear in other.linears().values():
            linear.tailor_sigma[3].zero_()
    changed = (other(x, c, y) - before).abs().amax(dim=(1, 2, 3))
    assert (changed[[0, 2]] > 1e-3).all()
    assert not changed[[1, 3]].any()
    torch.testing.assert_close(merge(network)(x, c, torch.full_like(y, 3)), network(x, c), rtol=0, atol=1e-5)


def test_it_goes_with_every_part():
    network = model()
    x, c, y = inputs([1, 3, 1])
    parts = [extract(network, {1}), extract(network, {0, 2})]
    assert [p.gate.tailors for p in parts] == [(1, 3), (0, 2, 3)]
    assert torch.equal(parts[0](x, c, y), network(x, c, y))
    assert save(recombine(parts).state_dict()) == save(network.state_dict())
    bare = remove_tailors(network)
    assert bare.gate.tailors == (3,)
    torch.testing.assert_close(bare(x, c), network(x, c), rtol=0, atol=1e-6)
    grown = add_tailors(network, 2)
    assert grown.gate.class_to_tailor == (0, 1, 2, 4, 5)
    torch.testing.assert_close(grown(x, c, torch.tensor([1, 5, 1])), network(x, c, y), rtol=0, atol=1e-6)
    torch.testing.assert_close(with_gate_of(network, 0)(x, c), network(x, c), rtol=0, atol=1e-6)


def test_it_is_shared_and_nothing_of_its_model_is_frozen():
    for part in ("learngenes", "tailors"):
        with pytest.raises(ValueError, match=r'a tailor of "no class", which is shared .* is trained whole'):
            freeze(model(), part)


def test_it_is_saved(tmp_path):
    network = model()
    assert Layout.read(network.layout().plain()) == network.layout()
    denoiser = Denoiser(network, VE(), Karras(sigma_data=0.5), image_shape=(1, 8, 8), num_classes=3).eval()
    denoiser.save_pretrained(tmp_path)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor(1.0)
    assert torch.equal(Denoiser.from_pretrained(tmp_path).denoise(x, t), denoiser.denoise(x, t))


def test_layouts_of_before_there_was_a_choice_are_read():
    plain = model().layout().plain()
    del plain["no_class"]
    assert Layout.read(plain).no_class == -1


def test_parts_of_models_that_differ_in_it_are_strangers():
    dense = DiT(**DIT)
    one, other = (decompose(dense, KINDConfig(class_to_tailor=(0, 1, 2), no_class=n)) for n in ("tailor", "learngenes"))
    with pytest.raises(ValueError, match='"no class" has another tailor'):
        recombine([one, other])
    for wrong in (1, -2):
        with pytest.raises(ValueError, match=f"one that no class has; got {wrong}"):
            ClassGate((0, 1, 2), wrong)
    with pytest.raises(ValueError, match='no_class must be "learngenes" or "tailor"'):
        KINDConfig(class_to_tailor=(0,), no_class="none")


def test_the_tailor_of_no_class_has_no_part_in_the_norm():
    """The norm is that of the mean class."""
    network = DiT(**DIT)
    made = decompose(network, KINDConfig(class_to_tailor=(0, 1, 2), no_class="tailor", tailor_rank=4))
    for name, linear in made.linears().items():
        active = sum(linear.kernel([t]).square().sum() for t in (0, 1, 2)) / 3
        torch.testing.assert_close(active, network.get_submodule(name).weight.square().sum(), rtol=1e-4, atol=0)
