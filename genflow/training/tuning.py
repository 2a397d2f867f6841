"""How the networks of an objective are run: with checkpoints, compiled, in which kind of float32."""

from __future__ import annotations

import torch

from genflow.config import Config
from genflow.denoiser import Denoiser
from genflow.objectives.base import Objective


def tune(objective: Objective, config: Config, device: torch.device) -> None:
    """Apply what a configuration says of speed and memory to every network of an objective, and to the device.

    A teacher's too: run otherwise than the student, it would draw other dropout masks. On CUDA devices float32 products
    and convolutions are in TF32, which keeps three digits, unless the objective is ``exact``.
    """
    networks = [part.backbone for part in objective.modules() if isinstance(part, Denoiser)]
    for network in networks:
        network.gradient_checkpointing = config.train.gradient_checkpointing  # pyright: ignore[reportArgumentType]
        if config.compile:
            network.compile()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if objective.exact else "high")
        torch.backends.cudnn.conv.fp32_precision = "ieee" if objective.exact else "tf32"  # pyright: ignore[reportAttributeAccessIssue]
