"""The Inception network of the usual FID, sFID and Inception score, in one pass and about twice as fast."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from genflow.evaluation.features import FeatureNetwork, Outputs, sha256
from genflow.evaluation.networks.images import resize_like_tensorflow1, standardise, to_rgb
from genflow.evaluation.networks.numerics import dtype_name, full_precision
from genflow.evaluation.networks.parts import in_parts
from genflow.evaluation.networks.weights import find_weights, not_the_weights, read_state, written_here
from genflow.evaluation.protocol import NetworkIdentity

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"

_TO_MIXED_6 = (
    "Conv2d_1a_3x3",
    "Conv2d_2a_3x3",
    "Conv2d_2b_3x3",
    "MaxPool_1",
    "Conv2d_3b_1x1",
    "Conv2d_4a_3x3",
    "MaxPool_2",
    "Mixed_5b",
    "Mixed_5c",
    "Mixed_5d",
    "Mixed_6a",
    "Mixed_6b",
    "Mixed_6c",
    "Mixed_6d",
)
_TO_POOL_3 = ("Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c")


@final
class InceptionFeatures(FeatureNetwork):
    """TensorFlow's Inception-v3 of 2015, by torch-fidelity's port and weights, D = 2048.

    - ``vectors`` (B, 2048): pool_3, the features of "GANs Trained by a Two Time-Scale Update Rule Converge to a Local
      Nash Equilibrium" (arXiv 1706.08500).
    - ``spatial`` (B, 2023): the first 7 of the 192 channels of TensorFlow's ``mixed_6/conv``, which is the 1x1 branch
      of the port's Mixed_6d after its ReLU, 17 x 17 each, flattened row, column, channel: those of sFID ("Generating
      Images with Sparse Representations", arXiv 2103.03841) as ADM's evaluator takes them (``spatial[..., :7]`` of a
      tensor with channels last, then reshaped).
    - ``logits`` (B, 1008): the last layer without its bias, as the Inception score is usually computed ("Improved
      Techniques for Training GANs", arXiv 1606.03498, and ADM's evaluator).

    Images are resized to 299x299 as TensorFlow 1 did, then (x - 128) / 128. Features differ from torch-fidelity's by
    rounding only: each batch norm, a fixed scale and shift, is multiplied into the convolution before it. On a CPU the
    numbers lie channels last, which its convolutions prefer, and eight images pass at a time.

    Args:
        weights: a ``.pth`` (read without running pickled code) or ``.safetensors`` file. Default: torch-fidelity's file
            in torch's hub cache, downloaded on first use.
        device: where to compute.
        dtype: float32, or bfloat16, in which convolutions are several times faster and features have three digits;
            images are prepared, averaged and classified in float32 even so.

    Raises:
        ValueError: another dtype.
        RuntimeError: torch-fidelity is missing; or the weights cannot be found, downloaded or used.
    """

    def __init__(
        self,
        weights: Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        except ImportError as error:
            raise RuntimeError("inception features need torch-fidelity: run  pip install torch-fidelity") from error
        path = find_weights(weights, "Inception", INCEPTION_FILE, URL_INCEPTION_V3, "6726825d")
        self.identity = NetworkIdentity(
            name="inception",
            weights=sha256(path),
            resize="bilinear 299x299 (TensorFlow 1)",
            quantisation="uint8",
            dtype=dtype_name(dtype),
            dims=2048,
        )
        self.device = torch.device(device)
        self._dtype = dtype
        # without tensor cores, cuDNN likes channels first
        last = self.device.type == "cpu" or dtype == torch.bfloat16
        self._layout = torch.channels_last if last else torch.contiguous_format
        network = _folded(path)
        self._classify = network.get_parameter("fc.weight").to(self.device, copy=True)
        self._to_mixed_6, self._to_pool_3 = (
            nn.Sequential(*(network.get_submodule(name) for name in names))
            .to(self.device, dtype)
            .to(memory_format=self._layout)
            for names in (_TO_MIXED_6, _TO_POOL_3)
        )

    def outputs(self, images: Tensor) -> Outputs:
        return in_parts(self._compute, to_rgb(images, self.name, self.device), self.device)

    def _compute(self, rgb: Tensor) -> Outputs:
        with full_precision(self.device):
            x = standardise(resize_like_tensorflow1(rgb, 299), (128, 128, 128), (128, 128, 128))
            mixed = self._to_mixed_6(x.to(self._dtype).contiguous(memory_format=self._layout))  # (B, 768, 17, 17)
            last = self._to_pool_3(mixed)  # (B, 2048, 8, 8)
            vectors = last.to(torch.float32).mean(dim=(2, 3))
            # the block's output begins with that of its 1x1 branch
            spatial = mixed[:, :7].permute(0, 2, 3, 1).to(torch.float32).flatten(1)
            return Outputs(vectors, spatial=spatial, logits=vectors @ self._classify.T)


def _folded(path: Path) -> nn.Module:
    """Return torch-fidelity's network with the weights of a file, its batch norms folded into its convolutions."""
    from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

    trusted = written_here(read_state(path))
    try:
        with torch.random.fork_rng(devices=[]):  # its initial weights take no random numbers from who counts on them
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], trusted)
    except (RuntimeError, TypeError) as error:
        raise not_the_weights(path, f"torch-fidelity's Inception network ({INCEPTION_FILE})", error) from error
    for block in network.modules():
        if isinstance(block, BasicConv2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.register_module("bn", nn.Identity())
    return network
