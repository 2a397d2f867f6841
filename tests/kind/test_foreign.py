"""Backbones of somebody else: plain stacks of layers, networks that folders cannot name, and what is no backbone."""

import pytest
import torch
from torch import nn

from genflow import kind
from genflow.denoiser import Denoiser
from genflow.kind import KINDConfig, decompose, extract, info, merge
from genflow.nn import DiT, dit_preset
from genflow.parameterizations import PredictVelocity
from genflow.schedules import Linear

CLASSES = KINDConfig(class_to_tailor=(0, 1, 0), linears=r"\d+", learngenes=0.5)


def stack():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16), nn.Unflatten(1, (1, 4, 4)))


class Foreign(nn.Module):
    """A network with labels of its own, called as backbones are."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(4, 16)
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x, c_noise, y, s):
        h = x.flatten(1) + c_noise[:, None] + self.rows(y)
        return self.fc2(self.fc1(h).tanh()).view_as(x)


def denoiser_of(backbone):
    return Denoiser(backbone, Linear(), PredictVelocity(), image_shape=(1, 4, 4), num_classes=3).eval()


def test_a_stack_of_layers_is_called_with_images_alone():
    model = decompose(stack(), CLASSES)
    x, y = torch.randn(5, 1, 4, 4), torch.tensor([2, 3, 0, 1, 1])
    out = model(x, y=y)
    for b in range(5):
        torch.testing.assert_close(out[b : b + 1], merge(model, int(y[b]))(x[b : b + 1]))
    with model.gate.hold(model.gate(y)):
        torch.testing.assert_close(model.backbone(x), out)
    torch.testing.assert_close(extract(model, [1])(x[3:], y=y[3:]), out[3:])
    denoiser = denoiser_of(model)
    torch.testing.assert_close(denoiser(x, torch.tensor(0.5), y), out)
    dense = denoiser.around(merge(model, 1))
    torch.testing.assert_close(dense(x[3:], torch.tensor(0.5), y[3:]), out[3:])


def test_a_stack_with_a_call_of_its_own_is_called_so():
    class Named(nn.Sequential):
        def forward(self, x, c_noise, y, s):
            return super().forward(x) + c_noise[:, None, None, None]

    model = decompose(Named(*stack()), CLASSES)
    x, c, y = torch.randn(3, 1, 4, 4), torch.randn(3), torch.tensor([0, 1, 2])
    assert torch.equal(model(x, c, y) != model(x, c + 1, y), torch.ones_like(x, dtype=torch.bool))
    assert info(model, (1, 4, 4)).total.parameters == sum(p.numel() for p in model.parameters())


def test_layers_that_are_one_are_not_taken_apart():
    tied = nn.Linear(16, 16)
    with pytest.raises(ValueError, match="0 and 2 share one kernel"):
        decompose(nn.Sequential(tied, nn.Tanh(), tied, nn.Linear(16, 16)), CLASSES)
    other = nn.Linear(16, 16)
    other.weight = tied.weight
    with pytest.raises(ValueError, match="0 and 1 share one kernel"):
        decompose(nn.Sequential(tied, other), CLASSES)
    table = nn.Embedding(16, 16)
    table.weight = tied.weight
    with pytest.raises(ValueError, match="0 and 1 share one kernel"):
        decompose(nn.Sequential(tied, table), CLASSES)


def test_times_of_where_a_jump_goes_stay_with_their_images():
    class Jumping(Foreign):
        def forward(self, x, c_noise, y, s):
            return super().forward(x, c_noise, y, s) + s[:, None, None, None]

    config = KINDConfig(class_to_tailor=(0, 1, 2), learngenes=0.5)
    model = decompose(Jumping(), config)
    x, c, y, s = torch.randn(4, 1, 4, 4), torch.randn(4), torch.tensor([2, 0, 3, 1]), torch.arange(4.0)
    torch.testing.assert_close(model(x, c, y, s), model(x, c, y, torch.zeros(4)) + s[:, None, None, None])


def test_the_sizes_of_a_layer_are_still_there():
    layer = decompose(stack(), CLASSES).linears()["1"]
    assert (layer.in_features, layer.out_features) == (16, 24)


def test_a_stack_of_layers_is_counted():
    model = decompose(stack(), CLASSES)
    found = info(model, (1, 4, 4))
    widths = 16 + 24
    assert found.learngenes.macs == 2 * 8 * widths
    assert found.tailors.macs == 2 * 4 * widths
    assert found.total.parameters == sum(p.numel() for p in model.parameters())
    vectors = decompose(nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 8)), CLASSES)
    assert info(vectors, (16,)).total.parameters == sum(p.numel() for p in vectors.parameters())


def test_a_saved_part_of_a_foreign_network_is_built_around_the_dense_one(tmp_path):
    dense = Foreign()
    small = denoiser_of(extract(decompose(dense, KINDConfig(class_to_tailor=(0, 1, 2), learngenes=0.5)), [0, 2]))
    small.save_pretrained(tmp_path)
    x, t, y = torch.randn(3, 1, 4, 4), torch.tensor(0.5), torch.tensor([0, 2, 3])
    for given in (Foreign(), small.backbone):
        loaded = Denoiser.from_pretrained(tmp_path, backbone=given)
        assert torch.equal(loaded.denoise(x, t, y), small.denoise(x, t, y))
        assert loaded.classes == (0, 2)
    with pytest.raises(ValueError, match=r"Foreign is not genflow's: build it and pass it as backbone="):
        Denoiser.from_pretrained(tmp_path)
    other = decompose(dense, KINDConfig(class_to_tailor=(0, 1, 2), learngenes=0.5))
    for wrong in (other, extract(other, [0, 1])):
        with pytest.raises(ValueError, match="gated otherwise than the saved one: give the dense network"):
            Denoiser.from_pretrained(tmp_path, backbone=wrong)
    merged = small.around(merge(small.backbone, 2))  # a dense network stays dense
    assert isinstance(merged.backbone, Foreign)


def test_models_around_backbones_are_sent_back():
    network = DiT(image_size=(4, 4), in_channels=1, num_classes=3, **dit_preset("tiny"))
    classes = KINDConfig(class_to_tailor=(0, 1, 2))
    for wrong in (denoiser_of(network), decompose(denoiser_of(network), classes)):
        with pytest.raises(ValueError, match=r"is or holds a Denoiser, .*: give the \.backbone of the one inside"):
            denoiser_of(network).around(wrong)
    model = decompose(network, classes)
    for again in (model, model.backbone, denoiser_of(model)):
        with pytest.raises(ValueError, match=r"decomposed already: give the dense one, or merge"):
            decompose(again, classes)
    optimizer = torch.optim.Adam(model.parameters())
    for wrong, said in ((denoiser_of(model), "got a Denoiser: of a Denoiser give the .backbone"), (network, "a DiT")):
        for call in (
            lambda m: extract(m, [0]),
            lambda m: kind.recombine([model, m]),
            lambda m: kind.add_tailors(m, 1),
            kind.remove_tailors,
            lambda m: kind.freeze(m, "learngenes"),
            lambda m: kind.with_gate_of(m, 0),
            lambda m: merge(m, 0),
            lambda m: info(m, (1, 4, 4)),
            kind.departures,
            lambda m: kind.lazy_tailors(optimizer, m),
        ):
            with pytest.raises(ValueError, match=said):
                call(wrong)


def test_parts_are_checkpointed_as_the_whole_is():
    model = decompose(stack(), CLASSES)
    assert not extract(model, [1]).gradient_checkpointing
    model.gradient_checkpointing = True
    assert extract(model, [1]).gradient_checkpointing
