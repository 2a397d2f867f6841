"""What an optimizer does to tailors that are absent, and that a run repeats itself."""

import pytest
import torch
from torch import nn

from genflow.kind import KINDConfig, decompose, lazy_tailors
from genflow.nn import DiT

DIT = {"image_size": (4, 4), "in_channels": 1, "num_classes": 4, "width": 16, "depth": 1, "heads": 2}


def model():
    torch.manual_seed(0)
    network = DiT(**DIT)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return decompose(network, KINDConfig(class_to_tailor=(0, 1, 2, 3)))


def step(network, optimizer, labels):
    optimizer.zero_grad()
    y = torch.tensor(labels)
    loss = (network(torch.randn(len(y), 1, 4, 4), torch.randn(len(y)), y) - 1).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def block(network, c):
    parts = [p[c] for n, p in network.named_parameters() if "tailor_" in n or n.endswith("rows")]
    return torch.cat([p.detach().flatten() for p in parts])


def test_what_was_never_active_never_moves():
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    before = [block(network, c).clone() for c in range(4)]
    for _ in range(50):
        step(network, optimizer, [0, 2, 4])
    for c in (1, 3):
        assert torch.equal(block(network, c), before[c])
    for c in (0, 2):
        assert (block(network, c) != before[c]).float().mean() > 0.99


def test_plain_adam_moves_absent_tailors_by_their_momentum():
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    step(network, optimizer, [0, 1])
    before = block(network, 0).clone()
    step(network, optimizer, [1, 2])
    assert (block(network, 0) - before).norm() > 0


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_lazy_ones_stay_in_every_step(weight_decay, amsgrad):
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=weight_decay, amsgrad=amsgrad)
    lazy_tailors(optimizer, network)
    watched = next(iter(network.linears().values())).tailor_u

    def moments(c):
        return [v[c].clone() for v in optimizer.state[watched].values() if v.shape == watched.shape]

    for labels in ([0, 1], [1, 2], [0, 4], [3], [2, 2]):
        before = [block(network, c).clone() for c in range(4)]
        kept = [moments(c) for c in range(4)]
        step(network, optimizer, labels)
        for c in range(4):
            assert torch.equal(block(network, c), before[c]) != (c in labels)
            if c not in labels:
                assert all(torch.equal(a, b) for a, b in zip(moments(c), kept[c], strict=bool(kept[c])))


def test_present_lazy_tailors_take_adams_step():
    plain, lazy = model(), model()
    for network in (plain, lazy):
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
        if network is lazy:
            lazy_tailors(optimizer, network)
        torch.manual_seed(1)
        for _ in range(3):
            step(network, optimizer, [0, 1, 2, 3])
    for a, b in zip(plain.parameters(), lazy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["mask", "segments"])
def test_the_same_seed_gives_the_same_run(mode):
    def curve():
        network = model()
        network.gate.mode = mode
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
        torch.manual_seed(1)
        return torch.stack([step(network, optimizer, torch.randint(0, 5, (8,)).tolist()) for _ in range(10)])

    first = curve()
    assert torch.equal(first, curve())
    assert first[-1] < first[0]
