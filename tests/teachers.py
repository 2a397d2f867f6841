"""Untrained teachers whose flow is far from trivial, saved as people save them."""

from dataclasses import replace
from pathlib import Path

import torch
from small import make_config

from genflow.build import build_denoiser, export
from genflow.config import KarrasConfig, SampleConfig, VEConfig
from genflow.denoiser import Denoiser


def make_teacher(
    folder: Path, *, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 3, seed: int = 1, sampler: str = "heun"
) -> Denoiser:
    """Save an EDM model with random weights in ``folder``, and return it."""
    config = make_config(folder.parent)
    sample = SampleConfig(sampler=sampler, steps=4)
    config = replace(config, schedule=VEConfig(), parameterization=KarrasConfig(), sample=sample)
    denoiser = build_denoiser(config, shape, classes)
    torch.manual_seed(seed)
    for p in denoiser.parameters():
        p.data += 0.05 * torch.randn_like(p)
    export(denoiser.eval(), folder)
    return denoiser
