"""genflow trains and samples image generators that need one, two or many network calls.

Names are loaded when first used (PEP 562), so that ``import genflow`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin as ModelMixin

    from genflow.assets import asset as asset
    from genflow.denoiser import Denoiser as Denoiser
    from genflow.nn.dit import DiT as DiT
    from genflow.nn.unet import UNet as UNet
    from genflow.pictures import grid as grid
    from genflow.pictures import write_image as write_image
    from genflow.pipeline import GenflowPipeline as GenflowPipeline
    from genflow.sampling.generate import generate as generate
    from genflow.sampling.inversion import decode as decode
    from genflow.sampling.inversion import invert as invert
    from genflow.sampling.inversion import slerp as slerp
    from genflow.sampling.inversion import translate as translate

_HOME = {
    "Denoiser": "genflow.denoiser",
    "GenflowPipeline": "genflow.pipeline",
    "UNet": "genflow.nn.unet",
    "DiT": "genflow.nn.dit",
    "generate": "genflow.sampling.generate",
    "invert": "genflow.sampling.inversion",
    "decode": "genflow.sampling.inversion",
    "translate": "genflow.sampling.inversion",
    "slerp": "genflow.sampling.inversion",
    "asset": "genflow.assets",
    "grid": "genflow.pictures",
    "write_image": "genflow.pictures",
    # diffusers looks for the base class of a saved part in the module that the folder names, which is this one
    "ModelMixin": "diffusers.models.modeling_utils",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'genflow' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
