"""Perceptual distances: how different two images look to a frozen network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_SQUARE = 1e-12  # of a feature vector that still has a direction
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, for images in [-1, 1]


class MapNetwork(Protocol):
    """A frozen network that gives feature maps (B, C, H, W) at several depths; any ``nn.Module`` with ``maps``."""

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of images (B, C, H, W) in [-1, 1], from the first stage to the last."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move to a device."""
        ...


@final
class FeatureDistance:
    """Sum over stages of the mean over space of ``sum_c w_c (u_c - u'_c)^2``, u the maps at unit length over channels.

    Called with two batches of images (B, C, H, W) in [-1, 1], it returns (B,) float32; differentiable in both. It is
    computed in float32 under autocast too, on the device of the images, and is no part of a model's state. A place
    whose features are all 0 has no direction and gives no gradient, where a bare square root gives NaN.
    Source: "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924, eq. 1.

    Args:
        network: gives the maps.
        weights: one non-negative (C,) per stage; by default all 1.
    """

    def __init__(self, network: MapNetwork, weights: Sequence[Tensor] | None = None) -> None:
        self._network = network
        self._weights = None if weights is None else [w.view(-1, 1, 1) for w in weights]
        self._device: torch.device | None = None

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        if first.device != self._device:
            self._network.to(first.device)
            self._weights = None if self._weights is None else [w.to(first.device) for w in self._weights]
            self._device = first.device
        with torch.autocast(first.device.type, enabled=False):
            pairs = zip(self._network.maps(first.float()), self._network.maps(second.float()), strict=True)
            total = torch.zeros(len(first), device=first.device)
            for stage, (a, b) in enumerate(pairs):
                squared = (_unit(a) - _unit(b)).square()
                weighted = squared if self._weights is None else self._weights[stage] * squared
                total = total + weighted.sum(dim=1).mean(dim=(1, 2))
            return total


def _unit(features: Tensor) -> Tensor:
    """Scale features (B, C, H, W) to unit length over channels."""
    return features / features.square().sum(dim=1, keepdim=True).clamp(min=_LEAST_SQUARE).sqrt()


def vgg_distance(trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> FeatureDistance:
    """Return LPIPS of VGG-16 as consistency models and 2-RF++ use it, on images of any size with 1 or 3 channels.

    Images are enlarged bilinearly to 224x224 (corners not aligned, no antialiasing), grey is repeated, 2x2 average
    pooling takes the place of maximum pooling; the stages are relu1_2, 2_2, 3_3, 4_3 and 5_3.

    Args:
        trunk: torchvision's VGG-16, of which ``features.N.weight`` and ``features.N.bias`` are used.
        heads: the weights of lpips' v0.1, ``linK.model.1.weight``.

    Sources: arXiv 1801.03924; "Consistency Models", arXiv 2303.01469, appendix C; "Improving the Training of Rectified
    Flows", arXiv 2405.20320, section 4.2.

    Raises:
        ValueError: naming a weight that is missing or of another shape.
    """
    network = _VGG(trunk)
    weights: list[Tensor] = []
    for stage, channels in enumerate((64, 128, 256, 512, 512)):
        name = f"lin{stage}.model.1.weight"
        if name not in heads or heads[name].numel() != channels:
            raise ValueError(f"the heads of LPIPS lack {name} with {channels} values")
        weights.append(heads[name].detach().float().flatten())
    return FeatureDistance(network, weights)


@final
class _VGG(nn.Module):
    """VGG-16's convolutions as lpips cuts them into five stages, with average pooling."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_stages())
        given = {name: _find(trunk, name, value) for name, value in self.stages.state_dict().items()}
        self.stages.load_state_dict(given, assign=True)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False, antialias=False)
        x = (x - self.mean) / self.std  # (B, 3, 224, 224), grey repeated
        found: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return tuple(found)


def _stages() -> list[nn.Sequential]:
    """Return lpips' five stages without weights."""
    from lpips.pretrained_networks import vgg16

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # of torchvision, about the way lpips calls it
        net: Any = vgg16(pretrained=False)
    stages = [net.slice1, net.slice2, net.slice3, net.slice4, net.slice5]
    for stage in stages:
        for name, layer in stage.named_children():
            if isinstance(layer, nn.MaxPool2d):
                setattr(stage, name, nn.AvgPool2d(2))
    return stages


def _find(trunk: Mapping[str, Tensor], name: str, expected: Tensor) -> Tensor:
    """Return a weight of torchvision's by its name here, STAGE.LAYER.weight, where torchvision has features.LAYER."""
    theirs = f"features.{name.split('.', 1)[1]}"
    if theirs not in trunk or trunk[theirs].shape != expected.shape:
        found = f"has shape {tuple(trunk[theirs].shape)}" if theirs in trunk else "is missing"
        raise ValueError(f"these are not the weights of VGG-16: {theirs} {found}, not {tuple(expected.shape)}")
    return trunk[theirs].detach().float()
