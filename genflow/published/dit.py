"""The published networks of DiT, from the authors' or from diffusers' tensors to a Denoiser."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.nn.dit import DiT, dit_preset
from genflow.nn.embeddings import DiTConditioning, grid_embedding
from genflow.parameterizations import PredictNoise
from genflow.schedules import DiscreteVP, linear_betas

HEADS = {preset["width"]: preset["heads"] for preset in map(dit_preset, ("S", "B", "L", "XL"))}  # by width


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How somebody names the parts of a DiT: ours to theirs, those of the network and those of each block."""

    blocks: str
    outer: dict[str, str]
    inner: dict[str, str]
    positions: str  # the fixed table of positions, one row a patch


_AUTHORS = _Layout(
    blocks="blocks",
    outer={
        "patch_in": "x_embedder.proj",
        "conditioning.map0": "t_embedder.mlp.0",
        "conditioning.map1": "t_embedder.mlp.2",
        "conditioning.labels": "y_embedder.embedding_table",
        "modulation_out": "final_layer.adaLN_modulation.1",
        "patch_out": "final_layer.linear",
    },
    inner={
        "attention.qkv": "attn.qkv",
        "attention.o": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "modulation": "adaLN_modulation.1",
    },
    positions="pos_embed",
)
_DIFFUSERS = _Layout(
    blocks="transformer_blocks",
    outer={"patch_in": "pos_embed.proj", "modulation_out": "proj_out_1", "patch_out": "proj_out_2"},
    inner={
        "conditioning.map0": "norm1.emb.timestep_embedder.linear_1",
        "conditioning.map1": "norm1.emb.timestep_embedder.linear_2",
        "conditioning.labels": "norm1.emb.class_embedder.embedding_table",
        "modulation": "norm1.linear",
        "attention.q": "attn1.to_q",
        "attention.k": "attn1.to_k",
        "attention.v": "attn1.to_v",
        "attention.o": "attn1.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
    },
    positions="pos_embed.pos_embed",
)


def dit(tensors: Mapping[str, Tensor], *, heads: int = 0, image_size: int = 0) -> tuple[Denoiser, list[str]]:
    """Return a Denoiser with the weights of a published DiT, and sentences on what the user should know of it.

    ``tensors`` is the state dict of facebookresearch/DiT or of diffusers' ``DiTTransformer2DModel``; every size but two
    is read from names and shapes. ``heads`` 0 are those that the published networks of this width have.
    ``image_size`` is the side of the images, or latents, in pixels: the authors' table of positions tells it,
    diffusers' weights do not. The last row of the class table is taken to be "no class"; a single row, all there is
    without classes, is added to a bias. The variances that the head also predicts are left out.

    The result predicts noise on DDPM's table of 1000 steps, and sees step k as k. It computes as the authors'
    network does; diffusers evaluates the same weights with time frequencies ``10000^(-k / 127)`` in place of the
    authors' ``10000^(-k / 128)``, and with an eps of 1e-5 in the second norm of a block. (DiTs trained in diffusers
    have a conditioning network in every block, and are refused.) Guidance acts on all channels, in the authors'
    samples on the first three only.
    Source: "Scalable Diffusion Models with Transformers", arXiv 2212.09748.

    Raises ``ValueError`` for keys that are missing or left over and shapes that do not fit, by name; for blocks
    conditioned differently or positions that are not DiT's; and if ``heads`` or ``image_size`` are needed.
    """
    if "x_embedder.proj.weight" in tensors:
        layout = _AUTHORS
    elif "pos_embed.proj.weight" in tensors:
        layout = _DIFFUSERS
    else:
        raise ValueError(
            "these are not the weights of a DiT: there is neither x_embedder.proj.weight, as in the authors' files,"
            " nor pos_embed.proj.weight, as in diffusers'"
        )
    depth, state = _translate(tensors, layout)
    if layout is _DIFFUSERS:
        _share_conditioning(state, depth)
    network = DiT(**_architecture(state, tensors, layout, depth, heads, image_size))
    notes: list[str] = []
    if layout is _DIFFUSERS:
        notes.append(
            "computes with the time frequencies and norms of the authors, from which those of diffusers differ slightly"
        )
    _split_attention(state, depth)
    _drop_variances(state, network, notes)
    _set_classes(state, network, notes)
    _load(network, state)
    if network.in_channels == 4:
        notes.append("images are latents: decode x / 0.18215 with the VAE of Stable Diffusion 1 (sd-vae-ft-mse)")
    denoiser = Denoiser(
        network,
        DiscreteVP(betas=linear_betas(1000, 1e-4, 0.02)),
        PredictNoise(),
        image_shape=(network.in_channels, *network.image_size),
        num_classes=network.arguments["num_classes"],
        sampler="ancestral",
        steps=250,
    )
    return denoiser.eval(), notes


def _translate(tensors: Mapping[str, Tensor], layout: _Layout) -> tuple[int, dict[str, Tensor]]:
    """Return the depth and the tensors, but for the positions, under our names, in float32."""
    found = (re.match(rf"{layout.blocks}\.(\d+)\.", key) for key in tensors)
    depth = len({match[1] for match in found if match})
    names = dict(layout.outer)
    for i in range(max(depth, 1)):
        names |= {f"blocks.{i}.{ours}": f"{layout.blocks}.{i}.{theirs}" for ours, theirs in layout.inner.items()}
    keys = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in names.items()
        for kind in (("weight",) if ours.endswith("conditioning.labels") else ("weight", "bias"))
    }
    needed = set(keys.values()) | ({layout.positions} if layout is _AUTHORS else set())
    missing = sorted(needed - tensors.keys())
    unexpected = sorted(tensors.keys() - needed - {layout.positions})
    if missing or unexpected:
        problems = [f"{kind} {_shorten(keys)}" for kind, keys in (("no", missing), ("also", unexpected)) if keys]
        raise ValueError(
            f"these are not the weights of a DiT that genflow has: there is {'; there is '.join(problems)}"
        )
    return depth, {ours: tensors[theirs].float() for ours, theirs in keys.items()}


def _shorten(keys: list[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _share_conditioning(state: dict[str, Tensor], depth: int) -> None:
    """Put the one conditioning network in place of the copies that diffusers gives to every block."""
    for part in ("map0.weight", "map0.bias", "map1.weight", "map1.bias", "labels.weight"):
        copies = [state.pop(f"blocks.{i}.conditioning.{part}") for i in range(depth)]
        for i, copy in enumerate(copies):
            if not torch.equal(copy, copies[0]):
                raise ValueError(
                    f"block {i} has another conditioning {part} than block 0 under norm1.emb: a DiT conditions all"
                    " blocks by one time embedding and one class table, so these weights are of another network"
                )
        state[f"conditioning.{part}"] = copies[0]


def _architecture(
    state: dict[str, Tensor], tensors: Mapping[str, Tensor], layout: _Layout, depth: int, heads: int, image_size: int
) -> dict[str, Any]:
    """Read the arguments of our DiT from the shapes."""
    width, channels, patch, across = _sides(state, "patch_in.weight", 4)
    if patch != across:
        raise ValueError(f"{layout.outer['patch_in']}.weight has patches of {patch}x{across}: DiT's are square")
    hidden = _sides(state, "blocks.0.mlp.fc1.weight", 2)[0]
    ratio = hidden / width
    if int(width * ratio) < hidden:  # the quotient was rounded down
        ratio = math.nextafter(ratio, math.inf)
    rows = _sides(state, "conditioning.labels.weight", 2)[0]
    if heads == 0 and width not in HEADS:
        raise ValueError(
            f"the weights do not tell how many heads the attention has: give heads, a divisor of the width {width}"
            f" (only the published widths {', '.join(map(str, HEADS))} are known)"
        )
    side = _side(tensors.get(layout.positions), layout.positions, width, patch, image_size)
    return {
        "image_size": (side, side),
        "in_channels": channels,
        "num_classes": rows - 1,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "heads": heads or HEADS[width],
        "mlp_ratio": ratio,
    }


def _sides(state: dict[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a tensor that sizes are read from."""
    shape = tuple(state[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(
            f"the weights do not fit a DiT: genflow's {name} must have {dimensions} dimensions, got the shape {shape}"
        )
    return shape


def _side(positions: Tensor | None, key: str, width: int, patch: int, image_size: int) -> int:
    """Return the side of the images, having checked that stored positions are the ones that our DiT computes."""
    if positions is None:
        if image_size == 0:
            raise ValueError(
                "diffusers' weights do not tell the size of the images: give image_size, which is sample_size in the"
                " config.json beside them (32 for the latents of DiT-XL-2-256, 64 for those of DiT-XL-2-512)"
            )
        return image_size
    rows = math.isqrt(positions.numel() // width)
    expected = grid_embedding(width, rows, rows)
    given = positions.float().reshape(-1, width) if positions.numel() % width == 0 else positions
    if given.shape != expected.shape or not torch.allclose(given, expected, rtol=0, atol=1e-3):
        raise ValueError(
            f"{key} is not DiT's fixed table of sines and cosines on a square of patches: trained positions and other"
            " grids are not supported"
        )
    if image_size not in (0, rows * patch):
        raise ValueError(f"image_size is {image_size}, but {key} is a table for images of {rows * patch}: leave it out")
    return rows * patch


def _split_attention(state: dict[str, Tensor], depth: int) -> None:
    """Cut the authors' fused kernels into those of q, k and v."""
    for i in range(depth):
        for kind, dimensions in (("weight", 2), ("bias", 1)):
            fused = f"blocks.{i}.attention.qkv.{kind}"
            if fused in state:
                _sides(state, fused, dimensions)
                parts = zip("qkv", state.pop(fused).tensor_split(3), strict=True)
                state |= {f"blocks.{i}.attention.{name}.{kind}": part for name, part in parts}


def _drop_variances(state: dict[str, Tensor], network: DiT, notes: list[str]) -> None:
    """Flatten the patch kernel, and keep the rows of the head that predict noise."""
    state["patch_in.weight"] = state["patch_in.weight"].flatten(1)  # (width, C p²)
    pixels, channels = network.patch_size**2, network.in_channels
    variances = False
    for name in ("patch_out.weight", "patch_out.bias"):
        if state[name].shape[:1] == (2 * pixels * channels,):
            per_pixel = state[name].unflatten(0, (pixels, 2 * channels))
            state[name] = per_pixel[:, :channels].flatten(0, 1)
            variances = True
    if variances:
        notes.append(
            f"dropped the {channels} variance channels of the head (learned sigma): no sampler here reads them"
        )


def _set_classes(state: dict[str, Tensor], network: DiT, notes: list[str]) -> None:
    """Fold the single row of an unconditional model into the bias before it; otherwise name the null class."""
    classes = network.arguments["num_classes"]
    if classes == 0:
        state["conditioning.map1.bias"] = state["conditioning.map1.bias"] + state.pop("conditioning.labels.weight")[0]
        notes.append("took the single row of the class table to mean that there are no classes")
    else:
        notes.append(f'took the last of the {classes + 1} rows of the class table to mean "no class"')


def _load(network: DiT, state: dict[str, Tensor]) -> None:
    for name, weight in network.state_dict().items():
        if state[name].shape != weight.shape:
            raise ValueError(
                f"the weights do not fit a DiT of width {network.arguments['width']}, {network.in_channels} channels"
                f" and {DiTConditioning.channels} frequencies of time: genflow's {name} must have the shape"
                f" {tuple(weight.shape)}, got {tuple(state[name].shape)}"
            )
    network.load_state_dict(state)
