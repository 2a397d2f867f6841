"""The gated layer: equal to the merged matrix, in three ways that are one function, with exact zeros for the absent."""

import functools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from genflow.kind import Assigned, Closed, KINDLinear, Mixed
from genflow.kind import linear as linear_module
from genflow.kind.gate import Switch
from genflow.kind.linear import Components, cheapest

CLASSES, RANK, LEARNGENES, IN, OUT = 8, 6, 32, 160, 96
MODES = ["mask", "gather", "segments"]


def components(*batch, rank, dtype=torch.float64, sizes=(OUT, IN)):
    return Components(
        torch.randn(*batch, sizes[0], rank, dtype=dtype) / 10,
        torch.randn(*batch, rank, dtype=dtype),
        torch.randn(*batch, rank, sizes[1], dtype=dtype) / 10,
    )


def layer(dtype=torch.float64, classes=CLASSES):
    learngenes = components(rank=LEARNGENES, dtype=dtype)
    tailors = components(classes, rank=RANK, dtype=dtype)
    return KINDLinear(learngenes, tailors, torch.randn(OUT, dtype=dtype), Switch())


def apply(linear, x, tailors, mode="gather"):
    """Run a layer by one of its modes: segments see the batch sorted, the others as it comes."""
    gating = Assigned(torch.as_tensor(tailors))
    if mode == "segments":
        linear.switch.gating = sort = gating.segments()
        return linear(x[sort.order])[sort.inverse]
    linear.switch.gating = gating
    with mock.patch.object(linear_module, "cheapest", return_value=mode):
        return linear(x)


@pytest.fixture(params=MODES)
def run(request):
    return functools.partial(apply, mode=request.param)


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(5, IN), (5, 7, IN), (5, 2, 3, IN)])
def test_is_the_merged_matrix(run, dtype, tolerance, shape):
    linear = layer(dtype)
    x = torch.randn(shape, dtype=dtype)
    g, t = linear.learngenes, linear.tailors
    for c in range(-1, CLASSES):
        kernel = g.u @ torch.diag(g.sigma) @ g.v
        if c >= 0:
            kernel = kernel + t.u[c] @ torch.diag(t.sigma[c]) @ t.v[c]
        expected = F.linear(x, kernel, linear.bias)
        assert relative(run(linear, x, [c] * 5), expected) <= tolerance
        assert relative(F.linear(x, linear.kernel([c] if c >= 0 else []), linear.bias), expected) <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_mixed_batch_is_its_samples(run, dtype, tolerance):
    linear = layer(dtype)
    tailors = [3, -1, 0, 3, 7, -1, 2]
    x = torch.randn(len(tailors), 4, IN, dtype=dtype)
    out = run(linear, x, tailors)
    for b, c in enumerate(tailors):
        alone = F.linear(x[b], linear.kernel([c] if c >= 0 else []), linear.bias)
        assert relative(out[b], alone) <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_modes_have_the_same_gradients(dtype, tolerance):
    linear, x = layer(dtype), torch.randn(6, 4, IN, dtype=dtype, requires_grad=True)
    seen = {}
    for mode in MODES:
        wanted = [x, *linear.parameters()]
        seen[mode] = torch.autograd.grad(apply(linear, x, [1, -1, 5, 1, 0, -1], mode).square().sum(), wanted)
    for mode in MODES[1:]:
        for a, b in zip(seen[mode], seen["mask"], strict=True):
            assert relative(a, b) <= tolerance


@pytest.mark.parametrize("frozen", ["none", "learngenes", "tailors", "bias", "inputs", "no bias"])
def test_gradients_of_segments_by_differences(frozen):
    """By what is trained: each part's gradient is worked out only if somebody asks for it."""
    learngenes, tailors = components(rank=2, sizes=(3, 4)), components(3, rank=2, sizes=(3, 4))
    bias = None if frozen == "no bias" else torch.randn(3, dtype=torch.float64)
    linear = KINDLinear(learngenes, tailors, bias, Switch())
    for name, p in linear.named_parameters():
        p.requires_grad_(not name.startswith(frozen.removesuffix("s")))
    x = torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=frozen != "inputs")
    names = [name for name, p in linear.named_parameters() if p.requires_grad]

    def layer_of(x, *values):
        call = functools.partial(apply, mode="segments", tailors=[2, -1, 0, 2])
        with mock.patch.dict(linear._parameters, dict(zip(names, values, strict=True))):
            return call(linear, x)

    assert torch.autograd.gradcheck(layer_of, (x, *(p for p in linear.parameters() if p.requires_grad)))


def test_absent_tailors_get_exactly_no_gradient(run):
    linear = layer()
    run(linear, torch.randn(5, 4, IN, dtype=torch.float64), [3] * 5).square().sum().backward()
    for p in (linear.tailor_u, linear.tailor_sigma, linear.tailor_v):
        others = torch.cat([p.grad[:3], p.grad[4:]])
        assert not others.any()
        assert p.grad[3].flatten().all()
    for p in (linear.learngene_u, linear.learngene_sigma, linear.learngene_v):
        assert p.grad.all()


def test_a_tailor_learns_from_its_own_rows_only(run):
    linear, x = layer(), torch.randn(6, 4, IN, dtype=torch.float64)
    tailors = torch.tensor([2, 0, -1, 2, 5, 0])
    parameters = [linear.tailor_u, linear.tailor_sigma, linear.tailor_v]
    mixed = torch.autograd.grad(run(linear, x, tailors).square().sum() / 6, parameters)
    for c in (0, 2, 5):
        rows = tailors == c
        own = torch.autograd.grad(run(linear, x[rows], tailors[rows]).square().sum() / 6, parameters)
        for a, b in zip(mixed, own, strict=True):
            assert relative(a[c], b[c]) < 1e-12


def test_what_the_others_are_does_not_matter(run):
    linear = layer(torch.float32)
    x = torch.randn(5, 4, IN)
    one, other = run(linear, x, [1, 2, 3, 4, -1]), run(linear, x, [1, 7, -1, 0, 0])
    assert (one[0] - other[0]).abs().max() <= 1e-6


def test_no_tailor_is_learngenes_only(run):
    linear, x = layer(), torch.randn(3, 4, IN, dtype=torch.float64)
    bare = KINDLinear(linear.learngenes, components(0, rank=RANK), linear.bias, Switch())
    expected = run(bare, x, [-1] * 3)
    assert torch.equal(run(linear, x, [-1] * 3), expected)
    linear.switch.gating = Closed()
    assert torch.equal(linear(x), expected)
    with torch.no_grad():
        for p in (linear.tailor_u, linear.tailor_sigma, linear.tailor_v):
            p.mul_(3).add_(1)
    assert torch.equal(run(linear, x, [-1] * 3), expected)


def test_soft_gates_mix_kernels():
    linear, x = layer(), torch.randn(3, 4, IN, dtype=torch.float64)
    weights = torch.rand(3, CLASSES, dtype=torch.float64, requires_grad=True)
    linear.switch.gating = Mixed(weights)
    out = linear(x)
    base = linear.kernel()
    for b in range(3):
        kernel = base + sum(w * (linear.kernel([c]) - base) for c, w in enumerate(weights[b].detach()))
        assert relative(out[b], F.linear(x[b], kernel, linear.bias)) < 1e-12
    out.sum().backward()
    assert weights.grad.all()
    hard = Mixed(F.one_hot(torch.tensor([4, 0, 2]), CLASSES).double())
    linear.switch.gating = hard
    assert relative(linear(x), apply(linear, x, [4, 0, 2])) < 1e-12


def test_under_autocast_all_modes_return_bfloat16(run):
    linear, x = layer(torch.float32), torch.randn(4, 3, IN)
    exact = run(linear, x, [-1, 2, 0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        out = run(linear, x, [-1, 2, 0, 2])
        nothing = run(linear, x, [-1] * 4)
    assert out.dtype == nothing.dtype == torch.bfloat16
    assert relative(out.float(), exact) < 0.02


def test_the_merged_kernel_of_bfloat16_factors_is_rounded_once():
    linear = layer(torch.float64)
    rounded = layer(torch.bfloat16)
    rounded.load_state_dict(linear.state_dict())
    linear.load_state_dict({k: v.double() for k, v in rounded.state_dict().items()})
    exact = linear.kernel([1])
    assert rounded.kernel([1]).dtype == torch.bfloat16
    assert (rounded.kernel([1]).double() - exact).abs().max() <= exact.abs().max() * 2**-8


def test_the_mode_follows_the_work():
    """The second is KIND on ImageNet; a copy is too dear where an image is one vector."""
    assert cheapest(tokens=1, tailors=10) == "mask"
    assert cheapest(tokens=256, tailors=150) == "gather"
    assert cheapest(tokens=256, tailors=1) == "mask"  # nothing to choose from


def test_misuse_is_refused():
    linear = layer()
    with pytest.raises(RuntimeError, match="no gate is held"):
        linear(torch.randn(2, IN, dtype=torch.float64))
    with pytest.raises(ValueError, match="told of 3 images, and a layer got a batch of 2"):
        apply(linear, torch.randn(2, IN, dtype=torch.float64), [0, 1, 2])
