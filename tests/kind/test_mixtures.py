"""Soft gates: mixtures of tailors around whole models, whatever calls them."""

import copy

import pytest
import torch
from torch import nn

from genflow.denoiser import Denoiser
from genflow.kind import KINDConfig, decompose
from genflow.nn import DiT, UNet, dit_preset
from genflow.parameterizations import Karras
from genflow.sampling.generate import generate
from genflow.schedules import VE

DIT = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, **dit_preset("tiny")}
UNET = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, "width": 16, "multipliers": (1, 2), "blocks": 1}


@pytest.fixture(params=["dit", "unet"])
def network(request):
    dense = DiT(**DIT) if request.param == "dit" else UNet(**UNET, attention=(8, 4), dropout=0.0)
    for parameter in dense.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return decompose(dense, KINDConfig(class_to_tailor=(0, 1, 2, 1)))


def inputs():
    return torch.randn(6, 1, 8, 8), torch.randn(6), torch.tensor([0, 4, 2, 3, 1, 2])


def one_hot(*tailors):
    return nn.functional.one_hot(torch.tensor(tailors), 3).float()


def test_a_mixture_of_one_tailor_is_its_gate(network):
    x, c, y = inputs()
    rows = torch.tensor([0, 0, 2, 1, 1, 2])  # that of "no class" is not looked at
    with network.gate.mix(one_hot(*rows)):
        mixed = network(x, c, y)
    torch.testing.assert_close(mixed, network(x, c, y), rtol=0, atol=1e-5)


def test_one_mixture_for_all_leaves_no_class_alone(network):
    x, c, y = inputs()
    plain = network(x, c, y)
    half = torch.tensor([0.5, 0.0, 0.5])
    with network.gate.mix(half):
        mixed = network(x, c, y)
        torch.testing.assert_close(network(x, c), network(x, c, torch.full_like(y, 4)), rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1], plain[1], rtol=0, atol=1e-5)
    assert ((mixed - plain)[y < 4].abs().amax(dim=(1, 2, 3)) > 1e-3).all()
    with network.gate.mix(half.expand(6, -1)):
        torch.testing.assert_close(network(x, c, y), mixed)
    torch.testing.assert_close(network(x, c, y), plain)  # as before, once the block has ended


def test_kernels_are_mixed_and_not_outputs(network):
    """`W = Σ_G u σ v + Σ_c w_c u_c σ_c v_c`, told by a network whose tailors are scaled by hand."""
    weights = torch.tensor([0.2, 0.7, 0.1])
    x, c, y = inputs()
    with network.gate.mix(weights):
        got = network(x, c, y)
    with torch.no_grad():
        for linear in network.linears().values():
            dense = linear.kernel()
            for place, weight in enumerate(weights):
                dense += weight * (linear.kernel([place]) - linear.kernel())
            u, sigma, v = torch.linalg.svd(dense, full_matrices=False)
            for p, value in ((linear.learngene_u, u), (linear.learngene_sigma, sigma), (linear.learngene_v, v)):
                p.data = value
            linear.tailor_sigma.zero_()
    known = y < 4
    torch.testing.assert_close(got[known], network(x, c, y)[known], rtol=1e-4, atol=1e-4)


def test_recomputed_blocks_and_gradients_of_the_weights(network):
    """What a learnt router needs: a gradient for the mixture, blocks computed again or not."""
    x, c, y = inputs()
    found = []
    for again in (False, True):
        network.gradient_checkpointing = again
        weights = torch.full((6, 3), 1 / 3, requires_grad=True)
        with network.gate.mix(weights):
            out = network(x, c, y)
        out.square().sum().backward()
        found.append(weights.grad)
    torch.testing.assert_close(found[0], found[1])
    assert found[0][y < 4].abs().min() > 0
    assert not found[0][y == 4].any()


def test_guided_images_of_a_mixture(network):
    denoiser = Denoiser(network, VE(), Karras(sigma_data=0.5), image_shape=(1, 8, 8), num_classes=4, steps=3).eval()

    def images(**options):
        return generate(denoiser, range(4), output="float", **options)

    for guidance in (1.0, 2.0):
        expected = images(labels=3, guidance=guidance)
        with network.gate.mix(one_hot(1)[0]):
            torch.testing.assert_close(images(labels=3, guidance=guidance), expected, rtol=0, atol=1e-4)
        with network.gate.mix(torch.tensor([0.0, 0.6, 0.4])):
            assert (images(labels=3, guidance=guidance) - expected).abs().max() > 1e-3


def test_mixtures_of_another_number_of_images_are_refused(network):
    x, c, y = inputs()
    with network.gate.mix(torch.ones(4, 3)):
        assert network(x[:4], c[:4], y[:4]).shape == (4, 1, 8, 8)
        with pytest.raises(ValueError, match="mixtures for 4 images, and the network got 6, which guidance doubles"):
            network(x, c, y)


def test_a_copy_is_of_nobodys_mixture(network):
    x, c, y = inputs()
    with network.gate.mix(torch.ones(3, requires_grad=True) / 3):
        other = copy.deepcopy(network)
        mixed = network(x, c, y)
    assert torch.equal(other(x, c, y), network(x, c, y))
    assert not torch.equal(other(x, c, y), mixed)


def test_weights_of_another_number_of_tailors_are_refused(network):
    for wrong in (torch.ones(4), torch.ones(6, 2), torch.ones(1, 6, 3)):
        with pytest.raises(ValueError, match="there are 3 tailors to mix"), network.gate.mix(wrong):
            pass
