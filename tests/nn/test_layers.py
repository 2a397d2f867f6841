"""Embeddings, attention, resampling and the residual block, each against an independent oracle."""

import math

import pytest
import torch
import torch.nn.functional as F

from genflow.nn import ResidualBlock, SelfAttention, ddpm_embedding, dit_embedding, grid_embedding
from genflow.nn.layers import downsample, group_norm, nearest_sizes, upsample
from genflow.nn.unet import ImageAttention, same_size

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.reference
@pytest.mark.parametrize("width", [32, 128, 256])
def test_time_embeddings_equal_diffusers(width):
    from diffusers.models.embeddings import get_timestep_embedding

    c = torch.cat([torch.linspace(-1.6, 2.9, 31), torch.tensor([0.0, 17.0, 999.0])])
    ddpm = get_timestep_embedding(c, width, flip_sin_to_cos=False, downscale_freq_shift=1)
    dit = get_timestep_embedding(c, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    # float32 angles of up to 999 differ by their rounding, 999 * 6e-8
    torch.testing.assert_close(ddpm_embedding(c, width), ddpm, rtol=0, atol=1.2e-4)
    torch.testing.assert_close(dit_embedding(c, width), dit, rtol=0, atol=1.2e-4)
    torch.testing.assert_close(ddpm_embedding(c[:31], width), ddpm[:31], rtol=0, atol=1e-6)


@pytest.mark.parametrize("embedding", [ddpm_embedding, dit_embedding])
def test_time_embedding_is_float32_and_tells_close_times_apart(embedding):
    c = torch.tensor([1.0, 1.0 + 1e-4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        e = embedding(c, 128)
    assert e.dtype == torch.float32
    assert torch.equal(e, embedding(c, 128))
    assert (e[0] - e[1]).abs().max() > 5e-5


@pytest.mark.reference
@pytest.mark.parametrize(("width", "side"), [(64, 4), (384, 16)])
def test_grid_embedding_equals_diffusers_on_squares(width, side):
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    expected = get_2d_sincos_pos_embed(width, side, base_size=side, output_type="pt")
    torch.testing.assert_close(grid_embedding(width, side, side), expected.float())


def test_grid_embedding_of_a_rectangle_is_a_window_of_the_square():
    square = grid_embedding(32, 6, 6).unflatten(0, (6, 6))
    assert torch.equal(grid_embedding(32, 3, 5).unflatten(0, (3, 5)), square[:3, :5])
    assert torch.equal(grid_embedding(32, 6, 2).unflatten(0, (6, 2)), square[:, :2])
    column, row = square.chunk(2, dim=2)
    assert torch.equal(column[0], column[4])
    assert torch.equal(row[:, 0], row[:, 4])


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_equals_the_formula(heads):
    batch, tokens, width = 2, 7, 24
    attention = SelfAttention(width, heads)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(batch, tokens, width)
    d = width // heads
    outputs = []
    for h in range(heads):
        rows = slice(h * d, (h + 1) * d)
        q = x @ attention.q.weight[rows].T + attention.q.bias[rows]
        k = x @ attention.k.weight[rows].T + attention.k.bias[rows]
        v = x @ attention.v.weight[rows].T + attention.v.bias[rows]
        scores = torch.exp(q @ k.transpose(1, 2) / math.sqrt(d))
        outputs.append(scores / scores.sum(dim=2, keepdim=True) @ v)
    expected = torch.cat(outputs, dim=2) @ attention.o.weight.T + attention.o.bias
    torch.testing.assert_close(attention(x), expected)


def test_attention_names_its_kernels_as_separate_linears():
    linears = {n for n, m in SelfAttention(8, 2).named_modules() if isinstance(m, torch.nn.Linear)}
    assert linears == {"q", "k", "v", "o"}


def test_attention_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"heads must divide .* 5 and 24"):
        SelfAttention(24, 5)


def test_image_attention_commutes_with_a_permutation_of_pixels():
    block = ImageAttention(16, 2)
    torch.nn.init.normal_(block.attention.o.weight, std=0.3)
    x = torch.randn(2, 16, 4, 6)
    order = torch.randperm(24)
    shuffled = x.flatten(2)[:, :, order].unflatten(2, (4, 6))
    expected = block(x).flatten(2)[:, :, order].unflatten(2, (4, 6))
    torch.testing.assert_close(block(shuffled), expected)


def test_resampling_is_the_box_filter():
    x = torch.randn(2, 3, 4, 6)
    means = x.reshape(2, 3, 2, 2, 3, 2).mean(dim=(3, 5))
    torch.testing.assert_close(downsample(x), means)
    assert torch.equal(upsample(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    torch.testing.assert_close(downsample(upsample(x)), x)


def test_group_norm_follows_ddpmpp_and_allows_every_width():
    assert [group_norm(c).num_groups for c in (32, 64, 96, 128, 256, 512)] == [8, 16, 24, 32, 32, 32]
    assert [group_norm(c).num_groups for c in (2, 10, 144)] == [1, 2, 24]


@pytest.mark.parametrize("resample", [downsample, upsample])
def test_fresh_resampling_block_is_its_scaled_skip(resample):
    block = ResidualBlock(8, 8, 16, 0.0, resample=resample)
    x = torch.randn(2, 8, 4, 6)
    expected = block.skip(resample(x)) / math.sqrt(2)
    torch.testing.assert_close(block(x, torch.randn(2, 16)), expected)


def test_residual_block_keeps_unit_variance():
    block = ResidualBlock(64, 64, 16, 0.0)
    x, e = torch.randn(8, 64, 16, 16), torch.randn(8, 16)
    torch.testing.assert_close(block(x, e), x * math.sqrt(0.5))  # silent branch: x / √2
    silu_power = F.silu(torch.randn(100_000)).square().mean()
    torch.nn.init.normal_(block.conv1.weight, std=math.sqrt(1 / (9 * 64 * silu_power)))
    assert block(x, e).var().item() == pytest.approx(1.0, abs=0.08)


def test_dropout_acts_in_training_only():
    block = ResidualBlock(8, 8, 16, 0.5)
    torch.nn.init.normal_(block.conv1.weight)
    x, e = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert not torch.equal(block(x, e), block(x, e))
    block.eval()
    assert torch.equal(block(x, e), block(x, e))


@pytest.mark.reference
@pytest.mark.parametrize(
    ("channels", "resample"),
    [((8, 8), same_size), ((8, 12), same_size), ((8, 8), downsample), ((8, 8), upsample)],
)
def test_residual_block_equals_diffusers(channels, resample):
    from diffusers.models.resnet import ResnetBlock2D

    ours = ResidualBlock(*channels, 16, 0.0, resample=resample)
    torch.nn.init.normal_(ours.conv1.weight, std=0.1)
    theirs = ResnetBlock2D(
        in_channels=channels[0],
        out_channels=channels[1],
        temb_channels=16,
        groups=ours.norm0.num_groups,
        groups_out=ours.norm1.num_groups,
        eps=1e-6,
        output_scale_factor=math.sqrt(2),
        use_in_shortcut=ours.skip is not None,
        up=resample is upsample,
        down=resample is downsample,
    )
    names = {
        "norm0": "norm1",
        "norm1": "norm2",
        "conv0": "conv1",
        "conv1": "conv2",
        "affine": "time_emb_proj",
        "skip": "conv_shortcut",
    }
    weights = {}
    for name, value in ours.state_dict().items():
        module, kind = name.split(".")
        weights[f"{names[module]}.{kind}"] = value
    theirs.load_state_dict(weights)
    x, embedding = torch.randn(2, channels[0], 4, 6), torch.randn(2, 16)
    # diffusers applies the SiLU of the conditioning vector inside the block
    torch.testing.assert_close(ours(x, F.silu(embedding)), theirs(x, embedding))


def test_nearest_sizes_are_multiples_on_both_sides():
    assert nearest_sizes((30, 32), 4) == "28x32, 32x32"
    assert nearest_sizes((30, 33), 4) == "28x32, 28x36, 32x32, 32x36"
    assert nearest_sizes((3, 8), 4) == "4x8"
