"""The images themselves as features: the simplest distance there is, and a check of the machinery."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from genflow.evaluation.features import FeatureNetwork, Outputs
from genflow.evaluation.networks.numerics import full_precision
from genflow.evaluation.protocol import NetworkIdentity

MOST = 4096  # a covariance of more is slow, and singular with fewer images


@final
class PixelFeatures(FeatureNetwork):
    """Pixels as vectors: x / 255, D = C H W, channel after channel, row after row.

    Args:
        image_shape: channels, height and width of every image.
        device: where to compute.

    Raises:
        ValueError: the shape is not three positive numbers, or D > 4096.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, device: torch.device | str = "cpu") -> None:
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(f"image_shape is (channels, height, width), got {image_shape}")
        self._shape = tuple(image_shape)
        dims = math.prod(self._shape)
        if dims > MOST:
            raise ValueError(
                f"images of shape {self._shape} have {dims} pixels; as features at most {MOST} are allowed, such as"
                " (3, 32, 32): use inception, or resize the images"
            )
        self.identity = NetworkIdentity(
            name="pixels", weights="", resize="none", quantisation="uint8", dtype="float32", dims=dims
        )
        self.device = torch.device(device)

    def outputs(self, images: Tensor) -> Outputs:
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != self._shape:
            c, h, w = self._shape
            raise ValueError(
                f"these pixel features take uint8 images (B, {c}, {h}, {w}), got {images.dtype} {tuple(images.shape)}:"
                " bring all images to one shape first"
            )
        with full_precision(self.device):
            return Outputs(images.to(self.device).flatten(1).to(torch.float32) / 255)
