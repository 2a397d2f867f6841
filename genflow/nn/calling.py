"""How a backbone is called, by whatever holds one."""

from __future__ import annotations

from torch import Tensor, nn


def taken(backbone: nn.Module, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return what a backbone takes of (x, c_noise, y, s): a plain stack of layers, `nn.Sequential`, x alone."""
    return inputs[:1] if type(backbone) is nn.Sequential else inputs  # one of a class of its own may take all


def called(
    backbone: nn.Module,
    x: Tensor,
    c_noise: Tensor | None,
    y: Tensor | None,
    s: Tensor | None,
    augment: Tensor | None = None,
) -> Tensor:
    """Return `backbone(x, c_noise, y, s)`, or of these what it takes, with `augment=` where that is given.

    Shapes: x (B, C, H, W), c_noise, y and s (B,), augment (B, K); the output as x.
    """
    told = {} if augment is None else {"augment": augment}  # most backbones know of no such argument
    return backbone(*taken(backbone, x, c_noise, y, s), **told)
