"""Geometric augmentation that a network is told of, so that what it learns does not leak into its samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = 9  # numbers that tell a network what was done to an image

# Low-pass filter of the symlet with 6 vanishing moments: orthogonal to its own shifts by 2, sum sqrt(2) (Daubechies,
# "Ten Lectures on Wavelets", 1992, the least asymmetric ones).
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_REACH = 5  # the tap of SYM6 that stands on the pixel itself


@dataclass(frozen=True)
class Augmentation:
    """EDM's non-leaking augmentation: random flips, scales, rotation and translation, with labels that tell them.

    ``augment(x)`` takes images (B, C, H, W) float32 in [-1, 1] on any device and returns images of the same shape, a
    little beyond [-1, 1] where interpolation overshoots, and labels (B, 9) float32. An image whose labels are 0 is
    unchanged bit by bit, so that a network told zeros draws images that are not augmented. All operations but the
    first are done with ``probability`` in [0, 1], independently and in this order; n is standard normal:

    | labels | operation |
    |---|---|
    | 0 or 1 | mirror left and right if 1; evenly, whatever the probability |
    | 0 or 1 | mirror up and down if 1; evenly where done |
    | n | scale by 2^(0.2 n) |
    | cos r - 1, sin r | rotate by r counter-clockwise, uniform in (-pi, pi) |
    | n cos v, n sin v | scale by 2^(0.2 n) along direction v and 2^(-0.2 n) across it; v as r, or evenly 0 |
    | n, n' | translate by n W / 8 to the right and n' H / 8 down |

    Randomness is that of torch's global generator on the device of x; nothing is read back from the device. Source:
    "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364, appendix F.2, Table 6.

    Raises ``ValueError`` for a probability outside [0, 1].
    """

    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"the probability of augmentation must be in [0, 1], got {self.probability}")

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        done = (torch.rand(len(x), 5, device=x.device) < self.probability).float()
        chance = torch.rand(len(x), 5, device=x.device)
        normal = torch.randn(len(x), 4, device=x.device)
        mirror = (chance[:, :2] < 0.5).float()
        x_flip, y_flip = mirror[:, 0], mirror[:, 1] * done[:, 0]
        turn = (2 * chance[:, 2] - 1) * math.pi * done[:, 2]
        axis = (2 * chance[:, 3] - 1) * math.pi * (chance[:, 4] < 0.5)
        scale, stretch = normal[:, 0] * done[:, 1], normal[:, 1] * done[:, 3]
        right, down = (normal[:, 2:] * done[:, 4:]).unbind(1)
        labels = torch.stack(
            [
                x_flip,
                y_flip,
                scale,
                turn.cos() - 1,
                turn.sin(),
                stretch * axis.cos(),
                stretch * axis.sin(),
                right,
                down,
            ],
            dim=1,
        )  # (B, 9)
        x = torch.where(x_flip.view(-1, 1, 1, 1) > 0, x.flip(3), x)
        x = torch.where(y_flip.view(-1, 1, 1, 1) > 0, x.flip(2), x)
        warped = warp(x, origins(scale, turn, stretch, axis, right, down, x.shape[2:]))
        moved = (labels[:, 2:] != 0).any(dim=1)  # the warp of the others would round
        return torch.where(moved.view(-1, 1, 1, 1), warped, x), labels


def origins(
    scale: Tensor, turn: Tensor, stretch: Tensor, axis: Tensor, right: Tensor, down: Tensor, sides: Sequence[int]
) -> Tensor:
    """Return where the geometric operations of `Augmentation` take each pixel from, as matrices (B, 2, 3) for `warp`.

    ``scale``, ``stretch``, ``right`` and ``down`` are the n of their rows of the table, ``turn`` and ``axis`` its r and
    v in radians, counter-clockwise; all (B,). ``sides`` are (H, W).
    """
    # a stretch along the axis and its inverse across it, undone: [[p + q cos 2v, -q sin 2v], [-q sin 2v, p - q cos 2v]]
    along, across = torch.exp2(-0.2 * stretch), torch.exp2(0.2 * stretch)
    p, q = (along + across) / 2, (along - across) / 2
    xx, xy, yy = p + q * torch.cos(2 * axis), -q * torch.sin(2 * axis), p - q * torch.cos(2 * axis)
    shrink = torch.exp2(-0.2 * scale)
    cos, sin = shrink * torch.cos(turn), shrink * torch.sin(turn)
    x_of_x, x_of_y = cos * xx - sin * xy, cos * xy - sin * yy
    y_of_x, y_of_y = sin * xx + cos * xy, sin * xy + cos * yy
    right, down = right * (sides[1] / 8), down * (sides[0] / 8)
    rows = [x_of_x, x_of_y, -x_of_x * right - x_of_y * down, y_of_x, y_of_y, -y_of_x * right - y_of_y * down]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(x: Tensor, matrices: Tensor) -> Tensor:
    """Resample images so that position p shows what was at ``M p``, mirrored at the edges where that lies outside.

    Positions (x, y, 1) are in pixels from the centre, x to the right and y down; M is (2, 3). To lose little
    sharpness the image is doubled by the wavelet `SYM6`, interpolated linearly there, and halved by the same filter,
    which undoes the doubling exactly. Shapes: x (B, C, H, W), matrices (B, 2, 3) to (B, C, H, W).
    Source: "Training Generative Adversarial Networks with Limited Data", arXiv 2006.06676, appendix B.
    """
    height, width = x.shape[2:]
    up_y, down_y = _filters(height, x.device)
    up_x, down_x = _filters(width, x.device)
    # mirrored at its edges the image repeats itself, so one period of it, doubled, holds all there is to see
    doubled = up_y @ (x @ up_x.T)  # (B, C, 2 P + 1, 2 Q + 1) with periods P, Q
    grid = torch.stack(_positions(matrices, height, width), dim=3)
    seen = F.grid_sample(doubled, grid, mode="bilinear", align_corners=True)
    return down_y @ (seen @ down_x.T)


def _positions(matrices: Tensor, height: int, width: int) -> list[Tensor]:
    """Return x and y of what is seen by each pixel of the doubled output, (B, 2 H + 10, 2 W + 10) in [-1, 1]."""
    half_pixels = [
        (torch.arange(2 * side + 2 * _REACH, device=matrices.device) - _REACH) / 2 - (side - 1) / 2
        for side in (height, width)
    ]
    found = []
    for row, side in zip(matrices.unbind(1), (width, height), strict=True):
        row = row / _period(side)  # (B, 3), in periods
        centre = (side - 1) / 2 / _period(side)
        along = row[:, :1] * half_pixels[1] + row[:, 2:] + centre  # (B, 2 W + 10)
        across = row[:, 1:2] * half_pixels[0]  # (B, 2 H + 10)
        place = across[:, :, None] + along[:, None, :]
        found.append(place.sub_(place.floor()).mul_(2).sub_(1))
    return found


def _period(side: int) -> int:
    return max(2 * (side - 1), 1)


@functools.cache
def _filters(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrices that double one period of a mirrored side, (2 P + 1, side), and halve what is seen of it."""
    period = _period(side)
    up = torch.zeros(2 * period + 1, side, dtype=torch.float64)
    for row in range(2 * period + 1):
        for tap, weight in enumerate(SYM6):
            place = row + _REACH - tap
            if place % 2 == 0:
                pixel = place // 2 % period
                up[row, min(pixel, period - pixel) if side > 1 else 0] += weight
    down = torch.zeros(side, 2 * side + 2 * _REACH, dtype=torch.float64)
    for row in range(side):
        down[row, 2 * row : 2 * row + len(SYM6)] = torch.tensor(SYM6, dtype=torch.float64)
    return up.float().to(device), down.float().to(device)
