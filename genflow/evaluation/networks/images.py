"""From batches of bytes to what a network takes: three channels, its size, its range."""

from __future__ import annotations

import torch
from torch import Tensor


def to_rgb(images: Tensor, name: str, device: torch.device) -> Tensor:
    """Return a batch (B, 1 or 3, H, W) uint8 as (B, 3, H, W) uint8 on ``device``; grey is repeated.

    Raises ``ValueError``, naming the network, for images of another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(
            f"the {name} network takes uint8 images (B, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}:"
            " quantise floats to 0..255, drop an alpha channel"
        )
    return images.to(device).expand(-1, 3, -1, -1)


def resize_like_tensorflow1(images: Tensor, size: int) -> Tensor:
    """Resize (B, C, H, W) to (B, C, size, size) float32, in the range of the input, as TensorFlow 1 resized.

    Output pixel i is read at i H / size, linearly between its two neighbours, without the shift by half a pixel and
    without antialiasing. The published FID depends on it: the Inception network's graph begins so ("On Aliased Resizing
    and Surprising Subtleties in GAN Evaluation", arXiv 2104.11222). The operations and their order are those of
    torch-fidelity's ``interpolate_bilinear_2d_like_tensorflow1x``, so the bits are the same; they are done along one
    axis after the other on rows that hold channels last, which costs a fraction. The result lies so in memory, too.
    """
    pixels = images.permute(0, 2, 3, 1)  # (B, H, W, C)
    top, bottom, down = _neighbours(pixels.shape[1], size, images.device)
    left, right, along = _neighbours(pixels.shape[2], size, images.device)
    if pixels.shape[1] > 2 * size:  # most rows are never looked at
        pixels = pixels.index_select(1, torch.cat([top, bottom]))
        top, bottom = torch.arange(2 * size, device=images.device).chunk(2)
    if pixels.shape[2] > 2 * size:
        pixels = pixels.index_select(2, torch.cat([left, right]))
        left, right = torch.arange(2 * size, device=images.device).chunk(2)
    pixels = pixels.to(torch.float32).contiguous()
    pixels = _between(pixels.index_select(2, left), pixels.index_select(2, right), along[:, None])
    pixels = _between(pixels.index_select(1, top), pixels.index_select(1, bottom), down[:, None, None])
    return pixels.permute(0, 3, 1, 2)


def _neighbours(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of each output pixel, the input pixels on both sides and how far it is from the first."""
    place = torch.arange(size, dtype=torch.float32, device=device) * torch.tensor(length / size, dtype=torch.float32)
    first = place.long()
    return first, (first + 1).clamp_max(length - 1), place - first.to(torch.float32)


def _between(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    return second.sub_(first).mul_(weight).add_(first)


def standardise(x: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Return (x - mean) / std, channel by channel, of x (B, 3, H, W); mean and std in the range of x."""
    shift, scale = (torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None] for values in (mean, std))
    return (x - shift) / scale


def in_bytes(values: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return a mean or standard deviation that is known for values in [0, 1] for those in 0..255."""
    red, green, blue = values
    return 255 * red, 255 * green, 255 * blue


IMAGENET_MEAN = in_bytes((0.485, 0.456, 0.406))
IMAGENET_STD = in_bytes((0.229, 0.224, 0.225))
