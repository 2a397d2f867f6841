"""The published networks of EDM and of 2-RF++, which share them: from their tensors to a Denoiser."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from genflow.denoiser import Denoiser
from genflow.nn.layers import make_downsample
from genflow.nn.unet import UNet
from genflow.parameterizations import Karras
from genflow.schedules import VE, Linear

# What float32 makes of t / (1 - t) at the ends of 2-RF++'s range of times, 1e-5 and 1 - 1e-5: the noise levels that its
# time embedding has seen.
RFPP_LEVELS = (1.0000099791795947e-05, 99863.3828125)


def edm(
    tensors: Mapping[str, Tensor],
    *,
    method: Literal["edm", "rfpp"],
    head_channels: int = 64,
) -> tuple[Denoiser, list[str]]:
    """Return a Denoiser with the weights of one of EDM's networks, and sentences on what the user should know of it.

    The network (DDPM++, NCSN++ or ADM, and its sizes) is read from names and shapes; names may begin with "model." or
    "module.". Heads of attention leave no trace in them: DDPM++ and NCSN++ have one, ADM has heads of
    ``head_channels``. With ``method`` "edm" it is sampled as EDM's, by ``Karras`` on ``VE``; with "rfpp" as 2-RF++'s,
    by ``Karras`` on ``Linear``, conditioned on the noise levels of t = 1e-5 to 1 - 1e-5 in float32. The augmentation
    branch is left out: it adds nothing when sampling.

    Sources: "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364; "Improving the
    Training of Rectified Flows", arXiv 2405.20320.

    Raises ``ValueError`` naming the first key that is missing, left over or of another shape, or what about the
    network genflow's UNet does not have.
    """
    if method not in ("edm", "rfpp"):
        raise ValueError(f'method must be "edm" or "rfpp", got {method!r}')
    source = _Source(tensors)
    notes: list[str] = []
    augmentation = source.left.pop("map_augment.weight", None)
    if augmentation is not None:
        notes.append(f"dropped the augmentation branch ({augmentation.shape[1]} labels): it adds 0 when sampling")
    arguments = _architecture(source, head_channels)
    unet = UNet(**arguments)
    _load(unet, _translate(source, unet))
    if arguments["adaptive_norm"]:
        notes.append(f"took attention heads to have {head_channels} channels: the weights do not tell")
    notes.append("set dropout to 0: the weights do not tell what it was")
    side = unet.image_size[0]
    if method == "edm":
        notes.append("took the preconditioning to be EDM's: weights of its baselines (VP, VE) look the same")
        schedule, row, sampler, steps = VE(), Karras(), "heun", 18 if side <= 32 else 40
    else:
        notes.append("sampling starts at t = 1 with the embedding of t = 1 - 1e-5, where the authors start")
        notes.append("2 steps suffice after training on pairs of noise and image: on images alone it unlearns that")
        schedule, sampler, steps = Linear(), "euler", 2
        row = Karras(level_min=RFPP_LEVELS[0], level_max=RFPP_LEVELS[1])
    denoiser = Denoiser(
        unet,
        schedule,
        row,
        image_shape=(unet.in_channels, side, side),
        num_classes=arguments["num_classes"],
        sampler=sampler,
        steps=steps,
    )
    return denoiser.eval(), notes


class _Source:
    """Tensors by name, from which each is taken once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.left: dict[str, Tensor] = {}
        for name, value in tensors.items():
            self.left[re.sub(r"^(module\.|model\.)+", "", name)] = value
        if len(self.left) < len(tensors):
            raise ValueError("the weights hold two networks, with and without the prefix model. or module.: keep one")

    def look(self, name: str, dims: int | None = None) -> Tensor:
        """Return a tensor and leave it there; ``ValueError`` if there is none, or none of so many dimensions."""
        if name not in self.left:
            raise ValueError(f"the weights lack {name}, which every network of their form has")
        value = self.left[name]
        if dims is not None and value.ndim != dims:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not {dims} dimensions")
        return value

    def take(self, name: str, dims: int | None = None) -> Tensor:
        """Return a tensor in float32, once; ``ValueError`` as of ``look``."""
        value = self.look(name, dims)
        del self.left[name]
        return value.float()


def _architecture(source: _Source, head_channels: int) -> dict[str, Any]:
    """Read the arguments of a UNet from names and shapes."""
    sides = _sides(source)
    _refuse_other_forms(source)
    place = f"enc.{sides[0]}x{sides[0]}"
    adm, fourier = "out_conv.weight" in source.left, "map_noise.freqs" in source.left
    first, in_channels = source.look(f"{place}_conv.weight", 4).shape[:2]
    out_channels = len(source.look("out_conv.weight" if adm else f"dec.{sides[0]}x{sides[0]}_aux_conv.weight", 4))
    if in_channels != out_channels:
        raise ValueError(f"the network turns {in_channels} channels into {out_channels}; genflow's keep their number")
    embedding, features = source.look("map_layer0.weight", 2).shape
    width = features if adm else first
    if features != (2 * width if fourier else width):
        raise ValueError(f"a time embedding of {features} channels for a network of width {width} is not supported")
    channels = [len(source.look(f"enc.{side}x{side}_block0.conv0.weight", 4)) for side in sides]
    wrong = [c for c in (embedding, *channels) if c % width]
    if wrong:
        raise ValueError(f"{wrong[0]} channels are not a multiple of the width {width}, which genflow's UNet needs")
    labels = source.look("map_label.weight", 2) if "map_label.weight" in source.left else None
    return {
        "image_size": (sides[0], sides[0]),
        "in_channels": in_channels,
        "num_classes": 0 if labels is None else labels.shape[1],
        "width": width,
        "multipliers": tuple(c // width for c in channels),
        "blocks": sum(bool(re.fullmatch(rf"{place}_block\d+\.conv0\.weight", key)) for key in source.left),
        "attention": tuple(side for side in sides if f"enc.{side}x{side}_block0.qkv.weight" in source.left),
        "dropout": 0.0,
        "embedding_multiplier": embedding // width,
        "fourier_scale": _spread(source.left["map_noise.freqs"]) if fourier else 0.0,
        "resample_filter": _resample_filter(source),
        "residual_encoder": any(key.endswith("_aux_residual.weight") for key in source.left),
        "adaptive_norm": adm,
        "head_channels": head_channels if adm else 0,
        "decoder_attention": "every" if adm else "last",
    }


def _sides(source: _Source) -> list[int]:
    """Return the resolutions, highest first."""
    found = {int(match[1]) for key in source.left if (match := re.match(r"enc\.(\d+)x\1_", key))}
    if not found:
        example = f", but for example {min(source.left)}" if source.left else ""
        raise ValueError(f"these are not weights of a network of EDM: there is no key like enc.32x32_conv{example}")
    sides = sorted(found, reverse=True)
    if any(below * 2 != above for above, below in itertools.pairwise(sides)):
        raise ValueError(f"the network works at {sides} pixels; genflow's UNet halves the image from level to level")
    return sides


def _refuse_other_forms(source: _Source) -> None:
    """Refuse what EDM's code can build and genflow's UNet cannot."""
    for pattern, what in (
        (r"enc\..*_aux_(down|skip)\.", "its encoder is of the form 'skip'"),
        (r"dec\..*_aux_up\.", "its decoder is of the form 'skip'"),
        (r"u$", "it is of the form iDDPM, which predicts noise at the levels of a table"),
        (r"map_aux\d\.", "it is told of auxiliary variables"),
    ):
        found = [key for key in source.left if re.match(pattern, key)]
        if found:
            raise ValueError(f"genflow cannot express this network: {what} ({found[0]})")


def _spread(frequencies: Tensor) -> float:
    """Return the root mean square of frequencies to three digits: the scale that they were drawn with, about."""
    return float(f"{frequencies.float().square().mean().sqrt().item():.3g}")


def _resample_filter(source: _Source) -> tuple[int, ...]:
    """Return the FIR filter that every resampling block holds a copy of, in whole numbers; take the copies out."""
    names = [key for key in source.left if key.endswith(".resample_filter")]
    if not names:
        return (1, 1)
    row = source.look(names[0], 4).float().sum(dim=(0, 1, 2))  # (n,)
    if not (row.min() > 0 and row.max() < 1000 * row.min()):
        raise ValueError(f"{names[0]} is not a filter of positive weights, which genflow's UNet resamples by")
    weights = tuple(round(w) for w in (row / row.min()).tolist())
    whole = torch.tensor(weights, dtype=torch.float32)
    expected = (torch.outer(whole, whole) / whole.sum().square())[None, None]  # (1, 1, n, n)
    for name in names:
        held = source.take(name)
        if held.shape != expected.shape or not torch.allclose(held, expected, rtol=1e-3, atol=0):
            raise ValueError(f"{name} is not the outer product of small whole numbers that genflow's UNet resamples by")
    make_downsample(weights)  # refuses what else it cannot do
    return weights


def _translate(source: _Source, unet: UNet) -> dict[str, Tensor]:
    """Return the state dict of ``unet``; every tensor of the source finds a place in it, or is refused by name."""
    side = unet.image_size[0]
    adm, depth, blocks = (unet.arguments[name] for name in ("adaptive_norm", "multipliers", "blocks"))
    sides = [side >> level for level in range(len(depth))]
    target = dict(_conditioning(source, adm))
    ends = ("out_norm", "out_conv") if adm else (f"dec.{side}x{side}_aux_norm", f"dec.{side}x{side}_aux_conv")
    modules = [(f"enc.{side}x{side}_conv", "conv_in"), (ends[0], "norm_out"), (ends[1], "conv_out")]
    for level, below in enumerate(sides[1:] if unet.arguments["residual_encoder"] else [], start=1):
        modules.append((f"enc.{below}x{below}_aux_residual", f"projections.{level * (blocks + 1) - 1}.conv"))
    wanted = unet.state_dict().keys()
    for theirs, ours in _blocks(sides, blocks):
        modules += [(f"{theirs}.{part}", f"{ours}.{part}") for part in ("norm0", "conv0", "affine", "norm1", "conv1")]
        if f"{ours}.skip.weight" in wanted:
            modules.append((f"{theirs}.skip", f"{ours}.skip"))
        if f"{ours}.attention.norm.weight" in wanted:
            modules.append((f"{theirs}.norm2", f"{ours}.attention.norm"))
            target.update(_attention(source, theirs, f"{ours}.attention.attention"))
    for theirs, ours in modules:
        for kind in ("weight", "bias"):
            target[f"{ours}.{kind}"] = source.take(f"{theirs}.{kind}")
    if source.left:
        names = sorted(source.left)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"the weights hold keys that this network has no place for: {', '.join(names[:3])}{more}")
    return target


def _blocks(sides: list[int], blocks: int) -> Iterator[tuple[str, str]]:
    """Pair the names of residual blocks: EDM's by resolution, ours by position."""
    position = itertools.count()
    for level, side in enumerate(sides):
        names = [f"enc.{side}x{side}_block{k}" for k in range(blocks)]
        for name in [f"enc.{side}x{side}_down", *names] if level else names:
            yield name, f"encoder.{next(position)}"
    for level, side in enumerate(reversed(sides)):
        for k, entry in enumerate(["up"] if level else ["in0", "in1"]):
            yield f"dec.{side}x{side}_{entry}", f"entries.{level}.{k}"
        for k in range(blocks + 1):
            yield f"dec.{side}x{side}_block{k}", f"decoder.{level}.{k}"


def _attention(source: _Source, theirs: str, ours: str) -> Iterator[tuple[str, Tensor]]:
    """Split one 1x1 convolution whose output channels go q, k, v, q, k, v, ..."""
    weight, bias = source.take(f"{theirs}.qkv.weight", 4).flatten(1), source.take(f"{theirs}.qkv.bias", 1)
    for offset, name in enumerate(("q", "k", "v")):
        yield f"{ours}.{name}.weight", weight[offset::3].clone()
        yield f"{ours}.{name}.bias", bias[offset::3].clone()
    yield f"{ours}.o.weight", source.take(f"{theirs}.proj.weight", 4).flatten(1)
    yield f"{ours}.o.bias", source.take(f"{theirs}.proj.bias")


def _conditioning(source: _Source, adm: bool) -> Iterator[tuple[str, Tensor]]:
    """Translate the mapping network; a linear function of one-hot labels is a table whose null row is its bias."""
    for layer in ("0", "1"):
        for kind in ("weight", "bias"):
            yield f"conditioning.map{layer}.{kind}", source.take(f"map_layer{layer}.{kind}")
    if "map_noise.freqs" in source.left:
        yield "conditioning.time.fourier.frequencies", source.take("map_noise.freqs")
    if "map_label.weight" in source.left:
        rows = source.take("map_label.weight").T  # (n, channels)
        null = torch.zeros_like(rows[:1])
        if not adm:  # labels are scaled to unit variance, and there is a bias
            rows, null = rows * math.sqrt(len(rows)), source.take("map_label.bias")[None]
        yield "conditioning.labels.weight", torch.cat([rows + null, null])


def _load(unet: UNet, weights: dict[str, Tensor]) -> None:
    """Copy weights whose names are right into the network; ``ValueError`` names the first of another shape."""
    for name, wanted in unet.state_dict().items():
        if weights[name].shape != wanted.shape:
            raise ValueError(
                f"the weights for {name} have shape {tuple(weights[name].shape)}, and a network inferred from the"
                f" others has {tuple(wanted.shape)}"
            )
    unet.load_state_dict(weights)
