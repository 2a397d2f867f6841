"""The U-Net backbone, in the forms of DDPM++, NCSN++ and ADM."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genflow.nn.blocks import AdaptiveBlock, InputProjection, ResidualBlock
from genflow.nn.embeddings import ADMConditioning, UNetConditioning
from genflow.nn.layers import (
    check_at_least,
    check_dropout,
    check_images,
    group_norm,
    image_sides,
    make_downsample,
    make_upsample,
    nearest_sizes,
    plain_arguments,
    xavier,
    zeros,
)


def unet_preset(name: str) -> dict[str, Any]:
    """Return a published architecture as keyword arguments of `UNet`.

    `ddpm++` and `ncsn++` are EDM's networks for CIFAR-10 (for its 64x64 data sets `multipliers` is (1, 2, 2, 2)), `adm`
    is the one for ImageNet at 64x64. EDM trains the first two with `augment_dim=9`.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models (arXiv 2206.00364, Table 7).

    Raises:
        ValueError: For any other name.
    """
    ddpmpp = {"width": 128, "multipliers": (2, 2, 2), "blocks": 4, "attention": (16,), "dropout": 0.13}
    match name:
        case "ddpm++":
            return ddpmpp
        case "ncsn++":
            return ddpmpp | {"fourier_scale": 16.0, "resample_filter": (1, 3, 3, 1), "residual_encoder": True}
        case "adm":
            return {
                "width": 192,
                "multipliers": (1, 2, 3, 4),
                "blocks": 3,
                "attention": (32, 16, 8),
                "dropout": 0.1,
                "adaptive_norm": True,
                "head_channels": 64,
                "decoder_attention": "every",
            }
        case _:
            raise ValueError(f"UNet presets are ddpm++, ncsn++ and adm; got {name!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of the U-Net: its channels, whether its blocks attend, and with how many heads."""

    channels: int
    attends: bool
    heads: int


@final
class UNet(nn.Module):
    """U-Net in the forms of DDPM++ (the default), NCSN++ and ADM: residual blocks at several resolutions, with skips.

    Level i works at `image_size / 2^i` with `width * multipliers[i]` channels. The encoder has
    `blocks` residual blocks a level, the decoder `blocks + 1`, each of which also reads one
    encoder output; two blocks, the first with attention, stand between them. A fresh network
    returns exactly 0. `UNet(**unet_preset("ncsn++"), ...)` gives the published sizes.

    Shapes: x (B, C, H, W) float, c_noise (B,), y (B,) int64 in [0, num_classes] or None (which is
    `num_classes`, "no class"; labels are ignored if num_classes is 0), augment (B, augment_dim) or None (as zeros) to
    (B, C, H, W). A second time `s` (B,) is accepted and ignored, since samplers pass one to every backbone.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models (arXiv 2206.00364,
    Table 7); Score-Based Generative Modeling through SDEs (arXiv 2011.13456, appendix H); Diffusion Models Beat GANs
    on Image Synthesis (arXiv 2105.05233).

    Args:
        image_size: (H, W), each divisible by `2 ** (len(multipliers) - 1)`.
        in_channels: C, of input and output.
        num_classes: Number of classes; the table has one row more, for "no class".
        width: Base number of channels, even, at least 4.
        multipliers: Channels of each level, in units of `width`.
        blocks: Residual blocks a level.
        attention: Resolutions (smaller side of the feature map) with attention: in every encoder
            block and in decoder blocks. Ones that do not occur have no effect.
        dropout: Probability inside residual blocks, in [0, 1).
        heads: Attention heads; divides the channels wherever attention is.
        embedding_multiplier: Width of the conditioning vector, in units of `width`.
        fourier_scale: Standard deviation of the frequencies of random Fourier features of c_noise (NCSN++ 16); 0 is
            the positional embedding.
        resample_filter: FIR filter for halving and doubling (NCSN++ (1, 3, 3, 1)): an even number of positive
            weights, symmetric.
        residual_encoder: Add the image, halved and projected, to the features of every lower level, as NCSN++ does.
        adaptive_norm: ADM's blocks (scale and shift by the conditioning vector), initialisation and embedding.
        head_channels: Channels of an attention head (ADM 64), which divide those of every attention; 0 uses `heads`.
        decoder_attention: Attention in the "last" decoder block of a level (DDPM++, NCSN++) or in "every" (ADM).
        augment_dim: Width of the augmentation labels that EDM trains with, 0 for none.

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
        fourier_scale: float = 0.0,
        resample_filter: Sequence[int] = (1, 1),
        residual_encoder: bool = False,
        adaptive_norm: bool = False,
        head_channels: int = 0,
        decoder_attention: Literal["last", "every"] = "last",
        augment_dim: int = 0,
    ) -> None:
        self.arguments = plain_arguments(locals())
        super().__init__()
        check_at_least(1, in_channels=in_channels, blocks=blocks, heads=heads)
        check_at_least(1, embedding_multiplier=embedding_multiplier)
        check_at_least(0, num_classes=num_classes, head_channels=head_channels, augment_dim=augment_dim)
        check_dropout(dropout)
        _check_choices(width, fourier_scale, decoder_attention)
        self.image_size = image_sides(image_size)
        self.in_channels = in_channels
        self.gradient_checkpointing = False
        _check_levels(self.image_size, multipliers)
        count_heads = functools.partial(_heads, heads, head_channels)
        levels = _levels(self.image_size, width, multipliers, attention, count_heads)
        conditioning, block = (ADMConditioning, AdaptiveBlock) if adaptive_norm else (UNetConditioning, ResidualBlock)
        first = levels[0].channels if adaptive_norm else width
        embedding_width = width * embedding_multiplier
        make = functools.partial(block, embedding_width=embedding_width, dropout=dropout)

        self.conditioning = conditioning(
            width, embedding_width, num_classes, fourier_scale=fourier_scale, augment_dim=augment_dim
        )
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        if not adaptive_norm:
            xavier(self.conv_in)
        self.encoder, skips = _encoder(make, first, levels, blocks, resample_filter)
        self.entries, self.decoder = _decoder(make, skips, levels, blocks, resample_filter, decoder_attention)
        self.projections = nn.ModuleDict()
        if residual_encoder:
            self.projections = _projections(in_channels, levels, blocks, resample_filter)
        here = levels[0].channels
        self.norm_out = group_norm(here, eps=1e-5 if adaptive_norm else 1e-6)
        self.conv_out = nn.Conv2d(here, in_channels, 3, padding=1)
        zeros(self.conv_out)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        y: Tensor | None = None,
        s: Tensor | None = None,
        *,
        augment: Tensor | None = None,
    ) -> Tensor:
        check_images(x, self.in_channels, self.image_size)
        e = self.conditioning(c_noise, y, augment)  # (B, embedding_width)
        h = self.conv_in(x)  # (B, width, H, W)
        skips = [h]
        carried = x
        for name, block in self.encoder.named_children():
            h = self._run(block, h, e)  # (B, C_i, H/2^i, W/2^i)
            if name in self.projections:
                h = carried = self.projections[name](h, carried)  # (B, C_i, H/2^i, W/2^i)
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


Make = Callable[..., nn.Module]


def _encoder(
    make: Make, first: int, levels: Sequence[Level], blocks: int, resample_filter: Sequence[int]
) -> tuple[nn.ModuleList, list[int]]:
    """Blocks from the highest resolution down, and the channels of all outputs the decoder reads."""
    encoder = nn.ModuleList()
    skips = [first]
    downsample = make_downsample(resample_filter)
    for depth, level in enumerate(levels):
        if depth:
            encoder.append(make(skips[-1], skips[-1], resample=downsample))
            skips.append(skips[-1])
        for _ in range(blocks):
            encoder.append(make(skips[-1], level.channels, attention_heads=level.heads if level.attends else 0))
            skips.append(level.channels)
    return encoder, skips


def _projections(
    in_channels: int, levels: Sequence[Level], blocks: int, resample_filter: Sequence[int]
) -> nn.ModuleDict:
    """Projections of the image, by the index of the encoder block (one that halves) after which each is added."""
    projections = nn.ModuleDict()
    channels = in_channels
    for depth, above in enumerate(levels[:-1], start=1):
        projections[str(depth * (blocks + 1) - 1)] = InputProjection(channels, above.channels, resample_filter)
        channels = above.channels
    return projections


def _decoder(
    make: Make,
    skips: Sequence[int],
    levels: Sequence[Level],
    blocks: int,
    resample_filter: Sequence[int],
    attention: Literal["last", "every"],
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """For each level, deepest first: the blocks that enter it, and the blocks that read skips."""
    entries, decoder = nn.ModuleList(), nn.ModuleList()
    unread = list(skips)
    here = unread[-1]
    upsample = make_upsample(resample_filter)
    for level in reversed(levels):
        if len(decoder) == 0:
            entry = [make(here, here, attention_heads=level.heads), make(here, here)]  # the two middle blocks
        else:
            entry = [make(here, here, resample=upsample)]
        entries.append(nn.ModuleList(entry))
        readers = nn.ModuleList()
        for i in range(blocks + 1):
            attends = level.attends and (attention == "every" or i == blocks)
            readers.append(make(here + unread.pop(), level.channels, attention_heads=level.heads if attends else 0))
            here = level.channels
        decoder.append(readers)
    return entries, decoder


def _levels(
    image_size: tuple[int, int],
    width: int,
    multipliers: Sequence[int],
    attention: Sequence[int],
    heads: Callable[[int], int],
) -> list[Level]:
    """Return the levels, highest resolution first; heads are chosen where attention is, and there is in the last."""
    levels: list[Level] = []
    for i, multiplier in enumerate(multipliers):
        attends = min(image_size) >> i in attention
        needed = attends or i == len(multipliers) - 1
        channels = width * multiplier
        levels.append(Level(channels=channels, attends=attends, heads=heads(channels) if needed else 0))
    return levels


def _heads(heads: int, head_channels: int, channels: int) -> int:
    """Return the number of attention heads for so many channels."""
    if head_channels == 0:
        return heads
    if channels % head_channels:
        raise ValueError(
            f"head_channels must divide the channels wherever attention is; got {head_channels} and {channels}"
        )
    return channels // head_channels


def _check_choices(width: int, fourier_scale: float, decoder_attention: str) -> None:
    if width < 4 or width % 2:
        raise ValueError(f"width must be even and at least 4, got {width}")
    if not 0 <= fourier_scale < math.inf:
        raise ValueError(f"fourier_scale must be 0 or a positive number, got {fourier_scale}")
    if decoder_attention not in ("last", "every"):
        raise ValueError(f'decoder_attention must be "last" or "every", got {decoder_attention!r}')


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
