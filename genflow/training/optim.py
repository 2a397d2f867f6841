"""Adam and RAdam with steps that can be masked on the device, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genflow.config import OptimConfig

_DROWNING = 1e10  # epsilon beside which any second moment vanishes in float32


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


def rectification(step: int, beta2: float) -> float | None:
    """Return RAdam's factor for the step size at ``step``, counted from 0; None while the second moment says nothing.

    ``r = sqrt((p - 4)(p - 2) q / ((q - 4)(q - 2) p))``, ``q = 2 / (1 - beta2) - 1``,
    ``p = q - 2 k beta2^k / (1 - beta2^k)`` after k = step + 1 steps; None for p <= 5.
    Source: "On the Variance of the Adaptive Learning Rate and Beyond", arXiv 1908.03265, algorithm 2.
    """
    k, q = step + 1, 2 / (1 - beta2) - 1
    p = q - 2 * k * beta2**k / (1 - beta2**k)
    return math.sqrt((p - 4) * (p - 2) * q / ((q - 4) * (q - 2) * p)) if p > 5 else None


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Return the learning rate of ``step`` in [0, total): linear warm-up, then constant or a cosine to 0."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.decay == "constant":
        return config.lr * warm
    progress = max(0, step - config.warmup) / max(1, total - config.warmup)
    return config.lr * warm * (1 + math.cos(math.pi * progress)) / 2


def prepare_step(optimizer: torch.optim.Optimizer, step: int, total: int, config: OptimConfig) -> None:
    """Set what a step of Adam, or of RAdam, is taken with.

    With the factor of ``rectification`` RAdam is Adam at another rate. Without, it is a step along the mean gradient,
    which Adam takes as well if its epsilon drowns the second moment and the rate makes up for it. So the fused kernel
    serves both; a step that is left out by ``mask_step`` counts as one here.
    """
    rate, eps, decay = learning_rate(step, total, config), config.eps, config.weight_decay
    if config.rule == "radam":
        factor = rectification(step, config.beta2)
        eps = config.eps if factor is not None else _DROWNING
        factor = _DROWNING if factor is None else factor
        rate, decay = rate * factor, decay / factor  # AdamW decays weights by their product
    for group in optimizer.param_groups:
        group.update(lr=rate, eps=eps, weight_decay=decay)


def mask_step(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Make the next step of a fused optimiser do nothing where ``bad`` (a 0-dimensional bool on the device) is true.

    This is the flag that torch's own GradScaler sets: parameters, moments and step counts all stay as they are, and the
    host never waits to hear of it.
    """
    optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
