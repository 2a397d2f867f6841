"""Self-attention over tokens, with its four kernels as separate linear layers."""

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
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width of attention; got {heads} and {width}")
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        for linear in (self.q, self.k, self.v):
            xavier(linear, gain=math.sqrt(0.5))  # the variance of one fused (width, 3 width) kernel
        xavier(self.o)

    def forward(self, x: Tensor) -> Tensor:
        split = (self.heads, -1)
        q = self.q(x).unflatten(2, split).transpose(1, 2)  # (B, heads, N, d)
        k = self.k(x).unflatten(2, split).transpose(1, 2)  # (B, heads, N, d)
        v = self.v(x).unflatten(2, split).transpose(1, 2)  # (B, heads, N, d)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, d)
        return self.o(h.transpose(1, 2).flatten(2))  # (B, N, width)
