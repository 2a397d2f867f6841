"""Which noise levels are compared, and how often: the papers' numbers, and the mistakes that they tell apart."""

import math
from dataclasses import dataclass

import pytest
import torch
from oracles import CountingNetwork
from torch import Tensor, nn

from genflow.denoiser import Denoiser
from genflow.objectives import (
    Constant,
    Doubling,
    EasyLevels,
    GridLevels,
    InverseGap,
    InverseOutput,
    Levels,
    LogNormalInterval,
    UniformInterval,
    Unweighted,
    karras_grid,
)
from genflow.parameterizations import ConsistencyKarras, Karras
from genflow.schedules import VE

GRID_11 = [0.002, 0.0167207532, 0.0850872027, 0.3182832888, 0.9654169263, 2.515219, 5.838948]
GRID_11 += [12.38158, 24.40834, 45.31373, 80.0]
LAW_11 = [0.062633, 0.181737, 0.245501, 0.213494, 0.142446, 0.080605, 0.041080, 0.019580, 0.008944, 0.003980]
GAPS_11 = [67.9313, 14.6271, 4.28824, 1.54528, 0.645244, 0.300867, 0.152844, 0.0831479, 0.0478346, 0.0288299]


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ranks(count: int) -> Tensor:
    """Evenly spread ranks: what a law does with them is its distribution."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def on_grid(count: int, law=None) -> GridLevels:
    return GridLevels(curriculum=Constant(count=count), law=law or LogNormalInterval())


def ve_model(parameterization=None) -> Denoiser:
    return Denoiser(CountingNetwork(), VE(), parameterization or ConsistencyKarras(), image_shape=(1, 4, 4))


# The grid


def test_the_published_grids() -> None:
    torch.testing.assert_close(karras_grid(11), float64(*GRID_11), rtol=1e-6, atol=0)
    fine = karras_grid(1281)
    assert fine[[1, 640, 1279]].tolist() == pytest.approx([0.002039086, 2.515218976, 79.659404], rel=1e-6)
    assert fine[[492, 571]].tolist() == pytest.approx([0.820867, 1.525766], rel=1e-5)  # iCT's middle times
    assert fine.dtype == torch.float64
    formula = [(0.002 ** (1 / 7) + i / 1280 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(1281)]
    torch.testing.assert_close(fine, float64(*formula), rtol=1e-12, atol=0)  # to the digits of float64


@pytest.mark.parametrize("points", [2, 11, 18, 151, 1281])
def test_a_grid_ends_exactly_where_the_schedule_does(points: int) -> None:
    grid = karras_grid(points)
    assert (float(grid[0]), float(grid[-1])) == (0.002, 80.0)
    assert (grid.diff() > 0).all()
    assert len(grid) == points


def test_neighbours_stay_apart_in_what_they_are_computed_in() -> None:
    """In bfloat16 65 of 1,280 levels are their neighbours; in float16 gaps are off by up to a sixth."""
    grid = karras_grid(1281)
    assert int((grid.bfloat16().diff() == 0).sum()) == 65
    gaps = grid.half().double().diff() / grid.diff()
    assert float((gaps - 1).abs().max()) == pytest.approx(0.17, abs=0.01)
    t, s = on_grid(1281).pairs(ranks(10_000), 0)
    assert t.dtype == s.dtype == torch.float64
    assert (t > s).all()


# The laws of intervals


def assert_is_icts(law, points: int = 1281) -> None:
    """The probabilities of the last grid: most in the middle of what makes an image."""
    grid = karras_grid(points)
    p = law.probabilities(grid)
    assert float(p.sum()) == pytest.approx(1, rel=1e-12)
    assert [float(p[0]), float(p[-1])] == pytest.approx([1.49821e-4, 2.01095e-5], rel=1e-5)
    mode = int(p.argmax())
    assert (mode + 1, float(p.max())) == (330, pytest.approx(1.95569e-3, rel=1e-5))
    assert float(grid[mode]) == pytest.approx(0.186089, rel=1e-5)
    reached = p.cumsum(0)
    quantiles = [int(torch.searchsorted(reached, torch.tensor(q, dtype=torch.float64))) + 1 for q in QUANTILES]
    assert quantiles == [43, 260, 390, 548, 1056]
    assert float((p * grid[1:]).sum()) == pytest.approx(1.91722, rel=1e-5)


QUANTILES = [0.01, 0.25, 0.5, 0.75, 0.99]


def test_icts_law() -> None:
    torch.testing.assert_close(
        LogNormalInterval().probabilities(karras_grid(11)), float64(*LAW_11), rtol=1e-4, atol=1e-6
    )
    assert_is_icts(LogNormalInterval())


def test_the_wrong_sign_of_the_mean_is_told_apart() -> None:
    law, grid = LogNormalInterval(mean=1.1), karras_grid(1281)
    with pytest.raises(AssertionError):
        assert_is_icts(law)
    assert float(grid[law.probabilities(grid).argmax()]) == pytest.approx(1.6936, rel=1e-4)
    above = [float(made.probabilities(grid)[grid[:-1] > 1].sum()) for made in (LogNormalInterval(), law)]
    assert above == pytest.approx([0.29, 0.69], abs=0.01)


@pytest.mark.parametrize("law", [LogNormalInterval(), UniformInterval()], ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("points", [2, 11, 161])
def test_intervals_are_drawn_as_often_as_their_law_says(law, points: int) -> None:
    """Exactly: of evenly spread ranks each interval gets its share, to one."""
    grid, count = karras_grid(points), 100_000
    t, s = on_grid(points, law).pairs(ranks(count), 0)
    counts = torch.bincount(torch.searchsorted(grid, s), minlength=points - 1)
    assert (counts - count * law.probabilities(grid)).abs().max() <= 1 + 1e-6
    assert (t.diff() >= 0).all()


@pytest.mark.parametrize("mean", [-50.0, 200.0])
def test_laws_of_no_level_of_the_grid_are_refused(mean: float) -> None:
    """Where erf is the same at both ends, shares would be 0 / 0."""
    law = LogNormalInterval(mean=mean)
    with pytest.raises(
        ValueError, match=f"mean {mean:g} and deviation 2 leaves nothing between the noise levels 0.002"
    ):
        law.probabilities(karras_grid(11))
    levels = GridLevels(curriculum=Constant(count=11), law=law)
    denoiser = Denoiser(nn.Identity(), VE(), ConsistencyKarras(), image_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="leaves nothing"):
        levels.check(denoiser)


def test_the_ends_of_the_ranks_are_the_ends_of_the_grid() -> None:
    t, s = on_grid(11).pairs(float64(1e-12, 1 - 1e-16, 1.0), 0)
    assert s.tolist()[0] == 0.002
    assert t.tolist()[1:] == [80.0, 80.0]


# Pairs of the grid


@dataclass(frozen=True, kw_only=True)
class Unanchored(Levels):
    """Indices from 1 to N - 1 over N - 1: the lowest level is left out."""

    points: int

    def pairs(self, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        i = torch.arange(1, self.points, dtype=torch.float64) / (self.points - 1)
        grid = (0.002 ** (1 / 7) + i * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
        k = (u * (len(grid) - 1)).long()
        return grid[k + 1], grid[k]


def assert_anchored(levels: Levels) -> None:
    """The lowest level that teaches is the one at which the model is the identity, to the last bit."""
    t, s = levels.pairs(ranks(20_000), 0)
    lowest = s == s.min()
    assert set(s[lowest].tolist()) == {0.002}
    row = ConsistencyKarras().coefficients(VE(), s[lowest])
    assert (row.c_out == 0).all()
    assert (row.c_skip == 1).all()
    assert float(t.max()) == 80.0


@pytest.mark.parametrize("points", [2, 11, 1281])
def test_the_lowest_teacher_is_the_identity(points: int) -> None:
    assert_anchored(on_grid(points, UniformInterval()))


def test_a_grid_without_its_lowest_level_is_told_apart() -> None:
    with pytest.raises(AssertionError):
        assert_anchored(Unanchored(points=11))


def test_pairs_are_neighbours_of_the_grid_of_the_step() -> None:
    """The student's index is one above the teacher's, and the grid follows the curriculum."""
    levels = GridLevels(curriculum=Doubling(total=800), law=UniformInterval())
    for step, points in ((0, 11), (99, 11), (100, 21), (799, 1281)):
        grid = karras_grid(points)
        t, s = levels.pairs(ranks(4 * points), step)
        above = torch.searchsorted(grid, t)
        assert torch.equal(grid[above], t)
        assert torch.equal(grid[above - 1], s)
        assert set(above.tolist()) == set(range(1, points))


# Weights


def test_icts_weights() -> None:
    grid = karras_grid(11)
    weights = InverseGap()(ve_model(), grid[1:], grid[:-1])
    torch.testing.assert_close(weights, float64(*GAPS_11), rtol=1e-5, atol=0)
    fine = karras_grid(1281)
    weights = InverseGap()(ve_model(), fine[1:], fine[:-1])
    assert weights[[0, -1]].tolist() == pytest.approx([25584.72, 2.93603], rel=1e-5)


def test_the_mean_weight_of_each_stage() -> None:
    means = []
    for points in (11, 21, 41, 81, 161, 321, 641, 1281):
        grid = karras_grid(points)
        means.append(float((LogNormalInterval().probabilities(grid) / grid.diff()).sum()))
    assert means == pytest.approx([8.42, 17.45, 35.19, 70.52, 141.1, 282.3, 564.6, 1129.1], rel=1e-3)


def test_the_other_weights() -> None:
    t, s = float64(0.3, 5.0, 80.0), float64(0.2, 4.0, 79.0)
    assert torch.equal(Unweighted()(ve_model(), t, s), torch.ones(3, dtype=torch.float64))
    expected = 1 / t**2 + 1 / 0.5**2  # EDM's
    torch.testing.assert_close(InverseOutput()(ve_model(Karras()), t, s), expected)


# ECT's continuous pairs


def test_the_published_values_of_ects_mapping() -> None:
    levels = EasyLevels(total=8)
    table: dict[int, dict[float, float]] = {
        0: {1.9: 0, 2.0: 0.046377, 5.0: 2.366143, 80.0: 40.0},
        1: {0.51: 0, 1.0: 0.212117},
        2: {0.1: 0.039998, 1.0: 0.606059},
        7: {0.1: 0.098125, 1.0: 0.987689, 80.0: 79.6875},
    }
    for stage, values in table.items():
        below = levels.below(float64(*values), stage)
        assert below.tolist() == pytest.approx(list(values.values()), abs=1e-6)
    corner = float64(math.log(7) - 1e-6, math.log(7) + 1e-6)
    assert (levels.below(corner, 0) > 0).tolist() == [False, True]
    corner = float64(0.5108 - 1e-4, 0.5108 + 1e-4)
    assert (levels.below(corner, 1) > 0).tolist() == [False, True]
    short = EasyLevels(total=8000, q=256.0, stages=1)  # the hour's run: the last stage from the start
    t = torch.logspace(-2, 1.9, 20, dtype=torch.float64)
    assert torch.equal(short.below(t, 5), levels.below(t, 7))


def test_ects_stages_share_the_run() -> None:
    levels = EasyLevels(total=200_000)
    assert [levels.stage(k) for k in (0, 24_999, 25_000, 174_999, 175_000, 199_999, 300_000)] == [0, 0, 1, 6, 7, 7, 7]


def test_ects_pairs_are_log_normal_above_and_ordered() -> None:
    u = ranks(10_000)
    for step in range(8):
        t, s = EasyLevels(total=8).pairs(u, step)
        torch.testing.assert_close(torch.special.ndtr((t.log() + 1.1) / 2.0), u)
        assert (t > s).all()
        assert (s >= 0).all()
        assert (s.diff() >= 0).all()


def test_the_constant_mapping_keeps_a_share_of_the_level() -> None:
    levels = EasyLevels(total=10, k=0.0, q=256.0, stages=1)
    t = float64(1e-3, 1.0, 80.0)
    torch.testing.assert_close(levels.below(t, 0), t * 255 / 256)


@pytest.mark.parametrize("b", [0.5, 1.0, 2.0])
def test_the_gap_narrows_as_soon_as_b_says(b: float) -> None:
    """At t = ln 3 / b the sigmoid is a quarter: with k = 8 and q = 4 the gap is 3 / 4 of t, then 3 / 16."""
    levels, t = EasyLevels(total=8, q=4.0, b=b), float64(math.log(3) / b)
    torch.testing.assert_close(levels.below(t, 0), t / 4)
    torch.testing.assert_close(levels.below(t, 1), t * 13 / 16)


@pytest.mark.parametrize("given", [{"q": 1.0}, {"k": -1.0}, {"b": -1.0}, {"std": 0.0}, {"stages": 0}, {"stages": 11}])
def test_mappings_that_go_nowhere_are_refused(given: dict) -> None:
    with pytest.raises(
        ValueError, match=r"objective.levels Easy needs q > 1, k >= 0, b >= 0, std > 0 and stages from 1 to train.steps"
    ):
        EasyLevels(total=10, **given)


def test_the_log_is_told_how_far_training_has_come() -> None:
    grid = GridLevels(curriculum=Doubling(total=800), law=UniformInterval())
    assert [grid.pace(step) for step in (0, 100, 799)] == [{"levels": 11}, {"levels": 21}, {"levels": 1281}]
    assert [EasyLevels(total=8).pace(step) for step in (0, 7)] == [{"stage": 0}, {"stage": 7}]
