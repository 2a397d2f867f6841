"""Small pieces that both backbones are made of: initialisation, norms, resampling, size checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_arguments(names: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a constructor's `locals()` into a JSON-able dict that rebuilds the object.

    Tuples become lists; `self` and the implicit `__class__` cell are left out.
    """
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in names.items()
        if name not in ("self", "__class__")
    }


def xavier(module: nn.Linear | nn.Conv2d, gain: float = 1.0) -> None:
    """Initialise a kernel uniformly with variance `2 gain² / (fan_in + fan_out)`, its bias at 0.

    Source: Understanding the Difficulty of Training Deep Feedforward Neural Networks (Glorot and
    Bengio, AISTATS 2010), equation 16.
    """
    nn.init.xavier_uniform_(module.weight, gain=gain)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def zeros(module: nn.Linear | nn.Conv2d) -> None:
    """Set kernel and bias to 0, so that the branch behind the module starts silent."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Group normalisation with `min(32, channels // 4)` groups, and eps 1e-6 as in DDPM++.

    Where that number does not divide `channels` (say 144), the next smaller divisor is used: every
    width is allowed, and wherever DDPM++ itself is defined the two agree.
    """
    wanted = max(1, min(32, channels // 4))
    groups = next(n for n in range(wanted, 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


Resample = Callable[[Tensor], Tensor]


def same_size(x: Tensor) -> Tensor:
    """Return `x`: the third choice beside halving and doubling."""
    return x


def downsample(x: Tensor) -> Tensor:
    """Halve both sides with the box filter [1, 1], i.e. average 2x2 pixels: (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """Double both sides with the box filter [1, 1], i.e. repeat pixels: (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class FilterDownsample(nn.Module):
    """Halve both sides with a separable FIR filter f of n weights whose sum is 1.

    `out[i, j] = Σ_kl f_k f_l x[2i + k - padding, 2j + l - padding]`, x being 0 beyond its border.

    Shapes: (B, C, H, W) to (B, C, H/2, W/2) with the usual padding, `n / 2 - 1`.
    Source: upfirdn of StyleGAN2 (arXiv 1912.04958), as NCSN++ uses it (arXiv 2011.13456).
    """

    def __init__(self, weights: Sequence[int], padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.kernel: Tensor
        self.register_buffer("kernel", _outer(weights), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)  # (C, 1, n, n)
        return F.conv2d(x, kernel, stride=2, padding=self.padding, groups=x.shape[1])


class FilterUpsample(nn.Module):
    """Double both sides with a separable FIR filter: 4 times the transpose of `FilterDownsample`.

    Shapes: (B, C, H, W) to (B, C, 2H, 2W).
    Source: upfirdn of StyleGAN2 (arXiv 1912.04958), as NCSN++ uses it (arXiv 2011.13456).
    """

    def __init__(self, weights: Sequence[int]) -> None:
        super().__init__()
        self.padding = len(weights) // 2 - 1
        self.kernel: Tensor
        self.register_buffer("kernel", 4 * _outer(weights), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)  # (C, 1, n, n)
        return F.conv_transpose2d(x, kernel, stride=2, padding=self.padding, groups=x.shape[1])


def _outer(weights: Sequence[int]) -> Tensor:
    f = torch.tensor(weights, dtype=torch.float32)  # (n,)
    return (torch.outer(f, f) / f.sum().square())[None, None]  # (1, 1, n, n)


def make_downsample(weights: Sequence[int], *, padded: bool = True) -> Resample:
    """Return what halves both sides with the filter `weights`; for two equal weights that is `downsample`.

    `padded=False` is for images that already have a border of `n / 2 - 1` pixels.

    Raises:
        ValueError: Unless `weights` are positive, symmetric and even in number: others would move the image.
    """
    _check_filter(weights)
    if len(weights) == 2:
        return downsample
    return FilterDownsample(weights, len(weights) // 2 - 1 if padded else 0)


def make_upsample(weights: Sequence[int]) -> Resample:
    """Return what doubles both sides with the filter `weights`; for two equal weights that is `upsample`.

    Raises:
        ValueError: As `make_downsample`.
    """
    _check_filter(weights)
    return upsample if len(weights) == 2 else FilterUpsample(weights)


def _check_filter(weights: Sequence[int]) -> None:
    symmetric = list(weights) == list(reversed(weights))
    if len(weights) < 2 or len(weights) % 2 or min(weights) <= 0 or not symmetric:
        raise ValueError(
            "resample_filter must be an even number of positive weights that read the same backwards, such as "
            f"(1, 1) or (1, 3, 3, 1); got {tuple(weights)}"
        )


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Affine change of tokens, `x (1 + scale) + shift`, in one pass over the tokens.

    Shapes: x (B, N, D); shift and scale (B, 1, D).
    Source: adaptive layer norm of DiT (arXiv 2212.09748, section 3.2).
    """
    # Under autocast x comes from a norm in float32; rounding it here once saves rounding the
    # result in each of the layers that read it.
    return torch.addcmul(shift, x.to(shift.dtype), scale + 1)  # (B, N, D)


class Mlp(nn.Module):
    """Two-layer perceptron of a transformer block, `fc2(gelu_tanh(fc1(x)))`.

    Shapes: (B, N, width) to (B, N, width); hidden width `hidden`.
    Source: DiT (arXiv 2212.09748); GELU in its tanh form (arXiv 1606.08415).
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        xavier(self.fc1)
        xavier(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.fc1(x), approximate="tanh")  # (B, N, hidden)
        return self.fc2(h)  # (B, N, width)


def image_sides(image_size: Sequence[int]) -> tuple[int, int]:
    """Check that `image_size` is a pair of positive integers and return it as (height, width).

    Raises:
        ValueError: If it is anything else.
    """
    if len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(f"image_size must be (height, width), both >= 1; got {image_size!r}")
    height, width = image_size
    return height, width


def nearest_sizes(image_size: tuple[int, int], divisor: int) -> str:
    """Name the sizes around `image_size` whose sides are multiples of `divisor`, as text."""

    def around(side: int) -> list[int]:
        below = side // divisor * divisor
        return [below] if below == side else [n for n in (below, below + divisor) if n > 0]

    pairs = itertools.product(around(image_size[0]), around(image_size[1]))
    return ", ".join(f"{height}x{width}" for height, width in pairs)


def check_at_least(minimum: int, **values: int) -> None:
    """Refuse sizes that are too small.

    Raises:
        ValueError: Names the first argument below `minimum`.
    """
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_dropout(dropout: float) -> None:
    """Refuse dropout probabilities outside [0, 1).

    Raises:
        ValueError: If `dropout` is not in [0, 1).
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


def check_images(x: Tensor, channels: int, image_size: tuple[int, int]) -> None:
    """Refuse a batch whose images are not of the shape a backbone was built for.

    Raises:
        ValueError: If `x` is not (B, channels, height, width).
    """
    if x.shape[1:] != (channels, *image_size):
        raise ValueError(
            f"this network was built for images of shape {(channels, *image_size)} "
            f"(channels, height, width); got a batch of shape {tuple(x.shape)}"
        )
