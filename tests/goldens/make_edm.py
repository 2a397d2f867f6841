"""Makes tests/goldens/edm from the authors' code: what small networks of theirs give, and imported ones must give too.

    PYTHONPATH=tests python tests/goldens/make_edm.py --edm CHECKOUT --rfpp CHECKOUT

CHECKOUT is a clone of github.com/NVlabs/edm (commit 008a4e5) and of github.com/sangyun884/rfpp (commit f7b10a5). Their
code is run, not copied. No weights are stored: every tensor is a fixed function of its name and shape (`fill`), so that
a golden holds names and shapes (NAME.json), and inputs and outputs (NAME.npz), nothing more.
"""

import argparse
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from goldens.weights import fill

HERE = Path(__file__).resolve().parent / "edm"
SONG = {"model_type": "SongUNet", "dropout": 0.1}
NCSNPP = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
ADM = {"model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2], "channel_mult_emb": 2}
# Configurations that the authors did not use: only an import that reads everything from names and shapes gets them.
EDM = {
    "ddpmpp": SONG
    | {"img_resolution": 12, "img_channels": 1, "model_channels": 16, "channel_mult": [1, 3]}
    | {"num_blocks": 1, "attn_resolutions": [6], "channel_mult_emb": 2},
    "ddpmpp-labels": SONG
    | {"img_resolution": 24, "img_channels": 2, "model_channels": 16, "channel_mult": [1, 2, 1]}
    | {"num_blocks": 2, "attn_resolutions": [12, 6], "label_dim": 5, "augment_dim": 9},
    "ncsnpp": SONG
    | NCSNPP
    | {"img_resolution": 12, "img_channels": 3, "model_channels": 16, "channel_mult": [2, 1, 3]}
    | {"num_blocks": 1, "attn_resolutions": [6], "resample_filter": [1, 3, 3, 1], "augment_dim": 6},
    "ncsnpp-labels": SONG
    | NCSNPP
    | {"img_resolution": 20, "img_channels": 1, "model_channels": 32, "channel_mult": [1, 2], "label_dim": 3}
    | {"num_blocks": 2, "attn_resolutions": [], "resample_filter": [1, 5, 10, 10, 5, 1], "channel_mult_emb": 1},
    "adm": ADM | {"img_resolution": 12, "img_channels": 1, "num_blocks": 1, "attn_resolutions": [6], "label_dim": 4},
    "adm-heads": ADM
    | {"img_resolution": 8, "img_channels": 3, "num_blocks": 2, "attn_resolutions": [8, 4], "augment_dim": 5},
    "adm-faint": ADM | {"img_resolution": 8, "img_channels": 1, "num_blocks": 1, "attn_resolutions": [4]},
}
RFPP = {"rfpp-ncsnpp": "ncsnpp", "rfpp-adm": "adm"}  # the same networks, as velocities
FOURIER_SCALE = {"ncsnpp": 16.0, "ncsnpp-labels": 0.02, "rfpp-ncsnpp": 16.0}
HEAD_CHANNELS = {"adm-heads": 8}
FAINT = {"adm-faint": 0.003}  # what kernels before a norm are scaled by: variances near the norms' epsilon, 1e-5


def make_filter(weights: list[int]) -> torch.Tensor:
    """The buffer in which the authors keep a resampling filter."""
    f = torch.tensor(weights, dtype=torch.float32)
    return (torch.outer(f, f) / f.sum() ** 2)[None, None]


def make_tensors(golden: dict) -> dict[str, torch.Tensor]:
    """The state dict of a golden."""
    tensors = fill(golden["shapes"])
    for name in tensors:
        if name.endswith(".resample_filter"):
            tensors[name] = make_filter(golden["network"].get("resample_filter", [1, 1]))
        if name.endswith(".freqs"):
            tensors[name] *= golden["fourier_scale"] / 0.2  # `fill` takes them for biases
        if re.search(r"(x\d+_conv|conv0|conv1|proj)\.(weight|bias)$", name):
            tensors[name] *= golden.get("faint", 1.0)
    return tensors


def prepare(network: torch.nn.Module, golden: dict) -> None:
    """Give an authors' network the weights of its golden, checking that its filters are what we take them for."""
    golden["shapes"] = {name: list(value.shape) for name, value in network.state_dict().items()}
    tensors = make_tensors(golden)
    for name, value in network.state_dict().items():
        if name.endswith(".resample_filter"):
            assert torch.equal(value, tensors[name]), name
    network.load_state_dict(tensors)
    for module in network.modules():  # the authors' ADM has no argument for it
        if type(module).__name__ == "UNetBlock" and module.num_heads and golden["head_channels"] != 64:
            module.num_heads = module.out_channels // golden["head_channels"]
    network.eval().requires_grad_(False)


def one_hot(y: torch.Tensor, classes: int) -> torch.Tensor | None:
    """Labels as the authors take them; the label `classes`, "no class", is all zeros."""
    return torch.eye(classes + 1)[y][:, :classes] if classes else None


def write(name: str, golden: dict, arrays: dict[str, torch.Tensor]) -> None:
    HERE.mkdir(parents=True, exist_ok=True)
    (HERE / f"{name}.json").write_text(json.dumps(golden) + "\n", encoding="utf-8")
    np.savez_compressed(HERE / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()})
    print(name, {key: round(value.float().std().item(), 3) for key, value in arrays.items()})


def inputs(shape: tuple[int, ...], classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(0)
    x = torch.randn(4, *shape)
    y = torch.tensor([0, classes - 1, classes, 1]) if classes else None
    return x, torch.tensor([-1.5, -0.25, 0.4, 1.09]), y


def make_edm(networks) -> None:
    for name, network in EDM.items():
        golden = {"network": network, "head_channels": HEAD_CHANNELS.get(name, 64)}
        golden["fourier_scale"] = FOURIER_SCALE.get(name, 0.0)
        golden |= {"faint": FAINT[name]} if name in FAINT else {}
        torch.manual_seed(0)
        precond = networks.EDMPrecond(**network)
        prepare(precond, golden)
        classes = network.get("label_dim", 0)
        x, c_noise, y = inputs((network["img_channels"], *[network["img_resolution"]] * 2), classes)
        hot = None if y is None else one_hot(y, classes)
        sigma = torch.tensor([0.003, 0.25, 2.0, 75.0])
        arrays = {"x": x, "c_noise": c_noise, "raw": precond.model(x, c_noise, hot), "sigma": sigma}
        arrays["denoised"] = precond(x * sigma[:, None, None, None], sigma, hot)
        if y is not None:
            arrays["y"] = y
        if network.get("augment_dim"):
            arrays["augment"] = torch.randn(4, network["augment_dim"])
            arrays["augmented"] = precond.model(x, c_noise, hot, augment_labels=arrays["augment"])
        write(name, golden, arrays)


def make_rfpp(networks) -> None:
    for name, like in RFPP.items():
        network = EDM[like]
        golden = {"network": network, "head_channels": 64, "fourier_scale": FOURIER_SCALE.get(name, 0.0)}
        kind = getattr(networks, network["model_type"])
        channels, side = network["img_channels"], network["img_resolution"]
        rest = {k: v for k, v in network.items() if k not in ("model_type", "img_channels", "img_resolution")}
        torch.manual_seed(0)
        wrapper = networks.EDMPrecondVel(kind(img_resolution=side, in_channels=channels, out_channels=channels, **rest))
        prepare(wrapper, golden)
        classes = network.get("label_dim", 0)
        x, _, y = inputs((channels, side, side), classes)
        t = torch.tensor([0.25, 0.5, 0.875, 1 - 1e-5])
        arrays = {"x": x, "t": t, "velocity": wrapper(x, t, None if y is None else one_hot(y, classes))}
        arrays["range"] = torch.tensor([1e-5, 1e-4, 1 - 1e-4, 1 - 1e-5])  # of times: there, what the network is told
        told = []
        wrapper.model.register_forward_pre_hook(lambda _, given, told=told: told.append(given[1]))
        wrapper(x, arrays["range"], None if y is None else one_hot(y, classes))
        arrays["c_noise"] = told[0]
        if y is not None:
            arrays["y"] = y
        write(name, golden, arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edm", help="clone of github.com/NVlabs/edm")
    parser.add_argument("--rfpp", help="clone of github.com/sangyun884/rfpp")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.edm:
        sys.path.insert(0, options.edm)
        make_edm(importlib.import_module("training.networks"))
    if options.rfpp:
        sys.path.insert(0, options.rfpp)
        make_rfpp(importlib.import_module("network_edm"))


if __name__ == "__main__":
    main()
