"""CLIP's image encoders, by torch-fidelity's modules, with weights that are read without running their code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from genflow.evaluation.features import FeatureNetwork, Outputs, sha256
from genflow.evaluation.networks.images import in_bytes, resize_like_tensorflow1, standardise, to_rgb
from genflow.evaluation.networks.numerics import dtype_name, full_precision
from genflow.evaluation.networks.parts import in_parts
from genflow.evaluation.networks.weights import find_weights, not_the_weights, read_state
from genflow.evaluation.protocol import NetworkIdentity

_MEAN = in_bytes((0.48145466, 0.4578275, 0.40821073))
_STD = in_bytes((0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Encoder:
    """Sizes of an image encoder: vector, image, channels, blocks (of each stage, of a ResNet), patch (ViT only)."""

    dims: int
    size: int
    width: int
    blocks: tuple[int, ...]
    patch: int | None = None


ENCODERS = {
    "clip-rn50": Encoder(1024, 224, 64, (3, 4, 6, 3)),
    "clip-rn101": Encoder(512, 224, 64, (3, 4, 23, 3)),
    "clip-rn50x4": Encoder(640, 288, 80, (4, 6, 10, 6)),
    "clip-rn50x16": Encoder(768, 384, 96, (6, 8, 18, 8)),
    "clip-rn50x64": Encoder(1024, 448, 128, (3, 15, 36, 10)),
    "clip-vit-b-32": Encoder(512, 224, 768, (12,), 32),
    "clip-vit-b-16": Encoder(512, 224, 768, (12,), 16),
    "clip-vit-l-14": Encoder(768, 224, 1024, (24,), 14),
    "clip-vit-l-14-336px": Encoder(768, 336, 1024, (24,), 14),
}


@final
class ClipFeatures(FeatureNetwork):
    """The image embedding of CLIP ("Learning Transferable Visual Models", arXiv 2103.00020), D = 512 to 1024.

    The numbers are torch-fidelity's: images are resized to the encoder's size as TensorFlow 1 did, not cropped, and
    standardised by CLIP's mean and deviation; the embedding is not normalised. "The Role of ImageNet Classes in Fréchet
    Inception Distance" (arXiv 2203.06026) measured in such features.

    Args:
        name: one of ``ENCODERS``.
        weights: OpenAI's ``.pt`` file, a TorchScript program whose tensors alone are read; or a state dict of its names
            (``visual.*`` is enough) as ``.safetensors`` or ``.pt``. Default: the file in torch's hub cache, downloaded
            on first use.
        device: where to compute.
        dtype: float32, or bfloat16 for the encoder's weights and arithmetic.

    Raises:
        ValueError: another dtype.
        RuntimeError: torch-fidelity is missing; or the weights cannot be found, downloaded or used.
    """

    def __init__(
        self,
        name: str,
        weights: Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        try:
            from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS
        except ImportError as error:
            raise RuntimeError(f"{name} features need torch-fidelity: run  pip install torch-fidelity") from error
        digest = MODEL_METADATA[name]["hash"]
        path = find_weights(weights, name, f"{name}-{digest}.pt", MODEL_URLS[name], digest)
        encoder = ENCODERS[name]
        self.identity = NetworkIdentity(
            name=name,
            weights=sha256(path),
            resize=f"bilinear {encoder.size}x{encoder.size} (TensorFlow 1)",
            quantisation="uint8",
            dtype=dtype_name(dtype),
            dims=encoder.dims,
        )
        self.device = torch.device(device)
        self._dtype = dtype
        self._size = encoder.size
        state = read_state(path)
        found = sizes(state)
        if found != encoder:
            raise not_the_weights(path, name, f"it needs {encoder}, and this is {found or 'no CLIP image encoder'}")
        try:
            self._network = visual(state, encoder).to(self.device, dtype)
        except RuntimeError as error:
            raise not_the_weights(path, name, error) from error

    def outputs(self, images: Tensor) -> Outputs:
        return in_parts(self._compute, to_rgb(images, self.name, self.device), self.device)

    def _compute(self, rgb: Tensor) -> Outputs:
        with full_precision(self.device):
            x = standardise(resize_like_tensorflow1(rgb, self._size), _MEAN, _STD)
            return Outputs(self._network(x.to(self._dtype)).to(torch.float32))


def visual(state: Mapping[str, Tensor], encoder: Encoder) -> nn.Module:
    """Return torch-fidelity's image encoder of these sizes, float32, with the tensors ``visual.*`` of a state dict.

    Raises:
        RuntimeError: tensors are missing or of other shapes, or there are ones that the encoder has not.
    """
    from torch_fidelity.feature_extractor_clip import CLIPVisual

    layers = encoder.blocks if encoder.patch is None else encoder.blocks[0]
    with torch.device("meta"):  # no time and no random numbers for initial weights, which are all replaced
        # a patch size means a transformer, none a ResNet
        network = CLIPVisual(encoder.dims, encoder.size, layers, encoder.width, encoder.patch)  # pyright: ignore[reportArgumentType]
    kept = {name: value.clone() for name, value in state.items() if name.startswith("visual.")}
    network.load_state_dict(kept, assign=True)
    return network.visual.to(torch.float32).eval().requires_grad_(False)


def sizes(state: Mapping[str, Tensor]) -> Encoder | None:
    """Return the sizes of a CLIP state dict's image encoder, or None if it is not one."""
    try:
        if "visual.proj" in state:
            width, _, patch, _ = state["visual.conv1.weight"].shape
            side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
            blocks = (_count(state, "visual.transformer.resblocks."),)
            return Encoder(state["visual.proj"].shape[1], side * patch, width, blocks, patch)
        side = round((len(state["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
        stages = tuple(_count(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        dims, width = len(state["visual.attnpool.c_proj.weight"]), len(state["visual.layer1.0.conv1.weight"])
        return Encoder(dims, side * 32, width, stages)
    except (KeyError, ValueError, IndexError, TypeError):
        return None


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
