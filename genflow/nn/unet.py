"""The U-Net backbone, in EDM's DDPM++ form."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genflow.nn.attention import SelfAttention
from genflow.nn.embeddings import UNetConditioning
from genflow.nn.layers import (
    check_at_least,
    check_dropout,
    check_images,
    downsample,
    group_norm,
    image_sides,
    nearest_sizes,
    plain_arguments,
    upsample,
    xavier,
    zeros,
)


def same_size(x: Tensor) -> Tensor:
    """Return `x`: the third choice beside `downsample` and `upsample`."""
    return x


class ImageAttention(nn.Module):
    """Residual self-attention over the pixels of a feature map, `(x + attn(norm(x))) / √2`.

    Shapes: (B, C, H, W) to (B, C, H, W). The output kernel starts at 0.
    Source: Score-Based Generative Modeling through SDEs (arXiv 2011.13456), appendix H.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = SelfAttention(channels, heads)
        for linear in (self.attention.q, self.attention.k, self.attention.v):
            xavier(linear, gain=math.sqrt(0.1))  # 0.2 for one (C, 3C) kernel, as DDPM++ has
        zeros(self.attention.o)

    def forward(self, x: Tensor) -> Tensor:
        # One contiguous copy here saves one in each of q, k and v.
        tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()  # (B, H·W, C)
        h = self.attention(tokens).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)
        return (x + h).mul_(math.sqrt(0.5))  # (B, C, H, W)


class ResidualBlock(nn.Module):
    """DDPM++'s residual block, which can also halve or double the image.

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
        resample: Callable[[Tensor], Tensor] = same_size,
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of the U-Net: its channels, and its attention heads (0 is no attention)."""

    channels: int
    heads: int


@final
class UNet(nn.Module):
    """U-Net in EDM's DDPM++ form: residual blocks at several resolutions, joined by skips.

    Level i works at `image_size / 2^i` with `width * multipliers[i]` channels. The encoder has
    `blocks` residual blocks a level, the decoder `blocks + 1`, each of which also reads one
    encoder output; two blocks, the first with attention, stand between them. A fresh network
    returns exactly 0.

    Shapes: x (B, C, H, W) float, c_noise (B,), y (B,) int64 in [0, num_classes] or None (which is
    `num_classes`, "no class"; labels are ignored if num_classes is 0) to (B, C, H, W). A second
    time `s` (B,) is accepted and ignored, since samplers pass one to every backbone.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models (arXiv 2206.00364,
    Table 7); Score-Based Generative Modeling through SDEs (arXiv 2011.13456, appendix H).

    Args:
        image_size: (H, W), each divisible by `2 ** (len(multipliers) - 1)`.
        in_channels: C, of input and output.
        num_classes: Number of classes; the table has one row more, for "no class".
        width: Base number of channels, even, at least 4.
        multipliers: Channels of each level, in units of `width`.
        blocks: Residual blocks a level.
        attention: Resolutions (smaller side of the feature map) with attention: in every encoder
            block and in a level's last decoder block. Ones that do not occur have no effect.
        dropout: Probability inside residual blocks, in [0, 1).
        heads: Attention heads; divides the channels wherever attention is.
        embedding_multiplier: Width of the conditioning vector, in units of `width`.

    Raises:
        ValueError: For sizes that cannot be halved that often (the message names ones that can),
            other arguments out of range, and batches of another shape than the one built for.
    """

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        in_channels: int,
        num_classes: int = 0,
        width: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        dropout: float = 0.13,
        heads: int = 1,
        embedding_multiplier: int = 4,
    ) -> None:
        self.arguments = plain_arguments(locals())
        super().__init__()
        check_at_least(1, in_channels=in_channels, blocks=blocks, heads=heads)
        check_at_least(1, embedding_multiplier=embedding_multiplier)
        check_at_least(0, num_classes=num_classes)
        check_dropout(dropout)
        if width < 4 or width % 2:
            raise ValueError(f"width must be even and at least 4, got {width}")
        self.image_size = image_sides(image_size)
        self.in_channels = in_channels
        self.gradient_checkpointing = False
        _check_levels(self.image_size, multipliers)
        embedding_width = width * embedding_multiplier
        levels = [
            Level(channels=width * m, heads=heads if min(self.image_size) >> i in attention else 0)
            for i, m in enumerate(multipliers)
        ]
        make = functools.partial(ResidualBlock, embedding_width=embedding_width, dropout=dropout)

        self.conditioning = UNetConditioning(width, embedding_width, num_classes)
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        xavier(self.conv_in)
        self.encoder, skips = _encoder(make, width, levels, blocks)
        self.entries, self.decoder = _decoder(make, skips, levels, blocks, heads)
        here = levels[0].channels
        self.norm_out = group_norm(here)
        self.conv_out = nn.Conv2d(here, in_channels, 3, padding=1)
        zeros(self.conv_out)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        check_images(x, self.in_channels, self.image_size)
        e = self.conditioning(c_noise, y)  # (B, embedding_width)
        h = self.conv_in(x)  # (B, width, H, W)
        skips = [h]
        for block in self.encoder:
            h = self._run(block, h, e)  # (B, C_i, H/2^i, W/2^i)
            skips.append(h)
        for entry, readers in zip(self.entries, self.decoder, strict=True):
            for block in entry.children():
                h = self._run(block, h, e)  # (B, C_{i+1}, H/2^i, W/2^i)
            for block in readers.children():
                h = self._run(block, torch.cat([h, skips.pop()], dim=1), e)  # (B, C_i, ...)
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, C, H, W)

    def _run(self, block: nn.Module, h: Tensor, e: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, h, e, use_reentrant=False, preserve_rng_state=True)
        return block(h, e)


def _encoder(
    make: Callable[..., ResidualBlock], width: int, levels: Sequence[Level], blocks: int
) -> tuple[nn.ModuleList, list[int]]:
    """Blocks from the highest resolution down, and the channels of all outputs the decoder reads."""
    encoder = nn.ModuleList()
    skips = [width]
    for depth, level in enumerate(levels):
        if depth:
            encoder.append(make(skips[-1], skips[-1], resample=downsample))
            skips.append(skips[-1])
        for _ in range(blocks):
            encoder.append(make(skips[-1], level.channels, attention_heads=level.heads))
            skips.append(level.channels)
    return encoder, skips


def _decoder(
    make: Callable[..., ResidualBlock], skips: Sequence[int], levels: Sequence[Level], blocks: int, heads: int
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """For each level, deepest first: the blocks that enter it, and the blocks that read skips."""
    entries, decoder = nn.ModuleList(), nn.ModuleList()
    unread = list(skips)
    here = unread[-1]
    for level in reversed(levels):
        if len(decoder) == 0:
            entry = [make(here, here, attention_heads=heads), make(here, here)]  # the two middle blocks
        else:
            entry = [make(here, here, resample=upsample)]
        entries.append(nn.ModuleList(entry))
        readers = nn.ModuleList()
        for i in range(blocks + 1):
            attention_heads = level.heads if i == blocks else 0
            readers.append(make(here + unread.pop(), level.channels, attention_heads=attention_heads))
            here = level.channels
        decoder.append(readers)
    return entries, decoder


def _check_levels(image_size: tuple[int, int], multipliers: Sequence[int]) -> None:
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must be positive integers, at least one; got {multipliers}")
    halvings = len(multipliers) - 1
    divisor = 2**halvings
    height, width = image_size
    if height % divisor == 0 and width % divisor == 0:
        return
    common = math.gcd(height, width)
    most = (common & -common).bit_length()  # 1 + the number of times both sides can be halved
    raise ValueError(
        f"images of {height}x{width} cannot be halved {halvings} times: a UNet with "
        f"{len(multipliers)} levels (multipliers={tuple(multipliers)}) needs sides divisible by "
        f"{divisor}. Nearest sizes that work: {nearest_sizes(image_size, divisor)}. "
        f"{height}x{width} allows at most {most} level{'s' if most > 1 else ''}."
    )
