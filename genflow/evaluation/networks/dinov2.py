"""DINOv2's vision transformers, which load the published weights and need no code from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.evaluation.features import FeatureNetwork, Outputs, sha256
from genflow.evaluation.networks.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    resize_like_tensorflow1,
    standardise,
    to_rgb,
)
from genflow.evaluation.networks.numerics import dtype_name, full_precision
from genflow.evaluation.networks.parts import in_parts
from genflow.evaluation.networks.weights import find_weights, not_the_weights, read_state
from genflow.evaluation.protocol import NetworkIdentity

PATCH = 14
SIZE = 224
_TRAINED_SIDE = 518 // PATCH  # patches along an image's side when the table of positions was trained last
_URL = "https://dl.fbaipublicfiles.com/dinov2"


@dataclass(frozen=True)
class Transformer:
    """Sizes of a vision transformer: channels, blocks, attention heads, and the kind of its feed-forward layers."""

    width: int
    depth: int
    heads: int
    feed_forward: Literal["mlp", "swiglu"] = "mlp"


TRANSFORMERS = {
    "dinov2-vit-s-14": Transformer(384, 12, 6),
    "dinov2-vit-b-14": Transformer(768, 12, 12),
    "dinov2-vit-l-14": Transformer(1024, 24, 16),
    "dinov2-vit-g-14": Transformer(1536, 40, 24, "swiglu"),
}


@final
class DinoFeatures(FeatureNetwork):
    """The class token of DINOv2 ("Learning Robust Visual Features without Supervision", arXiv 2304.07193), D = width.

    FD-DINOv2, which "Exposing flaws of generative model evaluation metrics" (arXiv 2306.04675) recommends in place of
    FID, is measured in those of ViT-L/14. The numbers here are torch-fidelity's: images are resized to 224x224 as
    TensorFlow 1 did, bilinearly without antialiasing, and standardised by ImageNet's mean and deviation. EDM2
    ("Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696) resizes bicubically with
    antialiasing instead and does not round the result to bytes; the first paper's own code resizes by Pillow, likewise
    bicubically, which rounds. Their FD-DINOv2 are those of another protocol, the more so the further images are from
    224x224.

    Args:
        name: one of ``TRANSFORMERS``.
        weights: the published state dict, ``dinov2_vitl14_pretrain.pth`` and the like (not those with registers), or
            the same tensors as ``.safetensors``. Default: the file in torch's hub cache, downloaded on first use.
        device: where to compute.
        dtype: float32, or bfloat16 for the transformer's weights and arithmetic.

    Raises:
        ValueError: another dtype.
        RuntimeError: the weights cannot be found, downloaded or used.
    """

    def __init__(
        self,
        name: str,
        weights: Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        sizes = TRANSFORMERS[name]
        published = f"dinov2_vit{name.split('-')[2]}14"
        file = f"{published}_pretrain.pth"
        path = find_weights(weights, name, file, f"{_URL}/{published}/{file}")
        self.identity = NetworkIdentity(
            name=name,
            weights=sha256(path),
            resize=f"bilinear {SIZE}x{SIZE} (TensorFlow 1)",
            quantisation="uint8",
            dtype=dtype_name(dtype),
            dims=sizes.width,
        )
        self.device = torch.device(device)
        self._dtype = dtype
        with torch.device("meta"):  # no time for initial weights, which are all replaced
            network = VisionTransformer(sizes)
        try:
            network.load_state_dict(read_state(path), assign=True)
        except RuntimeError as error:
            if "Error(s) in loading" not in str(error):
                raise
            raise not_the_weights(path, f"{name} ({file})", error) from error
        self._network = network.for_size(SIZE).to(self.device, dtype)

    def outputs(self, images: Tensor) -> Outputs:
        return in_parts(self._compute, to_rgb(images, self.name, self.device), self.device)

    def _compute(self, rgb: Tensor) -> Outputs:
        with full_precision(self.device):
            x = standardise(resize_like_tensorflow1(rgb, SIZE), IMAGENET_MEAN, IMAGENET_STD)
            return Outputs(self._network(x.to(self._dtype)).to(torch.float32))


class VisionTransformer(nn.Module):
    """A pre-norm transformer over 14 x 14 patches, with a class token and LayerScale (arXiv 2010.11929, 2103.17239).

    ``forward`` maps x (B, 3, H, W), standardised, to the normalised class token (B, width); H = W is what ``for_size``
    was told. Tensors are named as in the published files.
    """

    def __init__(self, sizes: Transformer) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _TRAINED_SIDE**2, sizes.width))
        self.mask_token = nn.Parameter(torch.zeros(1, sizes.width))  # of training; in the files, but not used here
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, sizes.width, PATCH, PATCH)})
        self.blocks = nn.Sequential(*(_Block(sizes) for _ in range(sizes.depth)))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def for_size(self, size: int) -> VisionTransformer:
        """Fit the table of positions, once and for all, to images of size x size; return the frozen network."""
        positions = interpolate_positions(self.pos_embed.detach().to(torch.float32), size // PATCH)
        self.pos_embed = nn.Parameter(positions)
        return self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)  # (B, N, width)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(tokens)[:, 0])


def interpolate_positions(table: Tensor, side: int) -> Tensor:
    """Resample a table of positions (1, 1 + M^2, D) float32, bicubically, for side x side patches: (1, 1 + side^2, D).

    As published, the scale is (side + 0.1) / M rather than side / M: the weights were evaluated so.
    """
    old = round((table.shape[1] - 1) ** 0.5)
    if old == side:
        return table
    grid = table[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / old
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class _Block(nn.Module):
    def __init__(self, sizes: Transformer) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attn = _Attention(sizes.width, sizes.heads)
        self.ls1 = _Scale(sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = _Mlp(sizes.width) if sizes.feed_forward == "mlp" else _SwiGLU(sizes.width)
        self.ls2 = _Scale(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, width / heads)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Scale(nn.Module):
    """LayerScale: a learned factor for each channel of what a layer adds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _SwiGLU(nn.Module):
    """The gated layer of the largest one: w3(silu(a) b), (a, b) = w12(x); 2/3 as wide, in multiples of 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = (4 * width * 2 // 3 + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)
