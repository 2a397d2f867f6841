"""Embeddings, attention, resampling and the residual block, each against an independent oracle."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from genflow.nn import (
    AdaptiveBlock,
    FusedSelfAttention,
    ResidualBlock,
    SelfAttention,
    ddpm_embedding,
    dit_embedding,
    grid_embedding,
)
from genflow.nn.blocks import ImageAttention, InputProjection
from genflow.nn.embeddings import ADMConditioning, FourierFeatures
from genflow.nn.layers import (
    downsample,
    group_norm,
    make_downsample,
    make_upsample,
    nearest_sizes,
    same_size,
    upsample,
)

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


@pytest.mark.parametrize("scale", [16.0, 0.02])
def test_fourier_features_equal_the_formula(scale):
    features = FourierFeatures(64, scale)
    c = torch.linspace(-1.6, 2.9, 7)
    angles = 2 * math.pi * torch.outer(c.double(), features.frequencies.double())
    expected = torch.cat([angles.sin(), angles.cos()], dim=1)
    # float32 angles of up to 2π · 3 · 3 scale are rounded to 6e-8 of themselves
    torch.testing.assert_close(features(c).double(), expected, rtol=0, atol=1e-6 + 5e-6 * scale)
    assert features.frequencies.std() == pytest.approx(scale, rel=0.4)


def test_fourier_features_are_as_sensitive_as_their_scale():
    """`|de/dc|² = Σ (2π W)²`, which is (2π scale)² for each frequency on average."""
    for scale in (16.0, 0.02):
        features = FourierFeatures(256, scale)
        c = torch.tensor([0.3, 0.3 + 1e-3 / scale])
        e = features(c)
        speed = (e[1] - e[0]).norm() / (c[1] - c[0]) / math.sqrt(128)
        assert speed == pytest.approx(2 * math.pi * scale, rel=0.25)


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: torch.nn.Sequential(m).to(torch.bfloat16)[0],
        lambda m: copy.deepcopy(m).bfloat16(),
    ],
)
def test_fourier_frequencies_are_never_rounded(cast):
    features = FourierFeatures(64, 16.0)
    before = features.frequencies.clone()
    after = cast(features).state_dict()["frequencies"]
    assert after.dtype == torch.float32
    assert torch.equal(after, before)


def test_fourier_frequencies_move_between_devices():
    features = FourierFeatures(64, 16.0).to("meta")
    assert (features.frequencies.device.type, features.frequencies.dtype) == ("meta", torch.float32)
    features = features.to_empty(device="cpu")
    assert (features.frequencies.device.type, features.frequencies.dtype) == ("cpu", torch.float32)


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


def test_fused_attention_is_the_same_function_of_its_stacked_kernels():
    apart, fused = SelfAttention(24, 3), FusedSelfAttention(24, 3)
    for parameter in apart.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = apart.state_dict()
    stacked = {f"qkv.{kind}": torch.cat([state.pop(f"{c}.{kind}") for c in "qkv"]) for kind in ("weight", "bias")}
    fused.load_state_dict(state | stacked)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(fused(x), apart(x))


def test_fused_attention_starts_with_as_large_kernels():
    apart, fused = SelfAttention(256, 4), FusedSelfAttention(256, 4)
    stacked = torch.cat([apart.q.weight, apart.k.weight, apart.v.weight])
    torch.testing.assert_close(fused.qkv.weight.std(), stacked.std(), rtol=0.01, atol=0)
    assert fused.qkv.weight.abs().max() <= math.sqrt(6 / (4 * 256))


@pytest.mark.parametrize("attention", [SelfAttention, FusedSelfAttention])
def test_attention_refuses_heads_that_do_not_divide(attention):
    with pytest.raises(ValueError, match=r"heads must divide .* 5 and 24"):
        attention(24, 5)


def test_image_attention_commutes_with_a_permutation_of_pixels():
    block = ImageAttention(16, 2)
    torch.nn.init.normal_(block.attention.o.weight, std=0.3)
    x = torch.randn(2, 16, 4, 6)
    order = torch.randperm(24)
    shuffled = x.flatten(2)[:, :, order].unflatten(2, (4, 6))
    expected = block(x).flatten(2)[:, :, order].unflatten(2, (4, 6))
    torch.testing.assert_close(block(shuffled), expected)


def test_image_attention_starts_faint():
    """Its kernels as one kernel of C to 3C channels with gain √0.2, uniform within √(0.2 · 6 / 4C); silent at first."""
    attention = ImageAttention(64, 2).attention
    for linear in (attention.q, attention.k, attention.v):
        assert 0.95 * math.sqrt(1.2 / 256) < linear.weight.abs().max() <= math.sqrt(1.2 / 256)
        assert linear.weight.std().item() == pytest.approx(math.sqrt(0.4 / 256), rel=0.03)
        assert not linear.bias.any()
    assert not attention.o.weight.any()
    assert not attention.o.bias.any()


def test_adm_conditioning_starts_with_unit_labels_and_without_augmentation():
    conditioning = ADMConditioning(32, 128, 50, augment_dim=9)
    table = conditioning.labels.weight
    assert table[:-1].std().item() == pytest.approx(1, rel=0.03)
    assert table[:-1].abs().max() > 3  # normal, not uniform
    assert not table[-1].any()
    assert conditioning.time.augment.weight.shape == (32, 9)
    assert not conditioning.time.augment.weight.any()


def test_resampling_is_the_box_filter():
    x = torch.randn(2, 3, 4, 6)
    means = x.reshape(2, 3, 2, 2, 3, 2).mean(dim=(3, 5))
    torch.testing.assert_close(downsample(x), means)
    assert torch.equal(upsample(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    torch.testing.assert_close(downsample(upsample(x)), x)


FILTERS = [(1, 3, 3, 1), (1, 5, 10, 10, 5, 1), (2, 1, 1, 2)]


@pytest.mark.parametrize("weights", FILTERS)
def test_fir_downsampling_is_a_matrix_on_each_axis(weights):
    """`D[i, 2i + k - p] = f_k / sum f`, nothing beyond the border; halving is D x Dᵀ, doubling (2Dᵀ) x (2D)."""

    def matrix(side):
        d = torch.zeros(side // 2, side)
        for i in range(side // 2):
            for k, weight in enumerate(weights):
                j = 2 * i + k - (len(weights) // 2 - 1)
                if 0 <= j < side:
                    d[i, j] = weight / sum(weights)
        return d

    rows, columns = matrix(12), matrix(8)
    large, small = torch.randn(2, 3, 12, 8), torch.randn(2, 3, 6, 4)
    torch.testing.assert_close(make_downsample(weights)(large), rows @ large @ columns.T)
    torch.testing.assert_close(make_upsample(weights)(small), 4 * rows.T @ small @ columns)


@pytest.mark.parametrize("weights", [(1, 1), *FILTERS])
def test_doubling_is_four_times_the_transpose_of_halving(weights):
    large, small = torch.randn(2, 3, 12, 8), torch.randn(2, 3, 6, 4)
    one = (make_downsample(weights)(large) * small).sum()
    torch.testing.assert_close((large * make_upsample(weights)(small)).sum(), 4 * one)


@pytest.mark.parametrize("weights", FILTERS[:2])
def test_fir_filters_keep_constants_away_from_the_border_and_their_kernels_are_not_saved(weights):
    halve, double = make_downsample(weights), make_upsample(weights)
    border = len(weights)
    for out in (halve(torch.ones(1, 2, 32, 32)), double(torch.ones(1, 2, 32, 32))):
        inside = out[..., border:-border, border:-border]
        torch.testing.assert_close(inside, torch.ones_like(inside))
    assert not halve.state_dict()
    assert not double.state_dict()
    assert halve(torch.randn(1, 2, 4, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("weights", [(1, 1), (3, 3)])
def test_two_equal_weights_take_the_short_path(weights):
    assert make_downsample(weights) is downsample
    assert make_upsample(weights) is upsample


@pytest.mark.parametrize("weights", [(), (1,), (1, 2, 1), (1, 2), (1, 3, 2, 1), (1, 0, 0, 1), (-1, 3, 3, -1)])
@pytest.mark.parametrize("make", [make_downsample, make_upsample])
def test_filters_that_move_the_image_are_refused(make, weights):
    with pytest.raises(ValueError, match=r"even number of positive weights .* got \("):
        make(weights)


def test_group_norm_follows_ddpmpp_and_allows_every_width():
    assert [group_norm(c).num_groups for c in (32, 64, 96, 128, 256, 512)] == [8, 16, 24, 32, 32, 32]
    assert [group_norm(c).num_groups for c in (2, 10, 144)] == [1, 2, 24]


@pytest.mark.parametrize("resample", [downsample, upsample])
def test_fresh_resampling_block_is_its_scaled_skip(resample):
    block = ResidualBlock(8, 8, 16, 0.0, resample=resample)
    x = torch.randn(2, 8, 4, 6)
    expected = block.skip(resample(x)) / math.sqrt(2)
    torch.testing.assert_close(block(x, torch.randn(2, 16)), expected)


@pytest.mark.parametrize("resample", [same_size, downsample, upsample, make_downsample((1, 3, 3, 1))])
def test_fresh_adaptive_block_is_its_resampled_input(resample):
    block = AdaptiveBlock(8, 8, 16, 0.0, resample=resample, attention_heads=2)
    x = torch.randn(2, 8, 4, 6)
    assert block.skip is None
    assert torch.equal(block(x, torch.randn(2, 16)), resample(x))


def test_adaptive_block_equals_the_formula():
    block = AdaptiveBlock(8, 12, 16, 0.0)
    torch.nn.init.normal_(block.conv1.weight, std=0.1)
    x, e = torch.randn(2, 8, 4, 6), torch.randn(2, 16)

    def norm(x, groups):  # gains 1, biases 0
        y = x.unflatten(1, (groups, -1)).flatten(2)
        y = (y - y.mean(2, keepdim=True)) / (y.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return y.reshape(x.shape)

    def silu(x):
        return x / (1 + torch.exp(-x))

    affine = e @ block.affine.weight.T + block.affine.bias
    scale, shift = affine[:, :12, None, None], affine[:, 12:, None, None]
    h = norm(block.conv0(silu(norm(x, 2))), 3)
    torch.testing.assert_close(block(x, e), block.skip(x) + block.conv1(silu(h * (1 + scale) + shift)))


def test_adaptive_kernels_start_uniform_within_one_over_root_fan_in():
    block = AdaptiveBlock(32, 64, 48, 0.0, attention_heads=1)
    kernels = {block.conv0: 9 * 32, block.affine: 48, block.skip: 32}
    kernels |= dict.fromkeys((block.attention.attention.q, block.attention.attention.v), 64)
    for module, fan_in in kernels.items():
        for tensor in (module.weight, module.bias):
            assert tensor.abs().max() <= fan_in**-0.5
            assert tensor.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.25)
    assert not block.conv1.weight.any()
    assert not block.attention.attention.o.weight.any()


@pytest.mark.parametrize("weights", [(1, 1), (1, 3, 3, 1)])
def test_input_projection_convolves_with_both_kernels_at_once(weights):
    """Convolving, then filtering every second pixel, is one convolution with the two kernels' product."""
    project = InputProjection(3, 8, weights)
    torch.nn.init.normal_(project.conv.bias)
    h, carried = torch.randn(2, 8, 4, 6), torch.randn(2, 3, 8, 12)
    f = torch.tensor(weights).float() / sum(weights)
    kernel = F.conv_transpose2d(project.conv.weight.flatten(0, 1)[:, None], torch.outer(f, f)[None, None])
    kernel = kernel.unflatten(0, (8, 3))[:, :, 0]
    added = F.conv2d(carried, kernel, project.conv.bias, stride=2, padding=len(weights) // 2)
    torch.testing.assert_close(project(h, carried), (h + added) / math.sqrt(2), rtol=1e-4, atol=1e-5)


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
