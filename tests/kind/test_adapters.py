"""What KIND is compared with: methods that start as the dense network, train what they say, and become dense again."""

import copy

import pytest
import torch
from torch import nn

from genflow.adapters import adapt, merged
from genflow.config_adapters import (
    BitFitConfig,
    ClassLoRAConfig,
    DoRAConfig,
    FineTuningConfig,
    IA3Config,
    LoHaConfig,
    LoRAConfig,
    OFTConfig,
    PiSSAConfig,
    TruncationConfig,
)
from genflow.denoiser import Denoiser
from genflow.kind import Decomposed
from genflow.kind.class_lora import ClassLoRA, class_lora, merge_class
from genflow.nn import DiT, UNet, dit_preset
from genflow.parameterizations import Karras
from genflow.schedules import VE
from genflow.training.ema import EMA

DIT = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, **dit_preset("tiny")}
UNET = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, "width": 16, "multipliers": (1, 2), "blocks": 1}
NEW = 3
METHODS = {
    "FineTuning": FineTuningConfig(),
    "BitFit": BitFitConfig(),
    "LoRA": LoRAConfig(rank=3, alpha=6),
    "PiSSA": PiSSAConfig(rank=3),
    "DoRA": DoRAConfig(rank=3, alpha=3),
    "LoHa": LoHaConfig(rank=2, alpha=2),
    "OFT": OFTConfig(block_size=8),
    "IA3": IA3Config(),
    "ClassLoRA": ClassLoRAConfig(rank=2, alpha=3),
    "Truncation": TruncationConfig(tailor_rank=2),
}
BESIDE = [name for name in METHODS if name not in ("FineTuning", "BitFit", "Truncation")]  # W is added to or turned


def backbone(which="dit"):
    """A network in which everything that starts at 0 speaks."""
    network = DiT(**DIT) if which == "dit" else UNet(**UNET, attention=(8, 4), dropout=0.0)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def inputs():
    return torch.randn(6, 1, 8, 8), torch.randn(6), torch.tensor([0, 1, 2, 3, 1, 2])


def trained(network):
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def steps(network, count=3):
    """Train on anything."""
    optimizer = torch.optim.AdamW(trained(network).values(), lr=1e-2, weight_decay=0.0)
    x, c, y = inputs()
    for _ in range(count):
        optimizer.zero_grad()
        (network(x, c, y) - x).square().sum().backward()
        optimizer.step()


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.mark.parametrize("which", ["dit", "unet"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "Truncation"])
def test_at_first_every_new_class_is_what_no_class_was(name, which):
    dense = backbone(which)
    x, c, y = inputs()
    with torch.no_grad():
        expected = dense(x, c)
        for labels in (y, None):
            torch.testing.assert_close(
                adapt(dense, METHODS[name], NEW)(x, c, labels),
                expected,
                rtol=1e-6,
                atol=1e-6 * float(expected.abs().max()),
            )


def test_pissa_parts_a_kernel_into_its_largest_components_and_the_rest():
    dense = backbone()
    layer = adapt(dense, METHODS["PiSSA"], NEW).get_submodule("blocks.1.mlp.fc1")
    kernel = dense.get_submodule("blocks.1.mlp.fc1").weight
    b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    torch.testing.assert_close(layer.base_layer.weight + b @ a, kernel, rtol=0, atol=1e-6)
    sigma = torch.linalg.svdvals(kernel)
    torch.testing.assert_close(torch.linalg.svdvals(b @ a)[:3], sigma[:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.linalg.svdvals(layer.base_layer.weight)[:5], sigma[3:8], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((b.T @ b).diagonal(), sigma[:3], rtol=1e-5, atol=1e-6)
    counts = [sum(p.numel() for p in trained(adapt(dense, METHODS[m], NEW)).values()) for m in ("PiSSA", "LoRA")]
    assert counts[0] == counts[1]


def test_truncation_keeps_the_largest_components_of_what_was_trained():
    dense = backbone()
    model = adapt(dense, TruncationConfig(learngenes=0.25, tailor_rank=2), NEW)
    assert isinstance(model, Decomposed)
    for name, linear in model.linears().items():
        u, sigma, v = torch.linalg.svd(dense.get_submodule(name).weight.detach(), full_matrices=False)
        torch.testing.assert_close(linear.kernel(), u[:, :16] * sigma[:16] @ v[:16], rtol=0, atol=1e-5)
        assert linear.tailor_u.shape[::2] == (NEW, 2)


class Fused(nn.Module):
    """The kernels of a DiT whose q, k and v are one, and its modulation: what published counts are of."""

    def __init__(self, name):
        super().__init__()
        width, depth = dit_preset(name)["width"], dit_preset(name)["depth"]
        shapes = {"qkv": (width, 3 * width), "o": (width, width), "fc1": (width, 4 * width), "fc2": (4 * width, width)}
        shapes["modulation"] = (width, 6 * width)
        self.blocks = nn.ModuleList(nn.ModuleDict({k: nn.Linear(*v) for k, v in shapes.items()}) for _ in range(depth))


KERNELS = r".*\.(qkv|o|fc1|fc2)"


@pytest.mark.parametrize(
    ("config", "base", "large"),
    [
        (LoRAConfig(rank=1, alpha=1, linears=KERNELS), 147_456, 393_216),
        (DoRAConfig(rank=1, alpha=1, linears=KERNELS), 147_456 + 82_944, 393_216 + 221_184),
        (LoHaConfig(rank=1, alpha=1, linears=KERNELS), 294_912, 786_432),
        (OFTConfig(block_size=32, linears=KERNELS), 999_936, 2_666_496),
        (BitFitConfig(), 138_240, 368_640),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_trained_parameters_of_published_sizes(config, base, large):
    for name, count in (("B", base), ("L", large)):
        with torch.device("meta"):
            network = Fused(name)
        assert sum(p.numel() for p in trained(adapt(network, config, NEW)).values()) == count


@pytest.mark.parametrize("name", ["B", "L"])
def test_trained_parameters_of_our_transformers(name):
    """With q, k and v apart LoRA has 18 numbers a unit of width, block and rank; each class has a label row."""
    width, depth = dit_preset(name)["width"], dit_preset(name)["depth"]
    with torch.device("meta"):
        network = DiT(image_size=(32, 32), in_channels=4, num_classes=10, **dit_preset(name))
    everything = sum(p.numel() for p in network.parameters())
    blocks = depth * width
    counts = {
        IA3Config(): 6 * blocks,
        LoRAConfig(rank=2, alpha=2): 2 * 18 * blocks,
        DoRAConfig(rank=2, alpha=2): (2 * 18 + 9) * blocks,
        ClassLoRAConfig(rank=4, alpha=4): NEW * 4 * 18 * blocks,
        BitFitConfig(biases=r"blocks\..*"): 15 * blocks,
        FineTuningConfig(): everything - 11 * width + width,  # and the row of "no class"
        TruncationConfig(tailor_rank=4): NEW * 4 * depth * (18 * width + 6),
    }
    for config, count in counts.items():
        found = sum(p.numel() for p in trained(adapt(network, config, NEW)).values())
        assert found == count + NEW * width, config


@pytest.mark.parametrize("which", ["dit", "unet"])
def test_training_changes_what_a_method_says_and_nothing_else(method, which):
    network = adapt(backbone(which), method, NEW)
    before = copy.deepcopy(network.state_dict())
    steps(network)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(trained(network))
    rows = {name for name in changed if name.endswith("labels.rows")}
    own = {
        "FineTuning": "",
        "BitFit": "bias",
        "IA3": "ia3_l.default",
        "Truncation": "tailor_",
        "LoHa": "hada_",
        "OFT": "oft_R",
    }.get(method.type, "lora_")
    assert all(own in name for name in changed - rows)
    assert len(rows) == (method.type != "FineTuning")


@pytest.mark.parametrize("which", ["dit", "unet"])
def test_merged_it_is_a_dense_network_and_computes_the_same(method, which, tmp_path):
    network = adapt(backbone(which), method, NEW)
    steps(network)
    network.eval()
    denoiser = Denoiser(merged(network).eval(), VE(), Karras(), image_shape=(1, 8, 8), num_classes=NEW)
    denoiser.save_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path).backbone
    x, c, y = inputs()
    with torch.no_grad():
        for labels in (y, None):
            torch.testing.assert_close(loaded(x, c, labels), network(x, c, labels), rtol=1e-4, atol=1e-4)
    if method.type not in ("ClassLoRA", "Truncation"):
        fresh = (
            DiT(**DIT | {"num_classes": NEW})
            if which == "dit"
            else UNet(**UNET | {"num_classes": NEW}, attention=(8, 4))
        )
        assert [(n, type(m)) for n, m in loaded.named_modules()] == [(n, type(m)) for n, m in fresh.named_modules()]
        assert all(p.requires_grad for p in merged(network).parameters())


def test_the_average_of_an_adapted_network_is_its_own(method):
    denoiser = Denoiser(adapt(backbone(), method, NEW), VE(), Karras(), image_shape=(1, 8, 8), num_classes=NEW)
    average = EMA(denoiser, halflife=1000.0, rampup=0.0)
    x, t, y = torch.randn(6, 1, 8, 8), torch.tensor(1.0), inputs()[2]
    with torch.no_grad():
        before = denoiser.denoise(x, t, y)
        torch.testing.assert_close(average.denoiser.denoise(x, t, y), before, rtol=0, atol=1e-5)
    steps(denoiser.backbone)
    with torch.no_grad():
        torch.testing.assert_close(average.denoiser.denoise(x, t, y), before, rtol=0, atol=1e-5)
        average.update(6, 6)
        assert not torch.equal(average.denoiser.denoise(x, t, y), before)


def awake_updates(network):
    for linear in network.linears().values():
        nn.init.normal_(linear.lora_b, std=0.1)
    return network


def test_a_class_trains_its_own_update_alone():
    network = awake_updates(adapt(backbone(), METHODS["ClassLoRA"], NEW))
    x, c, _ = inputs()
    network(x, c, torch.full((6,), 2)).square().sum().backward()
    for linear in network.linears().values():
        for part in (linear.lora_a, linear.lora_b):
            assert part.grad[2].any()
            assert not part.grad[:2].any()
        assert linear.weight.grad is None
    alone = [part.lora_b.grad.clone() for part in network.linears().values()]
    network.zero_grad()
    mixed = network(torch.cat([x, x, x]), c.repeat(3), torch.tensor([2] * 6 + [0] * 6 + [NEW] * 6))
    mixed.square().sum().backward()
    for part, expected in zip(network.linears().values(), alone, strict=True):
        torch.testing.assert_close(part.lora_b.grad[2], expected[2], rtol=1e-4, atol=1e-3)
        assert part.lora_b.grad[0].any()
        assert not part.lora_b.grad[1].any()


def test_each_class_is_a_network_with_one_merged_lora():
    """The one that peft merges, with the same A and B."""
    dense = backbone()
    network = awake_updates(adapt(dense, METHODS["ClassLoRA"], NEW)).eval()
    x, c, y = inputs()
    with torch.no_grad():
        together = network(x, c, y)
        for label in (0, 1, 2):
            shared = adapt(dense, LoRAConfig(rank=2, alpha=3), NEW)
            for name, linear in network.linears().items():
                layer = shared.get_submodule(name)
                layer.lora_A["default"].weight.copy_(linear.lora_a[label])
                layer.lora_B["default"].weight.copy_(linear.lora_b[label])
            labels = torch.full_like(y, label)
            alone = merged(shared).eval()(x, c, labels)
            own = merge_class(network, label)
            assert [(n, type(m)) for n, m in own.named_modules()] == [(n, type(m)) for n, m in dense.named_modules()]
            torch.testing.assert_close(network(x, c, labels), alone, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(own(x, c, labels), alone, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together[y == label], alone[y == label], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network(x, c), dense(x, c), rtol=0, atol=1e-5)
        torch.testing.assert_close(merge_class(network, NEW)(x, c), dense(x, c), rtol=0, atol=1e-5)


def test_a_lora_for_each_class_recomputes_under_its_own_gate():
    network = awake_updates(adapt(backbone(), METHODS["ClassLoRA"], NEW))
    x, c, y = inputs()
    found = []
    for checkpointing in (False, True):
        network.zero_grad()
        network.gradient_checkpointing = checkpointing
        (network(x, c, y).square().sum() + network(x, c, y.flip(0)).pow(3).sum()).backward()
        found.append([p.grad.clone() for p in trained(network).values()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-4)


def test_the_original_is_left_as_it_was(method):
    dense = backbone()
    before = copy.deepcopy(dense.state_dict())
    network = adapt(dense, method, NEW)
    steps(network)
    kept = copy.deepcopy(network.state_dict())
    merged(network)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad for p in dense.parameters())
    assert dense.arguments["num_classes"] == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoRAConfig(linears="attn"), "no nn.Linear has a name that matches 'attn'"),
        (ClassLoRAConfig(linears="attn"), "no nn.Linear has a name that matches 'attn'"),
        (BitFitConfig(biases="attn"), "no bias has a name that matches 'attn'.*patch_in.bias"),
        (OFTConfig(block_size=24), "q has 64 inputs, which blocks of 24 do not tile"),
        *(
            (config, r"blocks\.0\.mlp\.fc1 has a kernel of 256x64, whose rank is 64 at most, got rank 65")
            for config in (
                LoRAConfig(rank=65, linears=r".*\.fc1"),
                PiSSAConfig(rank=65, linears=r".*\.fc1"),
                DoRAConfig(rank=65, linears=r".*\.fc1"),
                LoHaConfig(rank=65, linears=r".*\.fc1"),
                ClassLoRAConfig(rank=65, linears=r".*\.fc1"),
                TruncationConfig(tailor_rank=65, linears=r".*\.fc1"),
            )
        ),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_what_does_not_fit_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        adapt(backbone(), config, NEW)


def test_a_lora_for_each_class_needs_classes():
    network = backbone()
    with pytest.raises(ValueError, match="has no label table"):
        class_lora(nn.Sequential(nn.Linear(4, 4)), ["0"], rank=1, scale=1.0)
    model = class_lora(network, ["blocks.0.mlp.fc1"], rank=1, scale=1.0)
    assert isinstance(model, ClassLoRA)
    with pytest.raises(ValueError, match="run from 0 to 4, which is no class; got 5"):
        merge_class(model, 5)
    with pytest.raises(RuntimeError, match="no gate is held"):
        model.backbone(*inputs()[:2])
