"""The transformer backbone: DiT with adaLN-zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genflow.nn.attention import FusedSelfAttention, SelfAttention
from genflow.nn.embeddings import DiTConditioning, grid_embedding
from genflow.nn.layers import (
    Mlp,
    check_at_least,
    check_dropout,
    check_images,
    image_sides,
    modulate,
    nearest_sizes,
    plain_arguments,
    xavier,
    zeros,
)


def dit_preset(name: str) -> dict[str, int]:
    """Width, depth and heads of a published size, as keyword arguments of `DiT`.

    S, B, L and XL are those of the paper; `tiny` (about 0.33 M parameters) is for 8x8 to 32x32
    images on a CPU.

    Source: Scalable Diffusion Models with Transformers (arXiv 2212.09748), Table 1.

    Raises:
        ValueError: For any other name.
    """
    match name:
        case "tiny":
            return {"width": 64, "depth": 4, "heads": 4}
        case "S":
            return {"width": 384, "depth": 12, "heads": 6}
        case "B":
            return {"width": 768, "depth": 12, "heads": 12}
        case "L":
            return {"width": 1024, "depth": 24, "heads": 16}
        case "XL":
            return {"width": 1152, "depth": 28, "heads": 16}
        case _:
            raise ValueError(f"DiT presets are tiny, S, B, L and XL; got {name!r}")


class DiTBlock(nn.Module):
    """Transformer block with adaLN-zero conditioning.

    `x += gate₁ attention(modulate(norm(x)))`, `x += gate₂ mlp(modulate(norm(x)))`; shifts, scales
    and gates are one linear function of the conditioning vector, which starts at 0, so that a
    fresh block is the identity. Dropout acts on both branches before their gates.

    Shapes: x (B, N, width), e (B, width) to (B, N, width).
    Source: Scalable Diffusion Models with Transformers (arXiv 2212.09748), Figure 3.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0, *, fused_qkv: bool = False
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = FusedSelfAttention(width, heads) if fused_qkv else SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.modulation = nn.Linear(width, 6 * width)
        zeros(self.modulation)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        parts = self.modulation(e).unsqueeze(1).chunk(6, dim=2)  # 6 of (B, 1, width)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        h = self.attention(modulate(self.norm1(x), shift1, scale1))  # (B, N, width)
        x = torch.addcmul(x, gate1, F.dropout(h, self.dropout, self.training))  # (B, N, width)
        h = self.mlp(modulate(self.norm2(x), shift2, scale2))  # (B, N, width)
        return torch.addcmul(x, gate2, F.dropout(h, self.dropout, self.training))  # (B, N, width)


@final
class DiT(nn.Module):
    """Diffusion transformer with adaLN-zero: patches in, `depth` blocks, patches out.

    Positions are a fixed 2-D sine-cosine table (any rectangular grid), not stored with the
    weights. A fresh network returns exactly 0. `DiT(**dit_preset("S"), ...)` gives the published
    sizes.

    Shapes: x (B, C, H, W) float, c_noise (B,), y (B,) int64 in [0, num_classes] or None (which is
    `num_classes`, "no class"; labels are ignored if num_classes is 0) to (B, C, H, W). A second
    time `s` (B,) is accepted and ignored, since samplers pass one to every backbone.

    Source: Scalable Diffusion Models with Transformers (arXiv 2212.09748).

    Args:
        image_size: (H, W), each divisible by `patch_size`.
        in_channels: C, of input and output.
        num_classes: Number of classes; the table has one row more, for "no class".
        patch_size: Side of the square patches.
        width: Channels of a token, divisible by 4 and by `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs, in units of `width`.
        dropout: Probability on the two branches of a block, in [0, 1); the paper has none.
        fused_qkv: Give queries, keys and values one kernel; the function is the same, its decomposition is not.

    Raises:
        ValueError: For sizes that patches do not tile (the message names ones they do), other
            arguments out of range, and batches of another shape than the one built for.
    """

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        in_channels: int,
        num_classes: int = 0,
        patch_size: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        fused_qkv: bool = False,
    ) -> None:
        self.arguments = plain_arguments(locals())
        super().__init__()
        check_at_least(1, in_channels=in_channels, patch_size=patch_size, depth=depth)
        check_at_least(0, num_classes=num_classes)
        check_dropout(dropout)
        if width < 4 or width % 4:
            raise ValueError(f"width must be divisible by 4, got {width}")
        if int(width * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio must be at least 1 / width, got {mlp_ratio}")
        self.image_size = image_sides(image_size)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.gradient_checkpointing = False
        self.rows, self.columns = _patch_grid(self.image_size, patch_size)

        self.conditioning = DiTConditioning(width, num_classes)
        self.patch_in = nn.Linear(in_channels * patch_size**2, width)
        xavier(self.patch_in)
        self.positions: Tensor
        self.register_buffer("positions", grid_embedding(width, self.rows, self.columns), persistent=False)
        self.blocks = nn.ModuleList(
            DiTBlock(width, heads, mlp_ratio, dropout, fused_qkv=fused_qkv) for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, patch_size**2 * in_channels)
        zeros(self.modulation_out)
        zeros(self.patch_out)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        check_images(x, self.in_channels, self.image_size)
        e = self.conditioning(c_noise, y)  # (B, width)
        p = self.patch_size
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)  # (B, N, C·p²)
        h = self.patch_in(patches) + self.positions  # (B, N, width)
        for block in self.blocks:
            h = self._run(block, h, e)  # (B, N, width)
        shift, scale = self.modulation_out(e).unsqueeze(1).chunk(2, dim=2)  # 2 of (B, 1, width)
        h = self.patch_out(modulate(self.norm_out(h), shift, scale))  # (B, N, p²·C)
        return rearrange(h, "b (h w) (p q c) -> b c (h p) (w q)", h=self.rows, p=p, q=p)  # (B, C, H, W)

    def _run(self, block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, h, e, use_reentrant=False, preserve_rng_state=True)
        return block(h, e)


def _patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"images of {height}x{width} cannot be cut into patches of {patch_size}x{patch_size}: "
            f"both sides must be divisible by {patch_size}. "
            f"Nearest sizes that work: {nearest_sizes(image_size, patch_size)}."
        )
    return height // patch_size, width // patch_size
