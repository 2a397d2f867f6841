"""The U-Net: exact size, silent start, conditioning, checkpointing, precision, refusals."""

import json

import pytest
import torch

from genflow.nn import UNet
from genflow.nn.unet import ImageAttention, ResidualBlock

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


@pytest.mark.parametrize("image_size", [(8, 8), (28, 28), (32, 48), (4, 12)])
def test_fresh_output_is_zero_and_has_the_input_shape(image_size):
    network = UNet(image_size=image_size, in_channels=2, width=16, multipliers=(1, 1, 2), blocks=1, attention=(7, 8))
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
    ],
)
def test_bad_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        UNet(**(TINY | wrong))


def test_images_of_another_shape_are_refused():
    network = UNet(**TINY)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(2, 3, 8, 8\)"):
        network(torch.randn(2, 3, 8, 8), torch.randn(2))


def test_saved_arguments_rebuild_the_network():
    network = awake(UNet(**TINY)).eval()
    assert network.arguments.keys() >= TINY.keys() | {"dropout", "heads", "embedding_multiplier"}
    twin = UNet(**json.loads(json.dumps(network.arguments))).eval()
    twin.load_state_dict(network.state_dict())
    x, c, y = inputs(network)
    assert torch.equal(twin(x, c, y), network(x, c, y))
    assert twin.arguments == network.arguments


def test_conditioning_matters():
    network = awake(UNet(**TINY)).eval()
    x, c, y = inputs(network)
    out = network(x, c, y)
    for other in (network(x, c, (y + 1) % 10), network(x, c + 0.5, y), network(x, c)):
        assert ((other - out).flatten(1).norm(dim=1) > 1e-3 * out.flatten(1).norm(dim=1)).all()


def test_no_label_is_the_null_class_and_a_second_time_is_ignored():
    network = awake(UNet(**TINY)).eval()
    x, c, y = inputs(network)
    assert torch.equal(network(x, c), network(x, c, torch.full_like(y, 10)))
    assert torch.equal(network(x, c, y, torch.randn(4)), network(x, c, y))


def test_labels_are_ignored_without_classes():
    network = awake(UNet(**(TINY | {"num_classes": 0}))).eval()
    x, c, y = inputs(network)
    assert torch.equal(network(x, c, y), network(x, c))


def test_an_image_does_not_depend_on_its_batch():
    network = awake(UNet(**TINY)).eval()
    x, c, y = inputs(network, 6)
    alone = network(x[3:4], c[3:4], y[3:4])
    torch.testing.assert_close(network(x, c, y)[3:4], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(dropout):
    network = awake(UNet(**(TINY | {"dropout": dropout})))
    x, c, y = inputs(network)
    calls = []
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_pre_hook(lambda *_: calls.append(1))

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


def test_every_parameter_is_trained():
    network = awake(UNet(**TINY))
    x, c, y = inputs(network)
    network(x, c, y).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_bfloat16_autocast_stays_close_and_conditions_in_float32():
    network = awake(UNet(**TINY)).eval()
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
    network = awake(UNet(**TINY)).eval()
    x, c, y = inputs(network)
    expected = network(x, c, y)
    precise = network.double()(x.double(), c, y)
    torch.testing.assert_close(precise.float(), expected, rtol=1e-4, atol=1e-5)
    coarse = network.bfloat16()(x.bfloat16(), c, y)
    assert (coarse.float() - expected).norm() < 0.05 * expected.norm()
