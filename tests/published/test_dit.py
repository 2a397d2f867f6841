"""Published DiTs: what the authors' and diffusers' networks computed with the same weights, and refusals."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from goldens.weights import fill

from genflow.denoiser import Denoiser
from genflow.nn.embeddings import grid_embedding
from genflow.published.dit import dit
from genflow.sampling import generate

GOLDENS = Path(__file__).parent.parent / "goldens" / "dit"  # made by goldens/make_dit.py
CASES = sorted(path.stem for path in GOLDENS.glob("*.json"))


def golden(name):
    """The published configuration and tensors, and what the published network makes of its inputs."""
    about = json.loads((GOLDENS / f"{name}.json").read_text())
    weights = fill(about["shapes"])
    count, width = about["shapes"]["pos_embed"][1:]
    side = round(count**0.5)
    weights["pos_embed"] = grid_embedding(width, side, side)[None]
    with np.load(GOLDENS / f"{name}.npz") as data:
        return about, weights, {key: torch.from_numpy(data[key]) for key in ("x", "t", "y", "out")}


def authors(name="coarse", **changes):
    """The tensors of a golden; ``changes`` replace or (None) remove some."""
    about, weights, _ = golden(name)
    weights |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in weights.items() if value is not None}, about["heads"]


def test_there_are_goldens() -> None:
    assert CASES == ["coarse", "latents", "pixels", "unconditional"]


@pytest.mark.parametrize("name", CASES)
def test_computes_what_the_authors_network_does(name) -> None:
    """The raw output for every label, "no class" among them; its step is our c_noise, its first channels our output.

    In double precision the two are one function. In single, frequencies of time that are rounded in the last bit turn
    the phase of step 999 by 6e-5, and each kind of processor rounds them in its own way.
    """
    about, weights, data = golden(name)
    denoiser, _ = dit(weights, heads=about["heads"])
    channels = about["configuration"]["in_channels"]
    eps = data["out"][:, :channels]
    assert eps.std() > 0.5
    y = data["y"] if denoiser.num_classes else None
    t = (data["t"].double() + 1) / 1000
    with torch.no_grad():
        torch.testing.assert_close(denoiser.backbone(data["x"], data["t"], y), eps, rtol=0, atol=2e-5)
        torch.testing.assert_close(denoiser(data["x"], t, y), eps, rtol=0, atol=2e-5)
        backbone = denoiser.backbone.double()
        with patch.object(torch, "float32", torch.float64), patch.object(torch.Tensor, "float", torch.Tensor.double):
            exact = backbone(data["x"].double(), data["t"].double(), y)
        torch.testing.assert_close(exact.float(), eps, rtol=0, atol=1e-6)


def test_null_class_is_the_last_row() -> None:
    about, weights, data = golden("latents")
    denoiser, _ = dit(weights, heads=about["heads"])
    last = data["y"] == about["configuration"]["num_classes"]
    assert last.any()
    assert denoiser.num_classes == about["configuration"]["num_classes"]
    with torch.no_grad():
        out = denoiser.backbone(data["x"][last], data["t"][last])
    torch.testing.assert_close(out, data["out"][last, :4], rtol=0, atol=1e-5)


def test_schedule_is_ddpms() -> None:
    about, weights, data = golden("latents")
    denoiser, _ = dit(weights, heads=about["heads"])
    products = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    alpha_bar = products[data["t"].long()].view(-1, 1, 1, 1)
    clean = (data["x"] - (1 - alpha_bar).sqrt() * data["out"][:, :4]) / alpha_bar.sqrt()
    with torch.no_grad():
        ours = denoiser.denoise(data["x"], (data["t"].double() + 1) / 1000, data["y"])
    scale = 1 / alpha_bar.sqrt()  # of errors, up to 157 at the last step
    torch.testing.assert_close(ours.double() / scale, clean / scale, rtol=0, atol=2e-5)


def test_sizes_are_read_and_the_result_saves_and_samples(tmp_path) -> None:
    about, weights, _ = golden("latents")
    denoiser, notes = dit(weights, heads=about["heads"])
    assert denoiser.image_shape == (4, 8, 8)
    assert not denoiser.training
    arguments = denoiser.backbone.arguments
    expected = {"width": 48, "depth": 3, "heads": 3, "patch_size": 2, "num_classes": 5, "mlp_ratio": 4.0}
    assert {key: arguments[key] for key in expected} == expected
    assert any("dropped the 4 variance channels" in note for note in notes)
    assert any("last of the 6 rows" in note for note in notes)
    assert any("latents" in note for note in notes)
    denoiser.save_pretrained(tmp_path)
    again = Denoiser.from_pretrained(tmp_path)
    options = {"labels": [0, 4], "steps": 3, "output": "float", "guidance": 1.5}
    assert torch.equal(generate(again, range(2), **options), generate(denoiser, range(2), **options))


def test_default_sampler_is_the_authors() -> None:
    weights, heads = authors()
    denoiser, _ = dit(weights, heads=heads)
    assert (denoiser.sampler, denoiser.steps) == ("ancestral", 250)


def test_import_leaves_the_given_tensors_alone() -> None:
    weights, heads = authors()
    before = {key: value.clone() for key, value in weights.items()}
    denoiser, _ = dit(weights, heads=heads)
    for parameter in denoiser.parameters():
        parameter.data.zero_()
    assert all(torch.equal(weights[key], before[key]) for key in before)


def test_half_precision_files_are_read() -> None:
    weights, heads = authors()
    half, _ = dit({key: value.half() for key, value in weights.items()}, heads=heads)
    assert {p.dtype for p in half.parameters()} == {torch.float32}


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_published_widths_tell_the_heads(width, heads) -> None:
    """Those of Table 1 in arXiv 2212.09748; shapes of a DiT of one thin block, since only the width matters."""
    shapes = {
        "x_embedder.proj": (width, 1, 2, 2),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "blocks.0.attn.qkv": (3 * width, width),
        "blocks.0.attn.proj": (width, width),
        "blocks.0.mlp.fc1": (8, width),
        "blocks.0.mlp.fc2": (width, 8),
        "blocks.0.adaLN_modulation.1": (6 * width, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "final_layer.linear": (4, width),
    }
    weights = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    weights |= {"y_embedder.embedding_table.weight": torch.zeros(2, width)}
    weights |= {"pos_embed": grid_embedding(width, 2, 2)[None]}
    denoiser, _ = dit(weights)
    assert denoiser.backbone.arguments["heads"] == heads
    assert denoiser.image_shape == (1, 4, 4)


@pytest.mark.parametrize("hidden", range(1, 131))
def test_every_hidden_width_survives(hidden) -> None:
    """Our networks take it as a ratio, which rounding must not change."""
    weights, heads = authors()
    for i in range(2):
        weights[f"blocks.{i}.mlp.fc1.weight"] = torch.zeros(hidden, 40)
        weights[f"blocks.{i}.mlp.fc1.bias"] = torch.zeros(hidden)
        weights[f"blocks.{i}.mlp.fc2.weight"] = torch.zeros(40, hidden)
    assert dit(weights, heads=heads)[0].backbone.blocks[0].mlp.fc1.out_features == hidden


BROKEN = [
    ({"x_embedder__proj__weight": None}, "these are not the weights of a DiT: there is neither"),
    ({"x_embedder__proj__bias": None}, r"there is no x_embedder\.proj\.bias"),
    ({"blocks__1__attn__qkv__weight": None}, r"there is no blocks\.1\.attn\.qkv\.weight"),
    ({"pos_embed": None}, "there is no pos_embed"),
    ({"stray": torch.zeros(1)}, "there is also stray"),
    ({"blocks__7__attn__proj__bias": torch.zeros(40)}, r"also blocks\.7\.attn\.proj\.bias"),
    ({"pos_embed": torch.zeros(1, 9, 40)}, "pos_embed is not DiT's fixed table"),
    ({"pos_embed": grid_embedding(40, 2, 3)[None]}, "pos_embed is not DiT's fixed table"),
    ({"pos_embed": torch.zeros(7)}, "pos_embed is not DiT's fixed table"),
    ({"final_layer__linear__weight": torch.zeros(5, 40)}, r"patch_out\.weight must have the shape \(48, 40\)"),
    ({"final_layer__linear__bias": torch.zeros(5)}, r"patch_out"),
    ({"blocks__0__attn__qkv__weight": torch.zeros(121, 40)}, r"blocks\.0\.attention\.q\.weight must have the shape"),
    ({"blocks__0__attn__qkv__bias": torch.zeros(())}, r"blocks\.0\.attention\.qkv\.bias must have 1 dimensions"),
    ({"final_layer__linear__bias": torch.zeros(())}, r"patch_out\.bias"),
    ({"x_embedder__proj__weight": torch.zeros(40, 48)}, r"patch_in\.weight must have 4 dimensions"),
    ({"x_embedder__proj__weight": torch.zeros(40, 3, 4, 2)}, r"patches of 4x2"),
    ({"y_embedder__embedding_table__weight": torch.zeros(3)}, r"conditioning\.labels\.weight must have 2 dimensions"),
    ({"t_embedder__mlp__0__weight": torch.zeros(40, 128)}, r"256 frequencies of time.*conditioning\.map0\.weight"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_what_does_not_fit_is_refused_by_name(changes, message) -> None:
    weights, heads = authors(**changes)
    with pytest.raises(ValueError, match=message):
        dit(weights, heads=heads)


def test_needed_and_wrong_arguments_are_refused() -> None:
    weights, _ = authors()
    with pytest.raises(ValueError, match="give heads, a divisor of the width 40"):
        dit(weights)
    with pytest.raises(ValueError, match="heads must divide"):
        dit(weights, heads=3)
    with pytest.raises(ValueError, match="image_size is 16, but pos_embed is a table for images of 12"):
        dit(weights, heads=2, image_size=16)
    assert dit(weights, heads=2, image_size=12)[0].image_shape == (3, 12, 12)


def theirs(**changes):
    """A network of diffusers that computes as DiT does, with the weights of `fill`."""
    from diffusers import DiTTransformer2DModel

    arguments = {"sample_size": 8, "in_channels": 3, "out_channels": 6, "patch_size": 2, "num_attention_heads": 3}
    arguments |= {"attention_head_dim": 16, "num_layers": 2, "num_embeds_ada_norm": 4, "norm_eps": 1e-6}
    network = DiTTransformer2DModel(**(arguments | changes)).eval()
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    weights = fill(shapes)
    for key in shapes:  # every block has a copy of the conditioning of the first
        if ".norm1.emb." in key:
            weights[key] = weights[f"transformer_blocks.0.norm1.emb.{key.split('.norm1.emb.')[1]}"]
    network.load_state_dict(weights)
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # as in DiT itself
    return network


@pytest.mark.reference
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"out_channels": 3, "num_layers": 3, "sample_size": 12, "patch_size": 4},
        {"in_channels": 1, "out_channels": 1, "patch_size": 1, "sample_size": 5, "num_embeds_ada_norm": 1},
        {"in_channels": 4, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 12},
    ],
)
def test_computes_what_diffusers_does(changes) -> None:
    network = theirs(**changes)
    config = network.config
    classes, channels = config.num_embeds_ada_norm, config.in_channels
    heads = config.num_attention_heads
    denoiser, notes = dit(network.state_dict(), heads=heads, image_size=config.sample_size)
    assert denoiser.image_shape == (channels, config.sample_size, config.sample_size)
    assert denoiser.num_classes == classes
    assert any("learned sigma" in note for note in notes) == (config.out_channels > channels)
    authors = (
        "computes with the time frequencies and norms of the authors, from which those of diffusers differ slightly"
    )
    assert authors in notes
    y = torch.arange(classes + 1)
    k = torch.linspace(0, 999, classes + 1).round()
    x = torch.randn(classes + 1, *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(x, timestep=k, class_labels=y).sample[:, :channels]
        ours = denoiser(x, (k.double() + 1) / 1000, y)
    assert expected.std() > 0.3
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.reference
def test_diffusers_weights_need_a_size_and_one_conditioning() -> None:
    weights = dict(theirs().state_dict())
    with pytest.raises(ValueError, match="give image_size"):
        dit(weights, heads=3)
    stored = weights | {"pos_embed.pos_embed": grid_embedding(48, 4, 4)[None]}
    assert dit(stored, heads=3)[0].image_shape == (3, 8, 8)
    key = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    with pytest.raises(ValueError, match=r"block 1 has another conditioning map1\.bias"):
        dit(weights | {key: weights[key] + 1e-6}, heads=3, image_size=8)
    with pytest.raises(ValueError, match=rf"there is no {key}"):
        dit({name: value for name, value in weights.items() if name != key}, heads=3, image_size=8)
