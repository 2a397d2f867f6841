"""Self-attention over tokens, with the kernels of queries, keys and values apart or as one."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from genflow.nn.layers import xavier


class SelfAttention(nn.Module):
    """Multi-head self-attention, `o(softmax(Q Kᵀ / √d) V)` with d = width / heads.

    `q`, `k`, `v` and `o` are separate `nn.Linear`s, so that KIND and LoRA find them by name.

    Shapes: (B, N, width) to (B, N, width).
    Source: Attention Is All You Need (arXiv 1706.03762), equation 1.

    Raises:
        ValueError: If `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        for linear in (self.q, self.k, self.v):
            xavier(linear, gain=math.sqrt(0.5))  # the variance of one fused (width, 3 width) kernel
        xavier(self.o)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(attend(self.q(x), self.k(x), self.v(x), self.heads))  # (B, N, width)


class FusedSelfAttention(nn.Module):
    """The same function as `SelfAttention` with queries, keys and values from one kernel `qkv` (3 width, width).

    A decomposition of that kernel shares its right vectors among the three.

    Shapes: (B, N, width) to (B, N, width).
    Source: Scalable Diffusion Models with Transformers (arXiv 2212.09748), whose code has it so.

    Raises:
        ValueError: If `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.o = nn.Linear(width, width)
        xavier(self.qkv)
        xavier(self.o)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=2)  # 3 of (B, N, width)
        return self.o(attend(q, k, v, self.heads))  # (B, N, width)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return `softmax(Q Kᵀ / √d) V` of each head, side by side.

    Shapes: three (B, N, width) to (B, N, width).
    """
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))  # 3 of (B, heads, N, d)
    h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, d)
    return h.transpose(1, 2).flatten(2)  # (B, N, width)


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide the width of attention; got {heads} and {width}")
