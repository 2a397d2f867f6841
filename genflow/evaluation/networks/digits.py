"""The packaged networks of the embedded digits: one that judges, and another that losses may use.

They are small classifiers (made by ``assets/train_features.py`` from the training splits alone). The second one is of
another architecture and seed, so that no model is trained against the network that judges it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeVar, final

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from genflow.assets import asset
from genflow.evaluation.features import FeatureNetwork, Outputs, sha256
from genflow.evaluation.networks.numerics import full_precision
from genflow.evaluation.protocol import NetworkIdentity
from genflow.pixels import to_unit

DigitName = Literal["digits", "mnist5k"]

_Network = TypeVar("_Network", bound=nn.Module)


class PlainNet(nn.Module):
    """The small network that judges: pairs of 3x3 convolutions, a 64-vector, ten classes.

    ``forward`` maps x (B, 1, H, W) in [-1, 1] to features (B, 64) and logits (B, 10). They were
    trained to tell the digit, to redraw the image and to tell how noisy and blurred it is: features
    of a mere classifier collapse to one point a class, and a Fréchet distance on them sees hardly
    more than class frequencies. They are multiplied by ``balance`` = c C^-1/4, with C their
    covariance on the training split and c such that their variance there is one on average: half
    way to whitening, so that the distance is not that of the few strongest directions alone.

    Args:
        size: height and width; 8 gives two stages, 28 three.
    """

    balance: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        stages = [(1, 32), (32, 64)] if size <= 8 else [(1, 16), (16, 32), (32, 64)]
        layers: list[nn.Module] = []
        for given, made in stages:
            layers += [nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
            layers += [nn.Conv2d(made, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        last = size // 2 ** len(stages)
        self.body = nn.Sequential(*layers)
        self.embed = nn.Linear(64 * last * last, 64)
        self.classify = nn.Linear(64, 10)
        self.register_buffer("balance", torch.eye(64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vector = self.embed(self.body(x).flatten(1))  # (B, 64)
        return vector @ self.balance, self.classify(vector)


class LossNetwork(nn.Module):
    """The small network for losses: strided convolutions and residual blocks, smooth throughout.

    ``maps`` gives the feature maps that a perceptual distance compares, differentiable in x;
    ``forward`` the logits (B, 10), used to train it. Both take x (B, 1, H, W) in [-1, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(given, made, 3, stride, padding=1), _Residual(made))
            for given, made, stride in [(1, 16, 1), (16, 32, 2), (32, 56, 2)]
        )
        self.classify = nn.Linear(56, 10)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, 16, H, W), (B, 32, H/2, W/2) and (B, 56, H/4, W/4)."""
        found: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return tuple(found)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.maps(x)[-1].mean(dim=(2, 3)))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@final
class DigitFeatures(FeatureNetwork):
    """The packaged classifier of ``digits`` (8x8) or ``mnist5k`` (28x28), D = 64, with ten logits.

    Args:
        name: which data set it was trained on.
        side: of the images to come; 0 is that of the data set. Others are resized to it, bicubically.
        device: where to compute.

    Raises:
        ValueError: another name.
    """

    def __init__(self, name: DigitName, *, side: int = 0, device: torch.device | str = "cpu") -> None:
        if name not in ("digits", "mnist5k"):
            raise ValueError(f"no packaged classifier for {name!r}: it is digits or mnist5k")
        path = asset(f"features/{name}.safetensors")
        self.metadata = read_metadata(path)
        self._size = int(str(self.metadata["size"]))
        self._side = side or self._size
        resized = "none" if self._side == self._size else f"bicubic {self._side} to {self._size}"
        self.identity = NetworkIdentity(
            name=name, weights=sha256(path), resize=resized, quantisation="uint8", dtype="float32", dims=64
        )
        self.device = torch.device(device)
        self._network = _frozen(PlainNet(self._size), path).to(self.device)

    def outputs(self, images: Tensor) -> Outputs:
        expected = (1, self._side, self._side)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"the {self.name} network takes uint8 images (B, {expected[0]}, {expected[1]}, "
                f"{expected[2]}), got {images.dtype} {tuple(images.shape)}; for other images use "
                "the inception features"
            )
        with full_precision(self.device):
            vectors, logits = self._network(self._resized(to_unit(images.to(self.device))))
        return Outputs(vectors, logits=logits)

    def _resized(self, x: Tensor) -> Tensor:
        if self._side == self._size:
            return x
        size = (self._size, self._size)
        return F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)

    def logits(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the ten digits: (B, 1, H, W) uint8 to (B, 10).

        Raises:
            ValueError: as ``outputs``.
        """
        logits = self.outputs(images).logits
        assert logits is not None
        return logits


def load_loss_network(name: DigitName, device: torch.device | str = "cpu") -> LossNetwork:
    """The frozen network that a perceptual loss on ``digits`` or ``mnist5k`` may use.

    Args:
        name: which data set.
        device: where to compute.

    Raises:
        ValueError: another name.
    """
    if name not in ("digits", "mnist5k"):
        raise ValueError(f"no packaged loss network for {name!r}: it is digits or mnist5k")
    path = asset(f"features/{name}-loss.safetensors")
    return _frozen(LossNetwork(), path).to(device)


def read_metadata(path: Path) -> dict[str, object]:
    """How a packaged network was made: architecture, seed, steps, held-out accuracy, versions."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["genflow"])


def _frozen(network: _Network, path: Path) -> _Network:
    stored = load_file(path)  # float16
    network.load_state_dict({key: value.to(torch.float32) for key, value in stored.items()})
    return network.eval().requires_grad_(False)
