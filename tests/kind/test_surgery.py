"""From dense to decomposed and back: what the components are at the start, and what merging returns."""

import pytest
import torch
from torch import nn

from genflow.kind import (
    ClassGate,
    Decomposed,
    KINDConfig,
    KINDLinear,
    Layout,
    Mixed,
    add_tailors,
    blank,
    decompose,
    merge,
)
from genflow.nn import DiT, UNet, dit_preset

DIT = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, **dit_preset("tiny")}
UNET = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, "width": 16, "multipliers": (1, 2), "blocks": 1}
CLASSES = (0, 1, 2, 3)


def awake(network):
    """Give random values to everything that starts at zero, so that all branches speak."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def backbones():
    networks = [DiT(**DIT), UNet(**UNET, attention=(8, 4), dropout=0.0), DiT(**DIT, fused_qkv=True)]
    return [awake(network) for network in networks]


def inputs(batch=6):
    return torch.randn(batch, 1, 8, 8), torch.randn(batch), torch.tensor([0, 4, 2, 3, 1, 2])[:batch]


@pytest.mark.parametrize("order", ["descending", "interleaved"])
def test_with_all_gates_open_the_kernel_is_back(order):
    """16 + 4 · 12 = 64 = min(m, n): nothing is left out."""
    network = DiT(**DIT)
    config = KINDConfig(class_to_tailor=CLASSES, learngenes=0.25, order=order, rescale=False)
    for name, linear in decompose(network, config).linears().items():
        assert linear.tailor_sigma.shape == (4, 12)
        torch.testing.assert_close(linear.kernel(range(4)), network.get_submodule(name).weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ["descending", "interleaved"])
@pytest.mark.parametrize("class_to_tailor", [CLASSES, (0, 0, 1, -1)])
def test_active_kernels_keep_their_norm(order, class_to_tailor):
    network = DiT(**DIT).double()
    config = KINDConfig(class_to_tailor=class_to_tailor, tailor_rank=5, order=order)
    for name, linear in decompose(network, config).linears().items():
        active = [linear.kernel([t] if t >= 0 else []).square().sum() for t in class_to_tailor]
        wanted = network.get_submodule(name).weight.square().sum()
        assert float((sum(active) / 4 / wanted).sqrt().detach()) == pytest.approx(1, abs=1e-6)


def test_descending_gives_the_largest_to_learngenes_and_interleaved_like_shares():
    network = DiT(**DIT)
    descending = decompose(network, KINDConfig(class_to_tailor=CLASSES, learngenes=0.25, rescale=False))
    interleaved = decompose(
        network, KINDConfig(class_to_tailor=CLASSES, learngenes=0.25, rescale=False, order="interleaved")
    )
    for name, linear in descending.linears().items():
        line = torch.cat([linear.learngene_sigma, linear.tailor_sigma.flatten()])
        assert torch.equal(line, line.sort(descending=True).values)
        other = interleaved.linears()[name]
        mixed = torch.cat([other.learngene_sigma, other.tailor_sigma.flatten()])
        torch.testing.assert_close(mixed.sort(descending=True).values, line)
        energy = other.tailor_sigma.square().mean(dim=1)
        assert energy.max() < 1.3 * energy.min()
        assert abs(other.learngene_sigma.square().mean() / energy.mean() - 1) < 0.2
        assert linear.tailor_sigma.square().mean(dim=1).max() > 2 * linear.tailor_sigma.square().mean(dim=1).min()
        identity = other.learngene_u.T @ other.learngene_u
        torch.testing.assert_close(identity, torch.eye(16), rtol=0, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["dit", "unet", "fused"])
def test_a_merged_network_is_dense_and_equal(which):
    dense = backbones()[which]
    model = decompose(dense, KINDConfig(class_to_tailor=CLASSES))
    x, c, y = inputs()
    for label in (*range(5), None):
        merged = merge(model, label)
        assert [(n, type(m)) for n, m in merged.named_modules()] == [(n, type(m)) for n, m in dense.named_modules()]
        assert {n: p.shape for n, p in merged.state_dict().items()} == {
            n: p.shape for n, p in dense.state_dict().items()
        }
        labels = None if label is None else torch.full_like(y, label)
        torch.testing.assert_close(merged(x, c, labels), model(x, c, labels), rtol=1e-4, atol=1e-5)


def test_what_is_decomposed():
    dit, unet, fused = backbones()
    names = decompose(dit, KINDConfig(class_to_tailor=CLASSES)).linears().keys()
    leaves = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.fc1", "mlp.fc2")
    assert set(names) == {f"blocks.{i}.{leaf}" for i in range(4) for leaf in leaves}
    names = decompose(unet, KINDConfig(class_to_tailor=CLASSES)).linears().keys()
    assert {name.rsplit(".", 1)[1] for name in names} == {"q", "k", "v", "o"}
    attentions = sum(type(m).__name__ == "SelfAttention" for m in unet.modules())
    assert len(names) == 4 * attentions > 0
    names = decompose(fused, KINDConfig(class_to_tailor=CLASSES)).linears().keys()
    leaves = ("attention.qkv", "attention.o", "mlp.fc1", "mlp.fc2")
    assert set(names) == {f"blocks.{i}.{leaf}" for i in range(4) for leaf in leaves}
    only = decompose(dit, KINDConfig(class_to_tailor=CLASSES, linears=r"blocks\.[01]\.mlp\..*")).linears().keys()
    assert set(only) == {f"blocks.{i}.mlp.{leaf}" for i in range(2) for leaf in ("fc1", "fc2")}


def test_a_silent_kernel_stays_silent():
    """The output kernels of a fresh UNet's attention are 0: no component may be infinite for that."""
    fresh = decompose(UNet(**UNET, attention=(8,)), KINDConfig(class_to_tailor=CLASSES))
    for name, linear in fresh.linears().items():
        assert all(p.isfinite().all() for p in linear.parameters())
        assert linear.kernel([0]).any() != name.endswith(".o")
    assert not fresh(*inputs()).any()


def test_plain_layers_with_a_gate_held_by_hand():
    stack = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6, bias=False))
    model = decompose(stack, KINDConfig(class_to_tailor=(0, 1, 0), linears=r"\d+", learngenes=0.5))
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    with model.gate.hold(model.gate(y)):
        out = model.backbone(x)
    for b in range(4):
        torch.testing.assert_close(out[b], merge(model, int(y[b]))(x[b]))
    with model.gate.hold(Mixed(torch.tensor([[1.0, 0.0]]).expand(4, -1))):
        torch.testing.assert_close(model.backbone(x)[1:], merge(model, 0)(x)[1:])
    assert model.backbone[2].bias is None


def test_the_original_is_left_as_it_was():
    dense = backbones()[0]
    before = {k: v.clone() for k, v in dense.state_dict().items()}
    model = decompose(dense, KINDConfig(class_to_tailor=CLASSES))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert all(torch.equal(v, before[k]) for k, v in dense.state_dict().items())


@pytest.mark.parametrize("which", [0, 1, 2], ids=["dit", "unet", "fused"])
def test_a_layout_builds_a_model_that_the_weights_fit(which):
    dense = backbones()[which]
    model = decompose(dense, KINDConfig(class_to_tailor=(5, 2, 5, -1))).eval()
    layout = Layout.read(model.layout().plain())
    assert layout == model.layout()
    again = blank(dense, layout).eval()
    assert isinstance(again, Decomposed)
    again.load_state_dict(model.state_dict())
    x, c, y = inputs()
    assert torch.equal(again(x, c, y), model(x, c, y))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learngenes": 0.0}, "learngenes must be a share"),
        ({"tailor_rank": 0}, "tailor_rank must be at least 1"),
        ({"order": "random"}, "order must be"),
        ({"class_to_tailor": (0, -2)}, "dropped later, by extract"),
        ({"class_to_tailor": (0, -3, 1, 1)}, "got \\(0, -3, 1, 1\\)"),
        ({"class_to_tailor": (0, 1)}, "labels for 4 classes, and the class map names 2"),
        ({"tailor_rank": 12}, "q has min.* = 64 components: 17 learngenes leave room for 4 tailors of rank 11"),
        ({"learngenes": 1.0}, "64 learngenes leave none for 4 tailors"),
        ({"linears": r"attn\..*"}, "no nn.Linear has a name.*this backbone has .*blocks.0.attention.q"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        decompose(DiT(**DIT), KINDConfig(**({"class_to_tailor": CLASSES} | wrong)))


def test_labels_are_checked_by_merge_and_by_blank():
    model = decompose(DiT(**DIT), KINDConfig(class_to_tailor=CLASSES))
    with pytest.raises(ValueError, match="run from 0 to 4, which is no class; got 5"):
        merge(model, 5)
    with pytest.raises(ValueError, match=r"of another backbone: 24 of its 24 layers .*, such as blocks.*; give the"):
        blank(UNet(**UNET), model.layout())


def test_a_tailor_may_have_any_number():
    gate = ClassGate((7, -1, 3, 7))
    assert gate.tailors == (3, 7)
    assert gate(torch.tensor([0, 1, 2, 3, 4])).tailors.tolist() == [1, -1, 0, 1, -1]
    model = decompose(DiT(**DIT), KINDConfig(class_to_tailor=(7, -1, 3, 7)))
    assert all(isinstance(p, KINDLinear) and len(p.tailor_u) == 2 for p in model.linears().values())


def test_tailors_that_are_added_to_a_network_without_any_have_a_tenth_of_its_components():
    made = decompose(DiT(**DIT), KINDConfig(class_to_tailor=(-1,) * 4))
    assert {rank for _, rank in made.layout().ranks.values()} == {6}  # of 64
    assert {rank for _, rank in add_tailors(made, 1).layout().ranks.values()} == {6}
