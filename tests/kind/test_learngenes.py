"""Taking apart and putting together: nothing is lost, and what is not there is not made up."""

import copy
import itertools
import math
import re

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from genflow.kind import (
    Assigned,
    KINDConfig,
    Layout,
    add_tailors,
    blank,
    decompose,
    extract,
    freeze,
    info,
    merge,
    recombine,
    remove_tailors,
    with_gate_of,
)
from genflow.kind import linear as linear_module
from genflow.nn import DiT, UNet, dit_preset
from genflow.nn.embeddings import LabelTable

DIT = {"image_size": (8, 8), "in_channels": 1, "num_classes": 5, **dit_preset("tiny")}
UNET = {"image_size": (8, 8), "in_channels": 1, "num_classes": 5, "width": 16, "multipliers": (1, 2), "blocks": 1}
SHARED = (3, 0, 3, -1, 1)  # classes 0 and 2 share a tailor, class 3 has none


def dense(which="dit"):
    networks = {
        "dit": lambda: DiT(**DIT),
        "fused": lambda: DiT(**DIT, fused_qkv=True),
        "unet": lambda: UNet(**UNET, attention=(8, 4), dropout=0.0),
    }
    network = networks[which]()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def model(class_to_tailor=(0, 1, 2, 3, 4), which="dit"):
    return decompose(dense(which), KINDConfig(class_to_tailor=class_to_tailor))


def inputs(labels):
    torch.manual_seed(7)
    return torch.randn(len(labels), 1, 8, 8), torch.randn(len(labels)), torch.tensor(labels)


def same(a, b):
    one, other = a.state_dict(), b.state_dict()
    equal = one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())
    return equal and a.layout() == b.layout()


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("which", ["dit", "fused", "unet"])
@pytest.mark.parametrize("class_to_tailor", [(0, 1, 2, 3, 4), SHARED])
def test_extraction_is_lossless(which, class_to_tailor):
    whole = model(class_to_tailor, which)
    small = extract(whole, {1, 4})
    weights = save(small.state_dict())
    loaded = blank(dense(which), Layout.read(small.layout().plain()))
    loaded.load_state_dict(load(weights))
    joined = recombine([loaded])
    assert save(joined.state_dict()) == weights
    x, c, y = inputs([1, 4, 5, 4])
    expected = whole(x, c, y)
    for part in (small, loaded, joined):
        torch.testing.assert_close(part(x, c, y), expected, rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match=r"without classes \[0, 3\]: it has \[1, 4\], and 5 for no class"):
            part(x, c, torch.tensor([0, 1, 3, 5]))
        with pytest.raises(ValueError, match="without class 2"):
            merge(part, 2)
    assert parameters(small) < parameters(whole)
    torch.testing.assert_close(merge(small, 4)(x, c, y), merge(whole, 4)(x, c, y), rtol=0, atol=1e-6)


def test_a_class_named_twice_is_named_once():
    whole = model()
    once = extract(whole, [1, 3])
    for again in ([3, 1, 3, 1], iter([1, 3]), torch.tensor([3, 1])):
        small = extract(whole, again)
        assert save(small.state_dict()) == save(once.state_dict())
        assert small.layout() == once.layout()
    for wrong in ([1.5], ["1"], 3):
        with pytest.raises(ValueError, match="classes are a list of whole numbers"):
            extract(whole, wrong)
    assert save(remove_tailors(whole, torch.tensor([1])).state_dict()) == save(remove_tailors(whole, [1]).state_dict())
    with pytest.raises(ValueError, match="labels are a list of whole numbers"):
        merge(whole, 1.0)


def test_what_new_tailors_cannot_be_is_refused():
    for given, said in (
        ({"rank": 0}, "at least 1, got 0"),
        ({"init": "slient"}, "got 'slient'"),
        ({"scale": 0.0}, "got 0: silent ones start at 0"),
        ({"scale": math.nan}, "got nan"),
    ):
        with pytest.raises(ValueError, match=said):
            add_tailors(remove_tailors(model()), 1, **given)


@pytest.mark.parametrize("mode", ["mask", "gather"])
def test_labels_on_a_device_are_not_read_back(mode, monkeypatch):
    """Tensors without data stand for those of a device: to look at one is an error there, and a wait here."""
    monkeypatch.setattr(linear_module, "cheapest", lambda *_: mode)
    small = extract(model(), {1, 4}).to("meta")
    layer, table = (next(iter(parts.values())) for parts in (small.linears(), small.tables()))
    y = torch.empty(4, dtype=torch.int64, device="meta")
    with small.gate.hold(small.gate(y)):
        assert layer(torch.empty(4, 16, 64, device="meta")).shape == (4, 16, 64)
    assert table(y, 4).shape == (4, 64)


@pytest.mark.parametrize("mode", ["mask", "gather", "segments"])
def test_where_nobody_looks_the_lookup_of_a_dropped_class_fails(mode, monkeypatch):
    monkeypatch.setattr(linear_module, "cheapest", lambda *_: mode)
    small = extract(model(SHARED), {1, 3, 4})
    y = torch.tensor([1, 0, 5, 3])
    layer, table = (next(iter(parts.values())) for parts in (small.linears(), small.tables()))
    unseen = Assigned(small.gate.places[y])
    gating = unseen.segments() if mode == "segments" else unseen
    with small.gate.hold(gating), pytest.raises((IndexError, RuntimeError)) as refused:
        layer(torch.randn(4, 16, 64))
    assert re.search("out of (range|bounds)|Class values", str(refused.value))
    with pytest.raises(IndexError, match="out of range"):
        table(y, 4)


@pytest.mark.parametrize("which", ["dit", "fused", "unet"])
@pytest.mark.parametrize("class_to_tailor", [(0, 1, 2, 3, 4), SHARED, (-1,) * 5])
def test_parts_recombine_to_the_whole_bit_by_bit(which, class_to_tailor):
    whole = model(class_to_tailor, which)
    assert same(recombine([whole]), whole)
    parts = [extract(whole, {4, 0}), extract(whole, {2, 3}), extract(whole, {1, 2})]
    for order in (parts, parts[::-1]):
        assert same(recombine(order), whole)
    assert same(recombine([extract(parts[0], {4}), extract(whole, {1})]), extract(whole, {1, 4}))
    assert same(recombine([extract(whole, ()), whole]), whole)


@pytest.mark.parametrize("which", ["dit", "fused", "unet"])
def test_an_added_tailor_can_be_removed_without_a_trace(which):
    whole = model(SHARED, which)
    more = add_tailors(whole, 2)
    assert more.gate.class_to_tailor == (*SHARED, 4, 5)
    x, c, y = inputs([0, 1, 2, 3, 4])
    torch.testing.assert_close(more(x, c, y), whole(x, c, y), rtol=0, atol=1e-6)
    torch.testing.assert_close(more(x, c), whole(x, c), rtol=0, atol=1e-6)
    assert same(remove_tailors(more, {5, 6}), whole)
    assert same(remove_tailors(remove_tailors(more, {5}), {5}), whole)


def test_later_labels_move_down():
    whole = model()
    fewer = remove_tailors(whole, {1, 3})
    assert fewer.gate.num_classes == 3
    x, c, y = inputs([0, 1, 2, 3])
    torch.testing.assert_close(fewer(x, c, y), whole(x, c, torch.tensor([0, 2, 4, 5])), rtol=0, atol=1e-6)


def test_a_shared_tailor_stays_for_the_others():
    fewer = remove_tailors(model(SHARED), {0})
    assert fewer.gate.class_to_tailor == (0, 3, -1, 1)
    assert fewer.gate.tailors == (0, 1, 3)


def test_new_tailors_are_random_and_small_or_silent():
    bare = remove_tailors(model())
    assert bare.gate.class_to_tailor == ()
    random = add_tailors(bare, 3, rank=6, generator=torch.Generator().manual_seed(1))
    silent = add_tailors(bare, 3, rank=6, init="silent")
    for part in random.linears().values():
        assert part.tailor_u.shape[::2] == (3, 6)
        torch.testing.assert_close(part.tailor_u.norm(dim=1), torch.ones(3, 6))
        torch.testing.assert_close(part.tailor_v.norm(dim=2), torch.ones(3, 6))
        expected = 0.3 * part.learngene_sigma.abs().mean()
        torch.testing.assert_close(part.tailor_sigma, expected.expand(3, 6))
    louder = add_tailors(bare, 3, rank=6, scale=0.9, generator=torch.Generator().manual_seed(1))
    for part, quiet in zip(louder.linears().values(), random.linears().values(), strict=True):
        torch.testing.assert_close(part.tailor_sigma, 3 * quiet.tailor_sigma)
        assert torch.equal(part.tailor_u, quiet.tailor_u)
    x, c, y = inputs([0, 1, 2, 3])
    torch.testing.assert_close(silent(x, c, y), bare(x, c), rtol=0, atol=1e-6)
    assert (random(x, c, y) - bare(x, c))[:3].abs().amax(dim=(1, 2, 3)).min() > 1e-3
    again = add_tailors(bare, 3, rank=6, generator=torch.Generator().manual_seed(1))
    assert same(again, random)


@pytest.mark.parametrize("which", ["dit", "fused", "unet"])
def test_transfer_trains_new_tailors_and_label_rows_only(which):
    source = model(which=which)
    novel = add_tailors(remove_tailors(source), 3, rank=4)
    freeze(novel, "learngenes")
    trained = [p for p in novel.parameters() if p.requires_grad]
    widths = [sum(part.tailor_u.shape[1:2]) + part.tailor_v.shape[2] + 1 for part in novel.linears().values()]
    row = next(iter(novel.tables().values())).rows.shape[1]
    assert sum(p.numel() for p in trained) == 3 * 4 * sum(widths) + 3 * row
    if which == "dit":  # 18 D + 6 parameters a component and block
        assert sum(p.numel() for p in trained) == 3 * 4 * 4 * (18 * 64 + 6) + 3 * 64
    before = {k: v.clone() for k, v in novel.state_dict().items()}
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    x, c, y = inputs([0, 1, 2, 3])
    for _ in range(3):
        optimizer.zero_grad()
        novel(x, c, y).square().sum().backward()
        optimizer.step()
    changed = {k for k, v in novel.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.rsplit(".", 1)[1].startswith(("tailor_", "rows"))}
    shared = {k: v for k, v in source.state_dict().items() if k not in changed}
    assert all(torch.equal(v, novel.state_dict()[k]) for k, v in shared.items())
    with torch.no_grad():
        torch.testing.assert_close(novel(x, c), source(x, c), rtol=0, atol=1e-6)


def test_freezing_tailors_is_the_other_half():
    network = model()
    freeze(network, "learngenes")
    first = {n for n, p in network.named_parameters() if p.requires_grad}
    freeze(network, "tailors")
    second = {n for n, p in network.named_parameters() if p.requires_grad}
    assert not first & second
    assert first | second == {n for n, _ in network.named_parameters()}
    with pytest.raises(ValueError, match='"learngenes" or "tailors", got \'all\''):
        freeze(network, "all")


def test_what_is_made_of_a_frozen_model_is_trained_whole():
    network = model()
    freeze(network, "learngenes")
    for made in (
        extract(network, {1, 2}),
        recombine([network]),
        add_tailors(network, 1),
        remove_tailors(network, {0}),
        with_gate_of(network, 2),
        blank(dense().requires_grad_(False), network.layout()),
        decompose(dense().requires_grad_(False), KINDConfig(class_to_tailor=(0, 1, 2, 3, 4))),
        merge(network, 1),
    ):
        assert all(p.requires_grad for p in made.parameters())


def test_a_budget_keeps_the_learngenes_that_matter_most():
    whole = model()
    full = parameters(extract(whole, {2}))
    x, c, y = inputs([2, 2, 5, 2])
    expected = extract(whole, {2})(x, c, y)
    errors = []
    for budget in (full, full - 20_000, full - 60_000):
        small = extract(whole, {2}, max_params=budget)
        assert budget - 400 < parameters(small) <= budget  # a component has 129 or 321
        assert info(small, (1, 8, 8)).total.parameters == parameters(small)
        errors.append(float((small(x, c, y) - expected).norm().detach()))
        for name, part in small.linears().items():
            line = whole.linears()[name].learngene_sigma
            assert torch.equal(
                part.learngene_sigma, line[: len(part.learngene_sigma)]
            )  # u and v are still unit vectors
    assert errors[0] < 1e-5 < errors[1] < errors[2]
    one_each = extract(whole, {2}, max_params=full - 24 * 16 * 129 - 8 * 16 * 192)
    assert {len(p.learngene_sigma) for p in one_each.linears().values()} == {1}
    with pytest.raises(ValueError, match=rf"max_params = 1000 is too few: {parameters(one_each)} hold"):
        extract(whole, {2}, max_params=1000)


def test_strangers_are_not_recombined():
    whole = model()
    one, other = extract(whole, {0, 1}), extract(whole, {1, 2})
    changed = copy.deepcopy(other)
    with torch.no_grad():
        changed.linears()["blocks.2.mlp.fc1"].learngene_sigma[3] += 1
    with pytest.raises(ValueError, match=r"not parts of one model: .*blocks\.2\.mlp\.fc1\.learngene_sigma"):
        recombine([one, changed])
    with torch.no_grad():
        other.tables()["conditioning.labels"].rows[0, 0] += 1  # that of class 1, which both have
    with pytest.raises(ValueError, match="rows@1 differs"):
        recombine([one, other])
    alone = extract(whole, {0})
    for order in itertools.permutations([alone, extract(whole, {1, 2}), other]):  # whichever comes first
        with pytest.raises(ValueError, match="rows@1 differs"):
            recombine(order)
    with pytest.raises(ValueError, match="class 5 has another tailor"):
        recombine([add_tailors(extract(whole, {0}), 1), add_tailors(extract(whole, {1}), 1)])
    with pytest.raises(ValueError, match="as many labels, and these have 5 and 6: to have new classes"):
        recombine([whole, add_tailors(whole, 1)])
    with pytest.raises(ValueError, match="not parts of one model"):
        recombine([whole, model(which="unet")])
    with pytest.raises(ValueError, match="nothing to recombine"):
        recombine([])


def test_what_is_not_there_is_refused():
    whole = extract(model(), {0, 1})
    with pytest.raises(ValueError, match=r"has classes \[0, 1\], and was asked for \[3\]"):
        extract(whole, {1, 3})
    with pytest.raises(ValueError, match=r"has classes 0 to 4, and was asked to remove \[5\]"):
        remove_tailors(whole, {1, 5})
    with pytest.raises(ValueError, match="have rank 9, and new ones must too; got 4"):
        add_tailors(whole, 1, rank=4)
    with pytest.raises(ValueError, match="at least one tailor"):
        add_tailors(whole, 0)


def test_dropped_classes_can_be_forgotten():
    """What is left of one class is the same, whether the others were dropped before or not."""
    whole = model()
    one = remove_tailors(extract(whole, {1, 3}), {0, 1, 2, 4})
    other = remove_tailors(whole, {0, 1, 2, 4})
    assert one.gate.class_to_tailor == other.gate.class_to_tailor == (3,)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_nothing_is_shared_with_the_copies():
    whole = model()
    before = {k: v.clone() for k, v in whole.state_dict().items()}
    for other in (
        extract(whole, {1}),
        recombine([whole]),
        add_tailors(whole, 1),
        remove_tailors(whole),
        merge(whole, 1),
    ):
        with torch.no_grad():
            for p in other.parameters():
                p.fill_(math.nan)
    assert all(torch.equal(v, before[k]) for k, v in whole.state_dict().items())


@pytest.mark.parametrize("which", ["dit", "fused", "unet"])
def test_the_arguments_of_the_backbone_follow_its_label_table(which):
    for changed in (add_tailors(model(which=which), 2), remove_tailors(model(which=which), {0})):
        classes = changed.gate.num_classes
        assert changed.backbone.arguments["num_classes"] == classes
        assert "num_classes" in changed.backbone.arguments
        again = blank(type(changed.backbone)(**changed.backbone.arguments), changed.layout())
        again.load_state_dict(changed.state_dict())
        assert same(again, changed)
        merged = merge(changed, 1)
        type(merged)(**merged.arguments).load_state_dict(merged.state_dict())


def test_a_backbone_without_labels_is_told_of_classes_by_its_gate_alone():
    network = decompose(DiT(**(DIT | {"num_classes": 0})), KINDConfig(class_to_tailor=(0, 1)))
    assert not network.tables()
    assert add_tailors(network, 1).backbone.arguments["num_classes"] == 0


def test_empty_parameters_ask_for_no_gradient():
    """Data-parallel training refuses parameters that want a gradient and get none."""
    network = model()
    for bare in (remove_tailors(network), extract(network, ())):
        freeze(bare, "tailors")
        x, c, y = inputs([bare.gate.num_classes] * 3)
        bare(x, c, y).sum().backward()
        assert all(p.grad is not None for p in bare.parameters() if p.requires_grad)
    everybody = model((0, 1, 2, -1, 2))
    x, c, y = inputs([5, 3, 5])  # no tailor is on
    everybody(x, c, y).sum().backward()
    assert all(p.grad is not None for p in everybody.parameters())


def test_what_is_left_out_first_is_what_is_worth_least_a_parameter():
    """All components of all layers are worth the same, and those of the wide layer have three times the parameters."""
    network = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 100))
    whole = decompose(network, KINDConfig(class_to_tailor=(-1,), linears=r"\d", learngenes=0.5, tailor_rank=1))
    with torch.no_grad():
        for linear in whole.linears().values():
            linear.learngene_u.copy_(nn.functional.normalize(linear.learngene_u, dim=0))
            linear.learngene_v.copy_(nn.functional.normalize(linear.learngene_v, dim=1))
            linear.learngene_sigma.fill_(1)
    count = sum(p.numel() for p in whole.parameters())
    small = extract(whole, [0], max_params=count - 121 * 9)  # which all of the wide one's but one would save
    assert [r for r, _ in small.layout().ranks.values()] == [10, 10, 1]


def test_new_tailors_are_as_large_as_learngenes_whatever_their_signs():
    whole = remove_tailors(model())
    with torch.no_grad():
        for linear in whole.linears().values():
            linear.learngene_sigma[::2] *= -1
    for name, linear in add_tailors(whole, 2, scale=0.5).linears().items():
        mean = whole.linears()[name].learngene_sigma.abs().mean()
        torch.testing.assert_close(linear.tailor_sigma, (0.5 * mean).expand_as(linear.tailor_sigma))


def test_parts_of_which_one_has_another_tensor_are_refused():
    one = model()
    other = copy.deepcopy(one)
    other.backbone.extra = nn.Linear(2, 2)
    for parts in ([one, other], [other, one]):
        with pytest.raises(ValueError, match=r"backbone.extra.bias is in one only"):
            recombine(parts)


def test_parts_are_computed_as_the_whole_is():
    whole = model()
    whole.gate.mode = "gather"
    whole.gradient_checkpointing = True
    for part in (extract(whole, [1]), remove_tailors(whole, [0]), add_tailors(whole, 1), with_gate_of(whole, 2)):
        assert part.gate.mode == "gather"
        assert part.gradient_checkpointing
        assert part.backbone.gradient_checkpointing


def test_a_merged_network_has_the_row_of_no_class_for_classes_that_are_gone():
    whole = model()
    (table,) = whole.tables().values()
    (merged,) = (part for part in merge(extract(whole, [1, 3]), 1).modules() if type(part) is LabelTable)
    for label, row in enumerate(merged.weight):
        assert torch.equal(row, table.rows[label] if label in (1, 3) else table.no_class[0])
