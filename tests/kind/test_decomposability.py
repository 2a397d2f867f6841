"""Every part of a model is the model: bit by bit, for all subsets of classes, in each mode, with guidance."""

import itertools

import pytest
import torch
from torch import nn

from genflow.denoiser import Denoiser
from genflow.kind import KINDConfig, decompose, extract
from genflow.nn import DiT, UNet, dit_preset
from genflow.parameterizations import PredictVelocity
from genflow.sampling.generate import generate
from genflow.schedules import Linear

DIT = {"image_size": (8, 8), "in_channels": 1, "num_classes": 5, **dit_preset("tiny")}
UNET = {"image_size": (8, 8), "in_channels": 1, "num_classes": 5, "width": 16, "multipliers": (1, 2), "blocks": 1}


@pytest.mark.parametrize("which", ["dit", "unet"])
@pytest.mark.parametrize("mode", ["mask", "gather", "segments"])
def test_every_subset_draws_what_the_whole_draws(mode, which):
    network = DiT(**DIT) if which == "dit" else UNet(**UNET, attention=(8, 4), dropout=0.0)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    backbone = decompose(network, KINDConfig(class_to_tailor=range(5)))
    backbone.gate.mode = mode
    whole = Denoiser(backbone, Linear(), PredictVelocity(), image_shape=(1, 8, 8), num_classes=5).eval()
    for classes in itertools.chain.from_iterable(itertools.combinations(range(5), n) for n in range(1, 6)):
        small = whole.around(extract(backbone, classes)).eval()
        labels = [*classes, classes[0]]
        for guidance in (1.0, 1.5):
            drawn = [
                generate(
                    m, range(len(labels)), labels=labels, guidance=guidance, steps=2, sampler="euler", output="float"
                )
                for m in (whole, small)
            ]
            assert torch.equal(*drawn), (classes, guidance)
