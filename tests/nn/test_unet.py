"""The U-Net: exact size, silent start, conditioning, checkpointing, precision, refusals."""

import json

import pytest
import torch

from genflow.denoiser import Denoiser
from genflow.nn import UNet, unet_preset
from genflow.nn.blocks import AdaptiveBlock, ImageAttention, InputProjection, ResidualBlock
from genflow.parameterizations import Karras
from genflow.schedules import VE

torch.set_num_threads(1)
TINY = {
    "image_size": (8, 8),
    "in_channels": 1,
    "num_classes": 10,
    "width": 32,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
}
FORMS = {
    "ddpm++": {},
    "ncsn++": {"fourier_scale": 16.0, "resample_filter": (1, 3, 3, 1), "residual_encoder": True},
    "adm": {"adaptive_norm": True, "head_channels": 16, "decoder_attention": "every"},
    # pieces that no published network has together
    "mixed": {"adaptive_norm": True, "fourier_scale": 0.02, "residual_encoder": True, "augment_dim": 3},
}
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def awake(network):
    """Give random values to everything that starts at zero, so that all branches speak."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def inputs(network, batch=4):
    x = torch.randn(batch, network.in_channels, *network.image_size)
    return x, torch.randn(batch), torch.randint(0, 10, (batch,))


def size(**arguments):
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(**arguments).parameters())


def test_parameter_counts():
    """55.7 M is what EDM reports for DDPM++ on CIFAR-10 (its augmentation input adds 9 x 128)."""
    edm = size(image_size=(32, 32), in_channels=3)
    assert edm == 55_732_739
    assert size(image_size=(32, 32), in_channels=3, num_classes=10) == edm + 11 * 128
    assert size(**TINY) == 749_089


def test_parameter_counts_of_the_published_networks():
    """As the authors' code counts them, with EDM's 9 augmentation labels; ADM's table has no null row there."""
    aug = {"in_channels": 3, "augment_dim": 9}
    small, large = {"image_size": (32, 32), **aug}, {"image_size": (64, 64), **aug}
    assert size(**unet_preset("ddpm++"), **small) == 55_733_891
    assert size(**unet_preset("ncsn++"), **small) == 56_397_827
    assert size(**unet_preset("ncsn++"), **small, num_classes=10) == 56_400_643
    assert size(**(unet_preset("ncsn++") | {"multipliers": (1, 2, 2, 2)}), **large) == 62_761_091
    assert size(**unet_preset("adm"), image_size=(64, 64), in_channels=3, num_classes=1000) == 295_899_267 + 768


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match=r"ddpm\+\+, ncsn\+\+ and adm; got 'vdm'"):
        unet_preset("vdm")


def test_defaults_are_ddpmpp_and_older_folders_load():
    """Arguments that a folder saved before they existed lacks mean DDPM++, and add no weights."""
    network = UNet(**TINY)
    explicit = UNet(**TINY, fourier_scale=0.0, resample_filter=(1, 1), residual_encoder=False, adaptive_norm=False)
    assert network.arguments == explicit.arguments
    parts = {key.split(".")[0] for key in network.state_dict()}
    assert parts == {"conditioning", "conv_in", "encoder", "entries", "decoder", "norm_out", "conv_out"}
    inner = {key.split(".")[1] for key in network.state_dict() if key.startswith("conditioning")}
    assert inner == {"labels", "map0", "map1"}


def test_attention_is_where_adm_has_it():
    with torch.device("meta"):
        network = UNet(image_size=(64, 64), in_channels=3, **unet_preset("adm"))
    heads = {n: m.attention.heads for n, m in network.named_modules() if isinstance(m, ImageAttention)}
    levels = {1: 384, 2: 576, 3: 768}  # 32, 16 and 8 pixels
    expected = {f"encoder.{4 * level + k - 1}.attention": c // 64 for level, c in levels.items() for k in (1, 2, 3)}
    expected |= {"entries.0.0.attention": 12}
    expected |= {f"decoder.{3 - level}.{k}.attention": c // 64 for level, c in levels.items() for k in range(4)}
    assert heads == expected


def test_attention_is_where_ddpmpp_has_it():
    with torch.device("meta"):
        network = UNet(image_size=(32, 32), in_channels=3)
    places = [n for n, m in network.named_modules() if isinstance(m, ImageAttention)]
    # level 1 (16x16) of the encoder: all 4 blocks after its first, which halves; the first middle
    # block; the last decoder block of the 16x16 level
    assert places == [f"encoder.{i}.attention" for i in (5, 6, 7, 8)] + [
        "entries.0.0.attention",
        "decoder.1.4.attention",
    ]


@every_form
@pytest.mark.parametrize("image_size", [(8, 8), (28, 28), (32, 48), (4, 12)])
def test_fresh_output_is_zero_and_has_the_input_shape(image_size, form):
    arguments = {"width": 16, "multipliers": (1, 1, 2), "blocks": 1, "attention": (7, 8)} | FORMS[form]
    network = UNet(image_size=image_size, in_channels=2, **arguments)
    x, c, _ = inputs(network, 2)
    out = network(x, c)
    assert out.shape == x.shape
    assert not out.any()
    assert awake(network)(x, c).std() > 1e-3


@pytest.mark.parametrize(
    ("image_size", "levels", "parts"),
    [
        ((30, 32), 3, ["30x32", "divisible by 4", "28x32, 32x32", "at most 2 levels"]),
        ((28, 28), 4, ["28x28", "divisible by 8", "24x24, 24x32, 32x24, 32x32", "at most 3 levels"]),
        ((9, 8), 2, ["9x8", "divisible by 2", "8x8, 10x8", "at most 1 level."]),
    ],
)
def test_refused_sizes_name_good_ones(image_size, levels, parts):
    with pytest.raises(ValueError, match="cannot be halved") as error:
        UNet(image_size=image_size, in_channels=1, multipliers=(1,) * levels)
    assert all(part in str(error.value) for part in parts)
    good = parts[2].split(", ")[0].split("x")
    size(image_size=[int(side) for side in good], in_channels=1, multipliers=(1,) * levels)
    most = int(parts[3].split()[2])
    size(image_size=image_size, in_channels=1, multipliers=(1,) * most)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 33}, "width must be even"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"heads": 5}, "heads must divide"),
        ({"num_classes": -1}, "num_classes must be at least 0"),
        ({"multipliers": ()}, "multipliers must be positive"),
        ({"image_size": (8,)}, "image_size must be"),
        ({"fourier_scale": -1.0}, r"fourier_scale must be 0 or a positive number, got -1\.0"),
        ({"fourier_scale": float("inf")}, "fourier_scale must be"),
        ({"fourier_scale": float("nan")}, "fourier_scale must be"),
        ({"resample_filter": (1, 2, 1)}, r"even number of positive weights .* got \(1, 2, 1\)"),
        ({"resample_filter": ()}, "resample_filter must be"),
        ({"head_channels": -1}, "head_channels must be at least 0"),
        ({"head_channels": 24}, "head_channels must divide the channels .* got 24 and 64"),
        ({"head_channels": 128}, "head_channels must divide the channels .* got 128 and 64"),
        ({"decoder_attention": "first"}, 'decoder_attention must be "last" or "every", got \'first\''),
        ({"augment_dim": -1}, "augment_dim must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        UNet(**(TINY | wrong))


def test_images_of_another_shape_are_refused():
    network = UNet(**TINY)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(2, 3, 8, 8\)"):
        network(torch.randn(2, 3, 8, 8), torch.randn(2))


@every_form
def test_saved_arguments_rebuild_the_network(form):
    network = awake(UNet(**TINY, **FORMS[form])).eval()
    assert network.arguments.keys() >= TINY.keys() | {"dropout", "heads", "embedding_multiplier"} | FORMS[form].keys()
    twin = UNet(**json.loads(json.dumps(network.arguments))).eval()
    twin.load_state_dict(network.state_dict())
    x, c, y = inputs(network)
    assert torch.equal(twin(x, c, y), network(x, c, y))
    assert twin.arguments == network.arguments


@every_form
def test_conditioning_matters(form):
    network = awake(UNet(**TINY, **FORMS[form])).eval()
    x, c, y = inputs(network)
    out = network(x, c, y)
    for other in (network(x, c, (y + 1) % 10), network(x, c + 0.5, y), network(x, c)):
        assert ((other - out).flatten(1).norm(dim=1) > 1e-3 * out.flatten(1).norm(dim=1)).all()


@every_form
def test_no_label_is_the_null_class_and_a_second_time_is_ignored(form):
    network = awake(UNet(**TINY, **FORMS[form])).eval()
    x, c, y = inputs(network)
    assert torch.equal(network(x, c), network(x, c, torch.full_like(y, 10)))
    assert torch.equal(network(x, c, y, torch.randn(4)), network(x, c, y))


def test_labels_are_ignored_without_classes():
    network = awake(UNet(**(TINY | {"num_classes": 0}))).eval()
    x, c, y = inputs(network)
    assert torch.equal(network(x, c, y), network(x, c))


def test_augmentation_labels_are_a_linear_shift_of_what_the_mapping_network_reads():
    network = awake(UNet(**TINY, augment_dim=3)).eval()
    x, c, y = inputs(network)
    augment = torch.randn(4, 3)
    out = network(x, c, y, augment=augment)
    assert torch.equal(network(x, c, y), network(x, c, y, augment=torch.zeros(4, 3)))
    assert ((out - network(x, c, y)).flatten(1).norm(dim=1) > 1e-3 * out.flatten(1).norm(dim=1)).all()
    read = []
    network.conditioning.map0.register_forward_pre_hook(lambda _m, given: read.append(given[0]))
    network(x, c, y)
    network(x, c, y, augment=augment)
    torch.testing.assert_close(read[1] - read[0], augment @ network.conditioning.time.augment.weight.T)


@pytest.mark.parametrize(
    ("augment_dim", "shape"), [(0, (4, 9)), (9, (4, 8)), (9, (3, 9)), (9, (9,)), (9, (1, 9)), (9, (4, 9, 1))]
)
def test_augmentation_labels_of_another_shape_are_refused(augment_dim, shape):
    network = UNet(**TINY, augment_dim=augment_dim)
    x, c, y = inputs(network)
    with pytest.raises(
        ValueError, match=rf"augment_dim={augment_dim} and got augmentation labels of shape \({shape[0]},"
    ):
        network(x, c, y, augment=torch.randn(shape))


def test_the_image_enters_at_every_lower_resolution():
    """With the encoder's own way closed, a residual encoder still sees the image, halved twice."""
    arguments = TINY | {"multipliers": (1, 1, 2), "residual_encoder": True, "attention": ()}
    network = awake(UNet(**arguments)).eval()
    places = {name: m for name, m in network.projections.items() if isinstance(m, InputProjection)}
    assert list(places) == ["1", "3"]  # after the blocks that halve, before the two of their level
    x, c, y = inputs(network)
    network.conv_in.weight.data.zero_()
    assert (network(x, c, y) - network(-x, c, y)).abs().max() > 1e-3
    places["1"].conv.weight.data.zero_()
    torch.testing.assert_close(network(x, c, y), network(-x, c, y))


def test_an_image_does_not_depend_on_its_batch():
    network = awake(UNet(**TINY)).eval()
    x, c, y = inputs(network, 6)
    alone = network(x[3:4], c[3:4], y[3:4])
    torch.testing.assert_close(network(x, c, y)[3:4], alone, rtol=0, atol=1e-5)


@every_form
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(dropout, form):
    network = awake(UNet(**(TINY | {"dropout": dropout, "augment_dim": 2} | FORMS[form])))
    x, c, y = inputs(network)
    calls = []
    for module in network.modules():
        if isinstance(module, ResidualBlock | AdaptiveBlock):
            module.register_forward_pre_hook(lambda *_: calls.append(1))

    def run(checkpointing):
        calls.clear()
        network.gradient_checkpointing = checkpointing
        network.zero_grad()
        torch.manual_seed(1)
        out = network(x, c, y, augment=torch.ones(4, network.arguments["augment_dim"]))
        out.square().sum().backward()
        return out, [p.grad.clone() for p in network.parameters()], len(calls)

    plain, plain_grads, plain_calls = run(False)
    out, grads, more_calls = run(True)
    assert more_calls == 2 * plain_calls  # every block really was computed again
    assert torch.equal(out, plain)
    for grad, expected in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)


@every_form
def test_every_parameter_is_trained(form):
    network = awake(UNet(**(TINY | FORMS[form] | {"augment_dim": 2})))
    x, c, y = inputs(network)
    network(x, c, y, augment=torch.randn(4, 2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@every_form
def test_bfloat16_autocast_stays_close_and_conditions_in_float32(form):
    network = awake(UNet(**TINY, **FORMS[form])).eval()
    x, c, y = inputs(network)
    seen = []
    network.conditioning.register_forward_hook(lambda _m, _i, out: seen.append(out))
    expected = network(x, c, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, c, y)
    assert out.dtype == torch.bfloat16
    assert torch.equal(seen[0], seen[1])
    assert (out.float() - expected).norm() < 0.03 * expected.norm()


@every_form
def test_whole_network_in_bfloat16_and_float64(form):
    network = awake(UNet(**TINY, **FORMS[form])).eval()
    x, c, y = inputs(network)
    expected = network(x, c, y)
    precise = network.double()(x.double(), c, y)
    torch.testing.assert_close(precise.float(), expected, rtol=1e-4, atol=1e-5)
    coarse = network.bfloat16()(x.bfloat16(), c, y)
    assert (coarse.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fourier_frequencies_survive_loading_in_half_precision(tmp_path, dtype):
    network = UNet(**TINY, **FORMS["ncsn++"])
    Denoiser(network, VE(), Karras(), image_shape=(1, 8, 8), num_classes=10).save_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path, dtype=dtype)
    time = loaded.backbone.conditioning.time
    assert loaded.backbone.conv_in.weight.dtype == dtype
    assert torch.equal(time.fourier.frequencies, network.conditioning.time.fourier.frequencies)
    c = torch.randn(5)
    assert torch.equal(time(c, None), network.conditioning.time(c, None))
