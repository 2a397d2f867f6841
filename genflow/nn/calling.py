"""How a backbone is called, by whatever holds one."""

from __future__ import annotations

from torch import Tensor, nn


def called(
    backbone: nn.Module,
    x: Tensor,
    c_noise: Tensor | None,
    y: Tensor | None,
    s: Tensor | None,
    augment: Tensor | None = None,
) -> Tensor:
    """Return `backbone(x, c_noise, y, s)`, with `augment=` where augmentation labels are given.

    A plain stack of layers, `nn.Sequential`, takes one input, and is given x alone.

    Shapes: x (B, C, H, W), c_noise, y and s (B,), augment (B, K); the output as x.
    """
    if type(backbone) is nn.Sequential:  # one of a class of its own may have a call of its own
        return backbone(x)
    told = {} if augment is None else {"augment": augment}  # most backbones know of no such argument
    return backbone(x, c_noise, y, s, **told)
