"""Make the goldens of test_dinov2.py: what the published DINOv2 computes with the weights of `fill`.

    git clone https://github.com/facebookresearch/dinov2
    PYTHONPATH=tests python tests/goldens/make_dinov2.py --dinov2 dinov2

Each NAME.json has the configuration of a small network that the authors did not train, and the names and shapes of its
tensors; NAME.npz has its class token `out` and its table of `positions`, both for images of 224 x 224 while the network
is built for 518 x 518. The weights are `fill(shapes)`, but for `pos_embed`, which is multiplied by `positions_scale`
lest it be too small to matter; the images are `5 * fill({"images": (count,)})["images"]` in the shape `images`.
real.json says how many parameters the four real networks have, and the sha256 of the lines "name shape" of their
tensors, sorted.
"""

import argparse
import hashlib
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from goldens.weights import fill

FOLDER = Path(__file__).parent / "dinov2"
IMAGES = (2, 3, 224, 224)
POSITIONS_SCALE = 128.0
TRAINED = {"img_size": 518, "patch_size": 14, "init_values": 1.0, "block_chunks": 0}  # as in dinov2/hub/backbones.py
CASES = {
    "mlp": {"embed_dim": 48, "depth": 2, "num_heads": 3, "ffn_layer": "mlp"},
    "swiglu": {"embed_dim": 40, "depth": 2, "num_heads": 2, "ffn_layer": "swiglufused"},  # hidden width is rounded
}
REAL = {
    "dinov2-vit-s-14": ("vit_small", "mlp"),
    "dinov2-vit-b-14": ("vit_base", "mlp"),
    "dinov2-vit-l-14": ("vit_large", "mlp"),
    "dinov2-vit-g-14": ("vit_giant2", "swiglufused"),
}


def make(name: str, configuration: dict, network_class: type) -> None:
    network = network_class(**TRAINED, **configuration).eval()
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    weights = fill(shapes)
    weights["pos_embed"] *= POSITIONS_SCALE
    network.load_state_dict(weights)
    x = 5 * fill({"images": (math.prod(IMAGES),)})["images"].reshape(IMAGES)
    with torch.no_grad():
        out = network.forward_features(x)["x_norm_clstoken"]
        positions = network.interpolate_pos_encoding(torch.zeros(1, 1 + 16 * 16, out.shape[1]), 224, 224)
    text = {"configuration": configuration, "images": IMAGES, "positions_scale": POSITIONS_SCALE, "shapes": shapes}
    (FOLDER / f"{name}.json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(FOLDER / f"{name}.npz", out=out.numpy(), positions=positions.numpy())
    print(f"{name}: outputs {tuple(out.shape)} of standard deviation {out.std():.2f}, positions {positions.std():.2f}")


def about(network: torch.nn.Module) -> dict:
    lines = sorted(f"{name} {list(value.shape)}" for name, value in network.state_dict().items())
    return {
        "parameters": sum(value.numel() for value in network.parameters()),
        "tensors": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dinov2", required=True, type=Path, help="a checkout of facebookresearch/dinov2")
    sys.path.insert(0, str(parser.parse_args().dinov2))
    warnings.filterwarnings("ignore", "xFormers")
    from dinov2.models import vision_transformer  # the published network

    FOLDER.mkdir(exist_ok=True)
    for name, configuration in CASES.items():
        make(name, configuration, vision_transformer.DinoVisionTransformer)
    real = {}
    for name, (function, ffn_layer) in REAL.items():
        with torch.device("meta"):
            real[name] = about(getattr(vision_transformer, function)(**TRAINED, ffn_layer=ffn_layer))
        print(name, real[name])
    (FOLDER / "real.json").write_text(json.dumps(real, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
