"""The blocks that U-Nets are made of, in DDPM++'s and in ADM's form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.nn.attention import SelfAttention
from genflow.nn.layers import Resample, group_norm, make_downsample, same_size, upsample, xavier, zeros


class ImageAttention(nn.Module):
    """Residual self-attention over the pixels of a feature map, `scale (x + attn(norm(x)))`.

    `scale` is 1/√2 in DDPM++ and NCSN++, 1 in ADM. Shapes: (B, C, H, W) to (B, C, H, W). The output kernel starts at
    0. Source: Score-Based Generative Modeling through SDEs (arXiv 2011.13456), appendix H.
    """

    def __init__(self, channels: int, heads: int, *, scale: float = math.sqrt(0.5), eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = scale
        self.norm = group_norm(channels, eps)
        self.attention = SelfAttention(channels, heads)
        for linear in (self.attention.q, self.attention.k, self.attention.v):
            xavier(linear, gain=math.sqrt(0.1))  # 0.2 for one (C, 3C) kernel, as DDPM++ has
        zeros(self.attention.o)

    def forward(self, x: Tensor) -> Tensor:
        # One contiguous copy here saves one in each of q, k and v.
        tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()  # (B, H·W, C)
        h = self.attention(tokens).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)
        return (x + h).mul_(self.scale)  # (B, C, H, W)


class ResidualBlock(nn.Module):
    """The residual block of DDPM++ and NCSN++, which can also halve or double the image.

    `h = conv₀(resample(silu(norm₀(x)))) + affine(e)`,
    `out = (skip(resample(x)) + conv₁(dropout(silu(norm₁(h))))) / √2`, then attention if any.
    The factor 1/√2 keeps unit variance; conv₁ starts at 0.

    Shapes: x (B, in_channels, H, W) and e (B, embedding_width) to (B, out_channels, H', W').
    Source: EDM (arXiv 2206.00364), DDPM++ (arXiv 2011.13456, appendix H).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        dropout: float,
        *,
        resample: Resample = same_size,
        attention_heads: int = 0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.resample = resample
        self.norm0 = group_norm(in_channels)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(embedding_width, out_channels)
        self.norm1 = group_norm(out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        xavier(self.conv0)
        xavier(self.affine)
        zeros(self.conv1)
        self.skip = None
        if resample is not same_size or in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1)
            xavier(self.skip)
        self.attention = ImageAttention(out_channels, attention_heads) if attention_heads else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv0(self.resample(F.silu(self.norm0(x))))  # (B, out, H', W')
        h = h + self.affine(e)[:, :, None, None]  # (B, out, H', W')
        h = F.dropout(F.silu(self.norm1(h)), self.dropout, self.training)  # (B, out, H', W')
        h = self.conv1(h)  # (B, out, H', W')
        if self.resample is upsample and self.skip is not None:
            # A 1x1 kernel commutes with repeating pixels: a quarter of the work this way round.
            x = upsample(self.skip(x))  # (B, out, 2H, 2W)
        elif self.skip is not None:
            x = self.skip(self.resample(x))  # (B, out, H', W')
        h = (x + h).mul_(math.sqrt(0.5))  # (B, out, H', W')
        return h if self.attention is None else self.attention(h)  # (B, out, H', W')


class AdaptiveBlock(nn.Module):
    """ADM's residual block: the conditioning vector scales and shifts the normalised features.

    `h = conv₀(resample(silu(norm₀(x))))`, `scale, shift = affine(e)`,
    `out = skip(resample(x)) + conv₁(dropout(silu(norm₁(h) (1 + scale) + shift)))`, then attention if any. `skip` is
    the identity unless the channels change. conv₁ starts at 0, other kernels and biases as torch draws them, uniform
    within ±1/√fan_in, which is what EDM's reimplementation of ADM does.

    Shapes: x (B, in_channels, H, W) and e (B, embedding_width) to (B, out_channels, H', W').
    Source: Diffusion Models Beat GANs on Image Synthesis (arXiv 2105.05233, section 3); EDM (arXiv 2206.00364).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        dropout: float,
        *,
        resample: Resample = same_size,
        attention_heads: int = 0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.resample = resample
        self.norm0 = group_norm(in_channels, eps=1e-5)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(embedding_width, 2 * out_channels)
        self.norm1 = group_norm(out_channels, eps=1e-5)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        zeros(self.conv1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.attention = None
        if attention_heads:
            self.attention = ImageAttention(out_channels, attention_heads, scale=1.0, eps=1e-5)
            for linear in (self.attention.attention.q, self.attention.attention.k, self.attention.attention.v):
                linear.reset_parameters()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv0(self.resample(F.silu(self.norm0(x))))  # (B, out, H', W')
        scale, shift = self.affine(e)[:, :, None, None].chunk(2, dim=1)  # 2 of (B, out, 1, 1)
        h = torch.addcmul(shift, self.norm1(h).to(shift.dtype), scale + 1)  # (B, out, H', W')
        h = self.conv1(F.dropout(F.silu(h), self.dropout, self.training))  # (B, out, H', W')
        x = self.resample(x)  # (B, in, H', W')
        h = h + (x if self.skip is None else self.skip(x))  # (B, out, H', W')
        return h if self.attention is None else self.attention(h)  # (B, out, H', W')


class InputProjection(nn.Module):
    """NCSN++'s progressive input: add the image, halved and projected, to the features of a lower resolution.

    `out = (h + halve(conv(carried))) / √2`, where `carried` is the image at first, then the `out` of the level above.
    The convolution sees the border that the filter reads.

    Shapes: h (B, out_channels, H/2, W/2), carried (B, in_channels, H, W) to (B, out_channels, H/2, W/2).
    Source: NCSN++ (arXiv 2011.13456, appendix H: "residual" input), in EDM's order (arXiv 2206.00364).
    """

    def __init__(self, in_channels: int, out_channels: int, resample_filter: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=len(resample_filter) // 2)
        self.halve = make_downsample(resample_filter, padded=False)
        xavier(self.conv)

    def forward(self, h: Tensor, carried: Tensor) -> Tensor:
        return (h + self.halve(self.conv(carried))).mul_(math.sqrt(0.5))  # (B, out, H/2, W/2)
