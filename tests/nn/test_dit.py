"""The DiT: exact sizes, identity at the start, equality with diffusers, conditioning, refusals."""

import json

import pytest
import torch
import torch.nn.functional as F

from genflow.nn import DiT, DiTBlock, dit_preset

torch.set_num_threads(1)
TINY = {"image_size": (8, 8), "in_channels": 1, "num_classes": 10, **dit_preset("tiny")}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def awake(network):
    """Give random values to everything that starts at zero, so that all branches speak."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(network, batch=4):
    x = torch.randn(batch, network.in_channels, *network.image_size)
    return x, torch.randn(batch), torch.randint(0, 10, (batch,))


def formula(width, depth, *, channels, patch, classes, out):
    """Parameters of a DiT, term by term; a Linear from a to b has (a + 1) b."""
    block = 4 * (width + 1) * width  # q, k, v, o
    block += (width + 1) * 4 * width + (4 * width + 1) * width  # fc1, fc2
    block += (width + 1) * 6 * width  # adaLN
    conditioning = (256 + 1) * width + (width + 1) * width + (classes + 1) * width
    patches = (channels * patch**2 + 1) * width
    head = (width + 1) * 2 * width + (width + 1) * patch**2 * out
    return depth * block + conditioning + patches + head


@pytest.mark.parametrize(
    ("name", "count", "with_positions", "published"),
    [
        ("S", 32_865_056, 32_963_360, 32.96),
        ("B", 130_315_808, 130_512_416, 130.51),
        ("L", 457_840_672, 458_102_816, 458.10),
        ("XL", 674_834_720, 675_129_632, 675.13),
    ],
)
def test_published_sizes(name, count, with_positions, published):
    """DiT-*/2 on 32x32x4 latents, 1000 classes, learned variance, in millions as published.

    The published counts include the fixed position table, which is no parameter here, and the rows of the head that
    predict variances, which it does not have.
    """
    preset = dit_preset(name)
    with torch.device("meta"):
        network = DiT(image_size=(32, 32), in_channels=4, num_classes=1000, **preset)
    width, depth = preset["width"], preset["depth"]
    variances = (width + 1) * 2**2 * 4
    total = sum(p.numel() for p in network.parameters()) + variances
    assert total == count
    assert total == formula(width, depth, channels=4, patch=2, classes=1000, out=8)
    assert total + network.positions.numel() == with_positions
    assert with_positions / 1e6 == pytest.approx(published, abs=0.01)


def test_tiny_size_and_unknown_preset():
    assert sum(p.numel() for p in DiT(**TINY).parameters()) == 328_964
    with pytest.raises(ValueError, match="tiny, S, B, L and XL; got 'M'"):
        dit_preset("M")


def test_every_fresh_block_is_the_identity():
    x, e = torch.randn(2, 5, 64), torch.randn(2, 64)
    assert torch.equal(DiTBlock(64, 4)(x, e), x)
    for block in DiT(**TINY).blocks:
        assert torch.equal(block(x, e), x)


@pytest.mark.parametrize(("image_size", "patch"), [((8, 8), 2), ((28, 28), 4), ((12, 20), 4), ((6, 9), 3)])
def test_fresh_output_is_zero_and_has_the_input_shape(image_size, patch):
    network = DiT(image_size=image_size, in_channels=2, patch_size=patch, **dit_preset("tiny"))
    x, c, _ = inputs(network, 2)
    out = network(x, c)
    assert out.shape == x.shape
    assert not out.any()
    assert awake(network)(x, c).std() > 1e-3


def test_refused_sizes_name_good_ones():
    with pytest.raises(ValueError, match="cannot be cut") as error:
        DiT(**(TINY | {"image_size": (30, 28), "patch_size": 4}))
    assert "30x28" in str(error.value)
    assert "28x28, 32x28" in str(error.value)
    DiT(**(TINY | {"image_size": (32, 28), "patch_size": 4}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 62}, "width must be divisible by 4"),
        ({"heads": 5}, "heads must divide"),
        ({"dropout": -0.1}, "dropout must be in"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be"),
        ({"image_size": (0, 8)}, "image_size must be"),
    ],
)
def test_bad_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DiT(**(TINY | wrong))


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(2, 1, 8, 16\)"):
        DiT(**TINY)(torch.randn(2, 1, 8, 16), torch.randn(2))


def test_patches_are_a_strided_convolution():
    network = DiT(image_size=(8, 12), in_channels=3, patch_size=2, **dit_preset("tiny"))
    seen = []
    network.patch_in.register_forward_hook(lambda _m, _i, out: seen.append(out))
    x, c, _ = inputs(network)
    network(x, c)
    kernel = network.patch_in.weight.unflatten(1, (3, 2, 2))
    expected = F.conv2d(x, kernel, network.patch_in.bias, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.reference
def test_equals_diffusers_with_shared_conditioning():
    from diffusers import DiTTransformer2DModel

    ours = awake(DiT(**(TINY | {"in_channels": 3}))).eval()
    theirs = DiTTransformer2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        patch_size=2,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=4,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    ).eval()
    w = ours.state_dict()
    table = {
        "pos_embed.proj.weight": w["patch_in.weight"].unflatten(1, (3, 2, 2)),
        "pos_embed.proj.bias": w["patch_in.bias"],
    }
    names = {"proj_out_1": "modulation_out", "proj_out_2": "patch_out"}
    for i, block in enumerate(theirs.transformer_blocks):
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # as in DiT itself
        a, b = f"transformer_blocks.{i}", f"blocks.{i}"
        # diffusers gives each block its own copy of what DiT shares
        table[f"{a}.norm1.emb.class_embedder.embedding_table.weight"] = w["conditioning.labels.weight"]
        names |= {
            f"{a}.norm1.emb.timestep_embedder.linear_1": "conditioning.map0",
            f"{a}.norm1.emb.timestep_embedder.linear_2": "conditioning.map1",
            f"{a}.norm1.linear": f"{b}.modulation",
            f"{a}.attn1.to_q": f"{b}.attention.q",
            f"{a}.attn1.to_k": f"{b}.attention.k",
            f"{a}.attn1.to_v": f"{b}.attention.v",
            f"{a}.attn1.to_out.0": f"{b}.attention.o",
            f"{a}.ff.net.0.proj": f"{b}.mlp.fc1",
            f"{a}.ff.net.2": f"{b}.mlp.fc2",
        }
    for theirs_name, ours_name in names.items():
        for kind in ("weight", "bias"):
            table[f"{theirs_name}.{kind}"] = w[f"{ours_name}.{kind}"]
    table["pos_embed.pos_embed"] = theirs.state_dict().get("pos_embed.pos_embed")
    theirs.load_state_dict({k: v for k, v in table.items() if v is not None})
    x, _, y = inputs(ours)
    c = torch.tensor([0.0, 3.0, 250.0, 999.0])
    expected = theirs(x, timestep=c, class_labels=y).sample
    torch.testing.assert_close(ours(x, c, y), expected, rtol=1e-4, atol=2e-4)


def test_saved_arguments_rebuild_the_network():
    network = awake(DiT(**TINY))
    twin = DiT(**json.loads(json.dumps(network.arguments)))
    twin.load_state_dict(network.state_dict())
    x, c, y = inputs(network)
    assert torch.equal(twin(x, c, y), network(x, c, y))
    assert twin.arguments == network.arguments
    assert "positions" not in network.state_dict()


def test_conditioning_matters():
    network = awake(DiT(**TINY))
    x, c, y = inputs(network)
    out = network(x, c, y)
    for other in (network(x, c, (y + 1) % 10), network(x, c + 0.5, y), network(x, c)):
        assert ((other - out).flatten(1).norm(dim=1) > 1e-5 * out.flatten(1).norm(dim=1)).all()


def test_positions_matter():
    network = awake(DiT(**TINY))
    x, c, y = inputs(network)
    moved = network(x.roll(2, dims=3), c, y)
    assert (moved.roll(-2, dims=3) - network(x, c, y)).abs().max() > 1e-2


def test_no_label_is_the_null_class_and_a_second_time_is_ignored():
    network = awake(DiT(**TINY))
    x, c, y = inputs(network)
    assert torch.equal(network(x, c), network(x, c, torch.full_like(y, 10)))
    assert torch.equal(network(x, c, y, torch.randn(4)), network(x, c, y))


def test_labels_are_ignored_without_classes():
    network = awake(DiT(**(TINY | {"num_classes": 0})))
    x, c, y = inputs(network)
    assert torch.equal(network(x, c, y), network(x, c))


def test_an_image_does_not_depend_on_its_batch():
    network = awake(DiT(**TINY))
    x, c, y = inputs(network, 6)
    alone = network(x[3:4], c[3:4], y[3:4])
    torch.testing.assert_close(network(x, c, y)[3:4], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(dropout):
    network = awake(DiT(**TINY, dropout=dropout))
    x, c, y = inputs(network)
    calls = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))

    def run(checkpointing):
        calls.clear()
        network.gradient_checkpointing = checkpointing
        network.zero_grad()
        torch.manual_seed(1)
        out = network(x, c, y)
        out.square().sum().backward()
        return out, [p.grad.clone() for p in network.parameters()], len(calls)

    plain, plain_grads, plain_calls = run(False)
    out, grads, more_calls = run(True)
    assert more_calls == 2 * plain_calls  # every block really was computed again
    assert torch.equal(out, plain)
    for grad, expected in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)


def test_dropout_acts_in_training_only():
    network = awake(DiT(**TINY, dropout=0.3))
    x, c, y = inputs(network)
    assert not torch.equal(network(x, c, y), network(x, c, y))
    network.eval()
    assert torch.equal(network(x, c, y), network(x, c, y))


def test_every_parameter_is_trained():
    network = awake(DiT(**TINY))
    x, c, y = inputs(network)
    network(x, c, y).square().sum().backward()
    # a key's bias shifts all scores of a query alike, so only rounding reaches it
    trained = {n: p.grad for n, p in network.named_parameters() if not n.endswith("k.bias")}
    assert all(grad is not None and grad.any() for grad in trained.values())


def test_bfloat16_autocast_stays_close_and_conditions_in_float32():
    network = awake(DiT(**TINY))
    x, c, y = inputs(network)
    seen = []
    network.conditioning.register_forward_hook(lambda _m, _i, out: seen.append(out))
    expected = network(x, c, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, c, y)
    assert out.dtype == torch.bfloat16
    assert torch.equal(seen[0], seen[1])
    assert (out.float() - expected).norm() < 0.03 * expected.norm()


def test_whole_network_in_bfloat16_and_float64():
    network = awake(DiT(**TINY))
    x, c, y = inputs(network)
    expected = network(x, c, y)
    precise = network.double()(x.double(), c, y)
    torch.testing.assert_close(precise.float(), expected, rtol=1e-4, atol=1e-4)
    coarse = network.bfloat16()(x.bfloat16(), c, y)
    assert (coarse.float() - expected).norm() < 0.05 * expected.norm()
