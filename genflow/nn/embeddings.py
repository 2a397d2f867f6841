"""What a backbone is told besides the image: the time it sees and the class label.

Times enter as `c_noise` (B,), a number whose meaning belongs to the parameterization. Everything
here is computed in float32 even under autocast: methods that compare two close times (consistency
models) need more than the 8 bits of a bfloat16 mantissa.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.nn.layers import xavier, zeros


def _angles(c_noise: Tensor, frequencies: int, last: int) -> Tensor:
    """Angles `c_noise · 10000^(-k / last)` for k = 0 .. frequencies - 1, in float32.

    The frequencies are computed each time: a buffer would be rounded by `module.to(bfloat16)`.
    """
    k = torch.arange(frequencies, dtype=torch.float32, device=c_noise.device)  # (F,)
    return c_noise.float()[:, None] * torch.exp(k * (-math.log(10000.0) / last))  # (B, F)


def ddpm_embedding(c_noise: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding in DDPM's convention, which EDM's DDPM++ keeps.

    `[sin(c f_k), cos(c f_k)]`, `f_k = 10000^(-k / (width/2 - 1))`: the last frequency is exactly
    1/10000. (EDM computes [cos, sin] and then swaps the halves, which is this order.)

    Shapes: c_noise (B,) to (B, width); width even and at least 4.
    Source: Denoising Diffusion Probabilistic Models (arXiv 2006.11239); EDM (arXiv 2206.00364).
    """
    half = width // 2
    angles = _angles(c_noise, half, half - 1)  # (B, width/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, width)


def dit_embedding(c_noise: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding in DiT's convention.

    `[cos(c f_k), sin(c f_k)]`, `f_k = 10000^(-k / (width/2))`: the last frequency stays above
    1/10000.

    Shapes: c_noise (B,) to (B, width); width even.
    Source: Scalable Diffusion Models with Transformers (arXiv 2212.09748).
    """
    half = width // 2
    angles = _angles(c_noise, half, half)  # (B, width/2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, width)


class FourierFeatures(nn.Module):
    """Random Fourier features of time, `[sin(2π W c), cos(2π W c)]` with fixed `W ~ N(0, scale²)`.

    The frequencies are saved with the weights and stay float32 whatever the network is cast to: an angle is hundreds
    of radians at scale 16, and a rounded frequency is another feature.

    Shapes: c_noise (B,) to (B, channels), float32; channels even.
    Source: Score-Based Generative Modeling through SDEs (arXiv 2011.13456, appendix H), in the order of EDM (arXiv
    2206.00364), which computes [cos, sin] and then swaps the halves.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.randn(channels // 2, dtype=torch.float32) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise.float()[:, None] * (2 * math.pi * self.frequencies)  # (B, channels/2)
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, channels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourierFeatures:
        # Casts spare integers, moves do not: seen as integers the frequencies change device only.
        self.frequencies = self.frequencies.view(torch.int32)
        try:
            return super()._apply(fn, recurse)
        finally:
            self.frequencies = self.frequencies.view(torch.float32)


def grid_embedding(width: int, rows: int, columns: int) -> Tensor:
    """Fixed 2-D sine-cosine embedding of a grid of patches, float32.

    The first half of the channels encodes the column, the second the row, each as
    `[sin(p f_k), cos(p f_k)]` with `f_k = 10000^(-k / (width/4))`.

    Shapes: (rows · columns, width), row by row; width divisible by 4.
    Source: DiT (arXiv 2212.09748), after Attention Is All You Need (arXiv 1706.03762).
    """
    k = torch.arange(width // 4, dtype=torch.float64)  # (width/4,)
    frequencies = 10000.0 ** (-k / (width // 4))  # (width/4,)

    def one_axis(length: int) -> Tensor:
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (length, width/2)

    column = one_axis(columns)[None].expand(rows, -1, -1)  # (rows, columns, width/2)
    row = one_axis(rows)[:, None].expand(-1, columns, -1)  # (rows, columns, width/2)
    return torch.cat([column, row], dim=2).flatten(0, 1).float()  # (rows · columns, width)


class LabelTable(nn.Module):
    """Table of class embeddings whose last row, `num_classes`, means "no class".

    Shapes: y (B,) int64 in [0, num_classes] to (B, width); y = None is the last row for all.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.empty(num_classes + 1, width))

    def forward(self, y: Tensor | None, batch: int) -> Tensor:
        if y is None:
            y = torch.full((batch,), self.num_classes, device=self.weight.device)  # (B,)
        return F.embedding(y, self.weight)  # (B, width)


class TimeInput(nn.Module):
    """What the mapping network of a U-Net reads besides the label: features of time and of augmentation.

    `features(c_noise) + A augment`; the features are `positional(c_noise, width)` if `fourier_scale` is 0, else 2 ·
    `width` random Fourier features. `augment = None` adds nothing.

    Shapes: c_noise (B,), augment (B, augment_dim) or None to (B, channels).
    Source: Elucidating the Design Space of Diffusion-Based Generative Models (arXiv 2206.00364, appendix F.2).

    Raises:
        ValueError: For augmentation labels of another shape.
    """

    def __init__(
        self, width: int, positional: Callable[[Tensor, int], Tensor], fourier_scale: float, augment_dim: int
    ) -> None:
        super().__init__()
        self.channels = 2 * width if fourier_scale else width
        self.positional = positional
        self.augment_dim = augment_dim
        self.fourier = FourierFeatures(self.channels, fourier_scale) if fourier_scale else None
        self.augment = nn.Linear(augment_dim, self.channels, bias=False) if augment_dim else None

    def forward(self, c_noise: Tensor, augment: Tensor | None) -> Tensor:
        if self.fourier is None:
            e = self.positional(c_noise, self.channels)  # (B, channels)
        else:
            e = self.fourier(c_noise)  # (B, channels)
        if augment is None:
            return e
        if self.augment is None or augment.shape != (len(c_noise), self.augment_dim):
            raise ValueError(
                f"this network was built with augment_dim={self.augment_dim} and got augmentation labels of shape "
                f"{tuple(augment.shape)} for {len(c_noise)} images: give (B, augment_dim), or None without any"
            )
        return e + self.augment(augment.to(self.augment.weight.dtype))  # (B, channels)


class UNetConditioning(nn.Module):
    """DDPM++'s and NCSN++'s conditioning vector from time, label and augmentation.

    `e = silu(W₁ silu(W₀ (TimeInput(c_noise, augment) + table[y])))`.

    The table starts with the distribution of EDM's one-hot Linear (rows `√n W[:, k]`, null row 0);
    such a weight W with bias b loads as rows `√n W[:, k] + b` and null row b.

    Shapes: c_noise (B,), y (B,) or None, augment (B, augment_dim) or None to (B, out_width).
    Source: Elucidating the Design Space of Diffusion-Based Generative Models (arXiv 2206.00364).
    """

    def __init__(
        self, width: int, out_width: int, num_classes: int, *, fourier_scale: float = 0.0, augment_dim: int = 0
    ) -> None:
        super().__init__()
        self.time = TimeInput(width, ddpm_embedding, fourier_scale, augment_dim)
        channels = self.time.channels
        self.labels = LabelTable(num_classes, channels) if num_classes else None
        self.map0 = nn.Linear(channels, out_width)
        self.map1 = nn.Linear(out_width, out_width)
        xavier(self.map0)
        xavier(self.map1)
        if self.labels is not None:
            bound = math.sqrt(6 * num_classes / (num_classes + channels))
            nn.init.uniform_(self.labels.weight, -bound, bound)
            nn.init.zeros_(self.labels.weight.data[num_classes])
        if self.time.augment is not None:
            xavier(self.time.augment)

    def forward(self, c_noise: Tensor, y: Tensor | None, augment: Tensor | None = None) -> Tensor:
        with torch.autocast(c_noise.device.type, enabled=False):
            e = self.time(c_noise, augment).to(self.map0.weight.dtype)  # (B, channels)
            if self.labels is not None:
                e = e + self.labels(y, len(c_noise))  # (B, channels)
            return F.silu(self.map1(F.silu(self.map0(e))))  # (B, out_width)


class ADMConditioning(nn.Module):
    """ADM's conditioning vector from time, label and augmentation.

    `e = silu(W₁ silu(W₀ TimeInput(c_noise, augment)) + table[y])`, with the positional embedding in DiT's order. The
    table starts as N(0, 1) with null row 0, the augmentation kernel at 0.

    Shapes: c_noise (B,), y (B,) or None, augment (B, augment_dim) or None to (B, out_width).
    Source: Diffusion Models Beat GANs on Image Synthesis (arXiv 2105.05233), initialised as in EDM (arXiv 2206.00364).
    """

    def __init__(
        self, width: int, out_width: int, num_classes: int, *, fourier_scale: float = 0.0, augment_dim: int = 0
    ) -> None:
        super().__init__()
        self.time = TimeInput(width, dit_embedding, fourier_scale, augment_dim)
        self.labels = LabelTable(num_classes, out_width) if num_classes else None
        self.map0 = nn.Linear(self.time.channels, out_width)
        self.map1 = nn.Linear(out_width, out_width)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight)
            nn.init.zeros_(self.labels.weight.data[num_classes])
        if self.time.augment is not None:
            zeros(self.time.augment)

    def forward(self, c_noise: Tensor, y: Tensor | None, augment: Tensor | None = None) -> Tensor:
        with torch.autocast(c_noise.device.type, enabled=False):
            e = self.time(c_noise, augment).to(self.map0.weight.dtype)  # (B, channels)
            e = self.map1(F.silu(self.map0(e)))  # (B, out_width)
            if self.labels is not None:
                e = e + self.labels(y, len(c_noise))  # (B, out_width)
            return F.silu(e)  # (B, out_width)


class DiTConditioning(nn.Module):
    """DiT's conditioning vector from time and label, after the SiLU that all its readers share.

    `e = silu(W₁ silu(W₀ dit_embedding(c_noise)) + table[y])`, 256 sinusoidal channels, all weights
    and the table drawn from N(0, 0.02²).

    Shapes: c_noise (B,), y (B,) or None to (B, width).
    Source: Scalable Diffusion Models with Transformers (arXiv 2212.09748), section 3.2.
    """

    channels = 256

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.labels = LabelTable(num_classes, width) if num_classes else None
        self.map0 = nn.Linear(self.channels, width)
        self.map1 = nn.Linear(width, width)
        for linear in (self.map0, self.map1):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.02)

    def forward(self, c_noise: Tensor, y: Tensor | None) -> Tensor:
        with torch.autocast(c_noise.device.type, enabled=False):
            e = dit_embedding(c_noise, self.channels).to(self.map0.weight.dtype)  # (B, 256)
            e = self.map1(F.silu(self.map0(e)))  # (B, width)
            if self.labels is not None:
                e = e + self.labels(y, len(c_noise))  # (B, width)
            return F.silu(e)  # (B, width)
