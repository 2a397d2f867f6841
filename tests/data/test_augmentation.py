"""EDM's augmentation: closed forms, the published outputs, the laws of its labels."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from goldens.weights import fill

from genflow.data.augmentation import LABELS, SYM6, Augmentation, origins, warp

GOLDEN = Path(__file__).parent.parent / "goldens" / "augment.npz"  # made by goldens/make_augment.py
NONE = {"scale": 0.0, "turn": 0.0, "stretch": 0.0, "axis": 0.0, "right": 0.0, "down": 0.0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def transform(x, **parameters):
    """Images after the operations named, each with one parameter for all images or one for each."""
    values = {k: torch.as_tensor(v, dtype=torch.float32).expand(len(x)).float() for k, v in (NONE | parameters).items()}
    return warp(x, origins(**values, sides=x.shape[2:]))


def told(x, labels, sign):
    """What labels say was done to images. They leave open whether the n of the stretch is below 0: its ``sign``."""
    x = torch.where(labels[:, 0].view(-1, 1, 1, 1) == 1, x.flip(3), x)
    x = torch.where(labels[:, 1].view(-1, 1, 1, 1) == 1, x.flip(2), x)
    _, _, scale, cos, sin, a, b, right, down = labels.unbind(1)
    turn = torch.atan2(sin, cos + 1)
    stretch, axis = sign * torch.hypot(a, b), torch.atan2(sign * b, sign * a)
    return transform(x, scale=scale, turn=turn, stretch=stretch, axis=axis, right=right, down=down)


def assert_told(x, labels, out):
    errors = torch.stack([(told(x, labels, sign) - out).abs().flatten(1).amax(1) for sign in (1, -1)])
    assert errors.amin(0).max() < 1e-4
    stretched = labels[:, 5:7].norm(dim=1) > 0.1
    assert (errors.amax(0)[stretched] > 1e-2).all()  # the other sign is another picture


def blob(height=56, width=56, *, x=4.0, y=-2.0, matrix=((1.0, 0.0), (0.0, 1.0))):
    """A smooth blob of two widths around (x, y), or, with a matrix M, what stands at p of it was at M p."""
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    q, p = torch.meshgrid(rows, columns, indexing="ij")
    (a, b), (c, d) = matrix
    u, v = a * p + b * q - x, c * p + d * q - y
    return torch.exp(-((u / 3) ** 2) / 2 - ((v / 2.2) ** 2) / 2 - u * v / 20)[None, None]


def test_the_filter_is_the_wavelet_it_is_said_to_be() -> None:
    """Orthogonal to its shifts by 2; its high-pass partner kills polynomials up to degree 5."""
    f = np.array(SYM6)
    assert f.sum() == pytest.approx(math.sqrt(2), abs=1e-11)
    for shift in range(6):
        assert f[2 * shift :] @ f[: 12 - 2 * shift] == pytest.approx(float(shift == 0), abs=1e-11)
    k = np.arange(12)
    for degree in range(6):
        assert ((-1.0) ** k * f[::-1] * (k / 11) ** degree).sum() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("sides", [(8, 8), (32, 32), (7, 12), (1, 5), (2, 3), (1, 1)])
def test_no_operation_changes_nothing_but_rounding(sides) -> None:
    x = torch.rand(3, 2, *sides) * 2 - 1
    torch.testing.assert_close(transform(x), x, rtol=0, atol=2e-5)


def test_agrees_with_the_published_code() -> None:
    """Images, and labels in the order and the meaning that published networks know."""
    with np.load(GOLDEN) as data:
        labels, out = (torch.from_numpy(data[key]) for key in ("labels", "out"))
    x = 20 * fill({"images": (12, 2 * 24 * 20)})["images"].view(12, 2, 24, 20)
    assert x.std() == pytest.approx(20 / math.sqrt(960), rel=0.02)
    assert_told(x, labels, out)


@pytest.mark.parametrize("sides", [(32, 32), (8, 8), (12, 20)])
def test_labels_tell_what_was_done(sides) -> None:
    x = torch.rand(64, 1, *sides) * 2 - 1
    out, labels = Augmentation(0.6)(x)
    assert_told(x, labels, out)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarter_turns_are_counter_clockwise(quarters) -> None:
    """The filter, which is not quite symmetric, displaces what it turns by up to 0.14 pixels."""
    turned = transform(blob(), turn=quarters * math.pi / 2)
    torch.testing.assert_close(turned, blob().rot90(quarters, (2, 3)), rtol=0, atol=4e-2)
    for other in {0, 1, 2, 3} - {quarters % 4}:
        assert (turned - blob().rot90(other, (2, 3))).abs().max() > 0.9


@pytest.mark.parametrize(("n", "factor"), [(2.0, 2**0.4), (-2.5, 2**-0.5), (5.0, 2.0)])
def test_scales_are_powers_of_two(n, factor) -> None:
    expected = blob(x=2.0, y=1.0, matrix=((1 / factor, 0), (0, 1 / factor)))
    torch.testing.assert_close(transform(blob(x=2.0, y=1.0), scale=n), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("axis", [0.0, 0.5, math.pi / 2, -2.0])
def test_a_stretch_is_along_its_axis(axis) -> None:
    """The axis is fixed as a direction, longer by 2^0.4; across it all is shorter by as much. y points down."""
    along, across = (math.cos(axis), -math.sin(axis)), (math.sin(axis), math.cos(axis))
    matrix = [
        [2**-0.4 * along[i] * along[j] + 2**0.4 * across[i] * across[j] for j in range(2)] for i in range(2)
    ]  # undoes the stretch
    expected = blob(x=3.0, y=1.0, matrix=matrix)
    torch.testing.assert_close(transform(blob(x=3.0, y=1.0), stretch=2.0, axis=axis), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -5), (-7, 4), (20, -30)])
def test_whole_pixels_are_moved_exactly_and_mirrored_at_the_edges(right, down) -> None:
    x = torch.rand(2, 3, 24, 16) * 2 - 1
    moved = transform(x, right=right * 8 / 16, down=down * 8 / 24)
    ways = [torch.arange(n).sub(by).remainder(2 * n - 2) for n, by in ((24, down), (16, right))]
    rows, columns = (torch.where(k < n, k, 2 * n - 2 - k) for n, k in zip((24, 16), ways, strict=True))
    torch.testing.assert_close(moved, x[:, :, rows][:, :, :, columns], rtol=0, atol=1e-4)
    if 0 <= right < 16 and -24 < down <= 0:
        padded = F.pad(x, (right, 0, 0, -down), mode="reflect")[:, :, -down:, :16]
        torch.testing.assert_close(moved, padded, rtol=0, atol=1e-4)


def test_operations_follow_each_other_in_the_order_of_the_labels() -> None:
    parameters = {"scale": 1.0, "turn": 0.7, "stretch": -1.0, "axis": 0.4, "right": 0.5, "down": -0.3}
    steps = [{"scale": 1.0}, {"turn": 0.7}, {"stretch": -1.0, "axis": 0.4}, {"right": 0.5, "down": -0.3}]
    x = blob(x=1.0, y=1.0)
    at_once = transform(x, **parameters)
    for step in steps:
        x = transform(x, **step)
    torch.testing.assert_close(at_once, x, rtol=0, atol=2e-2)


def test_labels_are_zero_where_images_are_unchanged() -> None:
    """Bit by bit; and a mirrored image is exactly that."""
    x = torch.rand(400, 1, 8, 8) * 2 - 1
    out, labels = Augmentation(0.3)(x)
    same = (out == x).flatten(1).all(1)
    assert torch.equal(same, (labels == 0).all(1))
    assert 20 < same.sum() < 80  # half of 0.7^4 0.85 are 41
    plain = (labels[:, 2:] == 0).all(1)
    for mirrored, dims in (((1, 0), [3]), ((0, 1), [2]), ((1, 1), [2, 3])):
        rows = plain & (labels[:, :2] == torch.tensor(mirrored)).all(1)
        assert rows.any()
        assert torch.equal(out[rows], x[rows].flip(dims))


def test_probability_zero_leaves_the_mirror() -> None:
    x = torch.rand(1000, 1, 4, 4)
    out, labels = Augmentation(0.0)(x)
    mirrored = labels[:, 0] == 1
    assert mirrored.sum() == pytest.approx(500, abs=64)  # 4 standard deviations
    assert not labels[:, 1:].any()
    assert torch.equal(out[mirrored], x[mirrored].flip(3))
    assert torch.equal(out[~mirrored], x[~mirrored])


def uniformity(u) -> float:
    """Kolmogorov and Smirnov's distance from the uniform law on [0, 1], in units of its standard scale."""
    u = u.double().sort().values
    n = len(u)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(ranks[1:] - u, u - ranks[:-1]).max() * math.sqrt(n))


def test_labels_follow_their_laws() -> None:
    n, p = 40_000, 0.3
    _, labels = Augmentation(p)(torch.zeros(n, 1, 1, 1))
    assert labels.shape == (n, LABELS)
    assert labels.dtype == torch.float32
    groups = [labels[:, k].any(1) for k in ([0], [1], [2], [3, 4], [5, 6], [7, 8])]
    rates = [0.5, p / 2, p, p, p, p]
    for done, rate in zip(groups, rates, strict=True):
        assert abs(done.double().mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / n)
    together = torch.stack(groups).double().corrcoef().fill_diagonal_(0)
    assert together.abs().max() < 4.5 / math.sqrt(n)
    assert set(labels[:, :2].unique().tolist()) == {0.0, 1.0}

    ndtr = torch.special.ndtr
    angle = torch.atan2(labels[:, 4], labels[:, 3] + 1)[groups[3]]
    stretch = labels[groups[4], 5:7]
    tilted = stretch[:, 1] != 0
    assert abs(tilted.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(len(tilted))
    laws = [
        ndtr(labels[groups[2], 2]),
        angle / (2 * math.pi) + 0.5,
        2 * ndtr(stretch.norm(dim=1)) - 1,
        ndtr(stretch[~tilted, 0]),
        torch.atan2(stretch[tilted, 1], stretch[tilted, 0]) / (2 * math.pi) + 0.5,
        ndtr(labels[groups[5], 7]),
        ndtr(labels[groups[5], 8]),
    ]
    assert [uniformity(u) < 1.95 for u in laws] == [True] * len(laws)  # passed by 999 in 1000
    assert ((labels[:, 3] + 1) ** 2 + labels[:, 4] ** 2).sub(1).abs().max() < 1e-5


def test_seeds_decide_and_images_do_not_see_each_other() -> None:
    x = torch.rand(16, 3, 12, 12)

    def run(images, number):
        torch.manual_seed(number)
        return Augmentation(0.5)(images)

    out, labels = run(x, 1)
    again, same = run(x, 1)
    assert torch.equal(out, again)
    assert torch.equal(labels, same)
    assert not torch.equal(labels, run(x, 2)[1])
    other = x.clone()
    other[3] = 0.0
    changed, _ = run(other, 1)
    rest = torch.arange(16) != 3
    assert torch.equal(changed[rest], out[rest])
    assert labels.unique(dim=0).shape[0] > 12


def test_images_stay_near_their_range() -> None:
    """Only interpolation overshoots: a constant stays as it is, noise of ±1 hardly leaves the range."""
    out, _ = Augmentation(1.0)(torch.ones(64, 1, 16, 16))
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=1e-4)
    out, _ = Augmentation(1.0)(torch.rand(64, 1, 16, 16).round() * 2 - 1)
    assert 1 < out.abs().max() < 2.5


def test_nothing_is_read_back_from_the_device() -> None:
    """The meta device has no numbers to read."""
    out, labels = Augmentation(0.5)(torch.empty(5, 3, 16, 24, device="meta"))
    assert out.shape == (5, 3, 16, 24)
    assert labels.shape == (5, LABELS)
    assert out.device.type == labels.device.type == "meta"


def test_no_gradient_is_kept() -> None:
    out, labels = Augmentation(0.5)(torch.rand(2, 1, 8, 8, requires_grad=True))
    assert not out.requires_grad
    assert not labels.requires_grad


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_other_probabilities_are_refused(probability) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        Augmentation(probability)
