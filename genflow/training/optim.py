"""Adam with steps that can be masked on the device, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genflow.config import OptimConfig


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay (arXiv 1412.6980, 1711.05101) over what of the module is trained.

    It is the fused form: one kernel a step, and the only one that can leave out a step by a flag on the device.
    """
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Return the learning rate of ``step`` in [0, total): linear warm-up, then constant or a cosine to 0."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.decay == "constant":
        return config.lr * warm
    progress = max(0, step - config.warmup) / max(1, total - config.warmup)
    return config.lr * warm * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def mask_step(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Make the next step of a fused optimiser do nothing where ``bad`` (a 0-dimensional bool on the device) is true.

    This is the flag that torch's own GradScaler sets: parameters, moments and step counts all stay as they are, and the
    host never waits to hear of it.
    """
    optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
