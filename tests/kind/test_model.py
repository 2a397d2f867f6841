"""How the gate reaches the layers: in copies, in recomputation, in compiled code, in a denoiser."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from genflow.denoiser import Denoiser
from genflow.denoiser_parts import network_arguments
from genflow.kind import KINDConfig, add_tailors, decompose, extract, merge, remove_tailors
from genflow.kind import linear as linear_module
from genflow.kind import model as model_module
from genflow.nn import DiT, UNet, dit_preset
from genflow.parameterizations import Karras
from genflow.schedules import VE
from genflow.training.ema import EMA

DIT = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, **dit_preset("tiny")}
UNET = {"image_size": (8, 8), "in_channels": 1, "num_classes": 4, "width": 16, "multipliers": (1, 2), "blocks": 1}


@pytest.fixture(params=["mask", "gather", "segments"])
def mode(request, monkeypatch):
    monkeypatch.setattr(model_module, "sorts", lambda _: request.param == "segments")
    monkeypatch.setattr(linear_module, "cheapest", lambda *_: request.param)
    return request.param


def model(which="dit", **arguments):
    network = DiT(**DIT, **arguments) if which == "dit" else UNet(**UNET, attention=(8, 4), **arguments)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return decompose(network, KINDConfig(class_to_tailor=(0, 1, 2, 3)))


def inputs():
    return torch.randn(6, 1, 8, 8), torch.randn(6), torch.tensor([0, 4, 2, 3, 1, 2])


def test_the_batch_does_not_matter(mode):
    network = model()
    x, c, y = inputs()
    out = network(x, c, y)
    other = network(x, c, torch.tensor([0, 1, 1, 4, 4, 3]))
    assert (out[0] - other[0]).abs().max() <= 1e-6
    for b in range(6):
        torch.testing.assert_close(out[b : b + 1], network(x[b : b + 1], c[b : b + 1], y[b : b + 1]), rtol=0, atol=1e-5)


def test_each_class_has_its_function_and_none_is_no_class(mode):
    network = model()
    x, c, _ = inputs()
    outs = [network(x, c, torch.full((6,), label)) for label in range(5)]
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(outs) for b in outs[:i])
    torch.testing.assert_close(network(x, c), outs[4], rtol=0, atol=1e-6)
    torch.testing.assert_close(network(x, c, None, torch.randn(6)), outs[4], rtol=0, atol=1e-6)


def test_no_class_is_blind_to_tailors():
    network = model()
    x, c, y = inputs()
    nobody = torch.full_like(y, 4)
    before, known = network(x, c, nobody), network(x, c, y)
    with torch.no_grad():
        for linear in network.linears().values():
            linear.tailor_sigma.add_(1)
    assert torch.equal(network(x, c, nobody), before)
    assert not torch.equal(network(x, c, y), known)


def test_permuted_classes_change_nothing(mode):
    network = model()
    x, c, y = inputs()
    new_label = torch.tensor([2, 0, 3, 1, 4])
    permuted = copy.deepcopy(network)
    with torch.no_grad():
        for linear, source in zip(permuted.linears().values(), network.linears().values(), strict=True):
            for name in ("tailor_u", "tailor_sigma", "tailor_v"):
                getattr(linear, name)[new_label[:4]] = getattr(source, name)
        for table, source in zip(permuted.tables().values(), network.tables().values(), strict=True):
            table.rows[new_label[:4]] = source.rows
    torch.testing.assert_close(permuted(x, c, new_label[y]), network(x, c, y), rtol=0, atol=1e-6)


def test_a_copy_drives_its_own_gate():
    network = model()
    other = copy.deepcopy(network)
    assert all(linear.switch is other.gate.switch for linear in other.linears().values())
    assert other.gate.switch is not network.gate.switch
    x, c, y = inputs()
    assert torch.equal(other(x, c, y), network(x, c, y))
    with network.gate.hold(network.gate(y.flip(0))):  # in the middle of a pass of the original
        assert torch.equal(other(x, c, y), network(x, c, y))


def test_the_average_of_a_denoiser_gates_by_its_own_labels():
    denoiser = Denoiser(model(), VE(), Karras(sigma_data=0.5), image_shape=(1, 8, 8), num_classes=4)
    average = EMA(denoiser, halflife=1000.0, rampup=0.0)
    x, t, y = torch.randn(6, 1, 8, 8), torch.tensor(1.0), inputs()[2]
    assert torch.equal(average.denoiser.denoise(x, t, y), denoiser.denoise(x, t, y))
    torch.testing.assert_close(denoiser.denoise(x, t), denoiser.denoise(x, t, torch.full_like(y, 4)))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2, weight_decay=0.0)
    before = average.denoiser.denoise(x, t, y)
    denoiser.denoise(x, t, y).square().sum().backward()
    optimizer.step()
    assert torch.equal(average.denoiser.denoise(x, t, y), before)
    average.update(6, 6)
    for kept, present in zip(average.denoiser.parameters(), denoiser.parameters(), strict=True):
        assert kept is not present
    assert not torch.equal(average.denoiser.denoise(x, t, y), before)


def test_augmentation_labels_pass_through():
    network = model("unet", augment_dim=3)
    x, c, y = inputs()
    told = network(x, c, y, augment=torch.randn(6, 3))
    assert not torch.equal(told, network(x, c, y))


def gradients(network, run, **options):
    network.zero_grad()
    x, c, y = inputs()
    torch.manual_seed(1)
    first = run(x, c, y, **options)
    with torch.no_grad():
        run(x, c, None)
    second = run(x, c, y.flip(0))
    (first.square().sum() + second.pow(3).sum()).backward()
    return [p.grad for p in network.parameters()]


@pytest.mark.parametrize("which", ["dit", "unet"])
def test_recomputed_blocks_see_the_gate_of_their_pass(which, mode):
    """Two passes with other labels before one backward pass, and one without gradients between them."""
    network = model(which, dropout=0.2).double()
    calls = []
    next(iter(network.linears().values())).register_forward_pre_hook(lambda *_: calls.append(1))

    def run(x, c, y):
        return network(x.double(), c.double(), y)

    torch.manual_seed(3)
    plain = gradients(network, run)
    assert len(calls) == 3
    network.gradient_checkpointing = True
    torch.manual_seed(3)
    again = gradients(network, run)
    assert len(calls) == 3 + 5  # the two with gradients twice
    for a, b in zip(again, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_without_the_gate_remembered_recomputation_would_be_wrong():
    """The test above can fail: checkpointing behind the model's back does."""
    network = model()
    torch.manual_seed(3)
    plain = gradients(network, network)
    network.backbone.gradient_checkpointing = True
    torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="no gate is held"):
        gradients(network, network)
    assert plain


def test_checkpoints_of_somebody_else():
    """A foreign backbone that checkpoints by itself needs the flag too, and nothing else."""

    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x, c_noise, y, s):
            return checkpoint(lambda h: self.fc2(self.fc1(h).tanh()), x, use_reentrant=False)

    network = decompose(Foreign(), KINDConfig(class_to_tailor=(0, 1), learngenes=0.5))
    network.gradient_checkpointing = True
    x, y = torch.randn(3, 8), torch.tensor([0, 1, 2])
    loss = network(x, x[:, 0], y).square().sum() + network(x, x[:, 0], 2 - y).pow(3).sum()
    got = torch.autograd.grad(loss, list(network.parameters()))

    def alone(y, power):
        with network.gate.hold(network.gate(y)):
            h = network.backbone.fc2(network.backbone.fc1(x).tanh())
        return h.pow(power).sum()

    expected = torch.autograd.grad(alone(y, 2) + alone(2 - y, 3), list(network.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_recomputation_frees_what_it_saved():
    """An output that kept itself alive through its own saved value would stay for ever: tanh saves its output."""

    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 8)

        def forward(self, x, c_noise, y, s):
            return self.fc1(x).tanh()

    network = decompose(Bounded(), KINDConfig(class_to_tailor=(0, 1), learngenes=0.5))
    network.gradient_checkpointing = True
    gc.collect()
    gc.disable()
    try:
        out = network(torch.randn(3, 8), torch.randn(3), torch.tensor([0, 1, 2]))
        seen = weakref.ref(out)
        del out
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("extracted", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_in_one_piece(checkpointing, extracted):
    network = model()
    if extracted:  # a class is gone, and its labels are not looked for
        network = extract(add_tailors(network, 2), range(5))
    network.gradient_checkpointing = checkpointing
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.manual_seed(3)
    plain = gradients(network, network)
    torch.manual_seed(3)
    got = gradients(network, compiled)
    for a, b in zip(got, plain, strict=True):  # which sum in another order: compiled code does not sort its batch
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-6


def test_labels_out_of_range_are_not_taken_for_others():
    network = model()
    x, c, _ = inputs()
    for wrong in (5, -1):
        with pytest.raises(IndexError):
            network(x, c, torch.full((6,), wrong))


@pytest.mark.parametrize("which", ["dit", "unet"])
def test_a_saved_denoiser_comes_back(which, tmp_path):
    network = extract(add_tailors(model(which), 2), {1, 5})
    denoiser = Denoiser(network, VE(), Karras(sigma_data=0.5), image_shape=(1, 8, 8), num_classes=6).eval()
    denoiser.save_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path)
    x, t, y = torch.randn(4, 1, 8, 8), torch.tensor(1.0), torch.tensor([1, 5, 6, 1])
    assert torch.equal(loaded.denoise(x, t, y), denoiser.denoise(x, t, y))
    assert torch.equal(loaded.denoise(x, t), denoiser.denoise(x, t))
    with pytest.raises(ValueError, match=r"without classes \[0\]"):
        loaded.denoise(x, t, torch.tensor([0, 1, 1, 1]))


@pytest.mark.parametrize("which", ["dit", "unet"])
@pytest.mark.parametrize(
    "without", [remove_tailors, lambda network: extract(network, [])], ids=["removed", "extracted"]
)
def test_a_model_of_nothing_but_learngenes_comes_back_and_takes_new_classes(which, without, tmp_path):
    whole = Denoiser(model(which), VE(), Karras(sigma_data=0.5), image_shape=(1, 8, 8), num_classes=4).eval()
    alone = whole.around(without(whole.backbone))
    assert alone.classes == ()
    alone.save_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path)
    assert network_arguments(loaded.config["network"])["num_classes"] == loaded.num_classes
    x, t = torch.randn(4, 1, 8, 8), torch.tensor(1.0)
    assert torch.equal(loaded.denoise(x, t), whole.denoise(x, t))
    grown = [d.around(add_tailors(d.backbone, 2, generator=torch.Generator().manual_seed(1))) for d in (alone, loaded)]
    for a, b in zip(grown[0].state_dict().values(), grown[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    y = torch.full((4,), grown[0].num_classes - 1)
    assert torch.equal(grown[1].denoise(x, t, y), grown[0].denoise(x, t, y))
    bare = alone.around(merge(alone.backbone))  # a dense one, whose label table has a class at least
    bare.save_pretrained(tmp_path / "merged")
    again = Denoiser.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again.denoise(x, t), whole.denoise(x, t), rtol=0, atol=1e-4)


def test_a_batch_has_a_label_for_each_image_or_one_for_all(mode):
    network = model()
    x, c, _ = inputs()
    wanted = network(x, c, torch.full((6,), 3))
    for one in (torch.tensor(3), torch.tensor([3])):
        assert torch.equal(network(x, c, one), wanted)
    for wrong in (torch.tensor([1, 3]), torch.full((7,), 3), torch.full((6, 1), 3)):
        with pytest.raises(ValueError, match="a batch of 6 has one label for all or 6, got a tensor"):
            network(x, c, wrong)
    denoiser = Denoiser(network, VE(), Karras(sigma_data=0.5), image_shape=(1, 8, 8), num_classes=4)
    level = torch.tensor(1.0)
    assert torch.equal(denoiser.denoise(x, level, torch.tensor([3])), denoiser.denoise(x, level, torch.full((6,), 3)))
    with pytest.raises(ValueError, match="for 4 classes, and num_classes is 3"):
        Denoiser(network, VE(), Karras(sigma_data=0.5), image_shape=(1, 8, 8), num_classes=3)


def test_modes_are_one_function_and_are_chosen_by_name(monkeypatch):
    network = model()
    x, c, y = inputs()
    used = []
    for name in ("mask", "gather", "segments"):
        computed = getattr(linear_module, name)
        monkeypatch.setattr(linear_module, name, lambda *a, f=computed, n=name: used.append(n) or f(*a))
    whole = linear_module.segmented_linear
    monkeypatch.setattr(linear_module, "segmented_linear", lambda *a: used.append("segments") or whole(*a))
    outs = []
    for chosen in ("mask", "gather", "segments"):
        network.gate.mode = chosen
        used.clear()
        outs.append(network(x, c, y))
        assert set(used) == {chosen}
        assert copy.deepcopy(network).gate.mode == chosen
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="one of auto, mask, gather, segments; got 'masks'"):
        network.gate.mode = "masks"


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")  # of what torch itself imports for jvp
@pytest.mark.parametrize("chosen", ["mask", "gather"])
def test_there_are_derivatives_of_derivatives_and_forward_ones(chosen):
    network = model().double()
    network.gate.mode = chosen
    x, c, y = (part.double() if part.is_floating_point() else part for part in inputs())
    direction = torch.randn_like(x)

    def value(x):
        return network(x, c, y).square().sum()

    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has neither
        x.requires_grad_()
        (slope,) = torch.autograd.grad(value(x), x, create_graph=True)
        (curved,) = torch.autograd.grad((slope * direction).sum(), x, retain_graph=True)
        assert curved.abs().max() > 0
        _, forward = torch.func.jvp(value, (x.detach(),), (direction,))
    torch.testing.assert_close(forward, (slope * direction).sum())


def test_a_gate_held_within_another_gives_it_back():
    network = model()
    x, c, y = inputs()
    outer = network.gate(y)
    with network.gate.hold(outer):
        before = network.backbone(x, c, y, None)
        with network.gate.hold(network.gate(y.flip(0))):
            assert not torch.equal(network.backbone(x, c, y, None), before)
        assert torch.equal(network.backbone(x, c, y, None), before)


def test_checkpointing_that_was_on_stays_on():
    network = DiT(**DIT)
    network.gradient_checkpointing = True
    decomposed = decompose(network, KINDConfig(class_to_tailor=range(4)))
    assert decomposed.gradient_checkpointing
    assert not model().gradient_checkpointing


def test_autocast_leaves_float64_alone(mode):
    network = model().double()
    x, c, y = (part.double() if part.is_floating_point() else part for part in inputs())
    linear = next(iter(network.linears().values()))
    seen = []
    linear.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(x, c, y)
    dense = nn.Linear(4, 4).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert seen == [dense(torch.randn(2, 4).double()).dtype]


def test_class_maps_may_be_tensors():
    dense = DiT(**DIT)
    wanted = decompose(dense, KINDConfig(class_to_tailor=(0, 0, 1, -1)))
    for given in (torch.tensor([0, 0, 1, -1]), np.array([0, 0, 1, -1])):
        config = KINDConfig(class_to_tailor=given)  # pyright: ignore[reportArgumentType]
        made = decompose(dense, config)
        assert (made.gate.tailors, made.layout()) == (wanted.gate.tailors, wanted.layout())
        assert made.gate.places.tolist() == wanted.gate.places.tolist() == [0, 0, 1, -1, -1]
    with pytest.raises(ValueError, match="the tailors of a class map are a list of whole numbers"):
        KINDConfig(class_to_tailor=(0.5, 1, 2, 3))  # pyright: ignore[reportArgumentType]
