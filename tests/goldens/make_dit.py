"""Make the goldens of test_dit.py: what the published DiT computes with the weights of `fill`.

    git clone https://github.com/facebookresearch/DiT
    PYTHONPATH=tests python tests/goldens/make_dit.py --dit DiT     # needs timm

Each golden is a network that the authors did not train: NAME.json has its configuration, its number of heads, and the
names and shapes of its tensors; NAME.npz has images x, steps t, labels y and the published outputs. The weights are
`fill(shapes)` but for the table of positions, which the network makes itself. All is computed in double precision: in
single, the authors' frequencies alone turn the phase of step 999 by 6e-5, differently on each kind of processor.
"""

import argparse
import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from goldens.weights import fill

FOLDER = Path(__file__).parent / "dit"
CASES = {
    "latents": {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 3, "num_heads": 3,
                "num_classes": 5, "learn_sigma": True},
    "pixels": {"input_size": 6, "patch_size": 1, "in_channels": 1, "hidden_size": 32, "depth": 2, "num_heads": 4,
               "num_classes": 3, "learn_sigma": False, "mlp_ratio": 2.7},
    "coarse": {"input_size": 12, "patch_size": 4, "in_channels": 3, "hidden_size": 40, "depth": 2, "num_heads": 2,
               "num_classes": 2, "learn_sigma": True, "mlp_ratio": 3.0},
    "unconditional": {"input_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 24, "depth": 2, "num_heads": 2,
                      "num_classes": 1, "class_dropout_prob": 0.0, "learn_sigma": False},
}  # fmt: skip


def make(name: str, configuration: dict, network_class: type) -> None:
    network = network_class(**configuration).eval()
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    weights = fill(shapes) | {"pos_embed": network.pos_embed.detach().clone()}
    network.load_state_dict(weights)
    rows = network.y_embedder.embedding_table.num_embeddings
    y = torch.arange(2 * rows) % rows
    t = torch.linspace(0, 999, len(y)).round()
    side, channels = configuration["input_size"], configuration["in_channels"]
    x = fill({"x": (channels * side**2, len(y))})["x"].T.reshape(len(y), channels, side, side)
    x = x * (2 / x.std())
    network.double()
    with (
        torch.no_grad(),
        patch.object(torch, "float32", torch.float64),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        out = network(x.double(), t.double(), y)
    out = out.to(torch.float32)
    FOLDER.mkdir(exist_ok=True)
    text = {"configuration": configuration, "heads": configuration["num_heads"], "shapes": shapes}
    (FOLDER / f"{name}.json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(FOLDER / f"{name}.npz", x=x.numpy(), t=t.numpy(), y=y.numpy(), out=out.numpy())
    print(f"{name}: outputs {tuple(out.shape)} of standard deviation {out.std():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dit", required=True, type=Path, help="a checkout of facebookresearch/DiT")
    sys.path.insert(0, str(parser.parse_args().dit))
    from models import DiT  # the published network

    for name, configuration in CASES.items():
        make(name, configuration, DiT)


if __name__ == "__main__":
    main()
