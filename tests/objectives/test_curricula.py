"""How many noise levels there are at a step: the papers' numbers, and what keeps a curriculum from growing."""

import math

import pytest
from oracles import CountingNetwork

from genflow.denoiser import Denoiser
from genflow.objectives import AveragedWeights, Constant, Curriculum, Doubling, SquareRoot
from genflow.parameterizations import ConsistencyKarras
from genflow.schedules import VE

PUBLISHED = [11, 21, 41, 81, 161, 321, 641, 1281]


def assert_doubles(curriculum: Curriculum, total: int) -> None:
    """iCT's eight stages, each an eighth of the run, and nothing beyond the last."""
    stage = total // 8
    for number, points in enumerate(PUBLISHED):
        assert curriculum.points(number * stage) == points
        assert curriculum.points((number + 1) * stage - 1) == points
    assert curriculum.points(total) == PUBLISHED[-1]
    assert curriculum.points(3 * total) == PUBLISHED[-1]


@pytest.mark.parametrize("total", [8, 400_000, 800_000])
def test_ict_doubles_in_eight_equal_stages(total: int) -> None:
    assert_doubles(Doubling(total=total), total)


def test_a_length_that_stages_do_not_divide_leaves_the_rest_to_the_last() -> None:
    curriculum = Doubling(total=100)
    assert curriculum.stage == 12
    assert [curriculum.points(k) for k in (0, 11, 12, 83, 84, 99)] == [11, 11, 21, 641, 1281, 1281]


def test_ends_that_are_no_power_of_two_apart_have_stages_by_the_whole_quotient() -> None:
    """``K' = floor(100 / (log2(floor(35 / 10)) + 1)) = floor(100 / 2.585)``; the third stage ends at the cap."""
    curriculum = Doubling(total=100, first=10, last=35)
    assert curriculum.stage == 38
    assert [curriculum.points(k) for k in (0, 37, 38, 75, 76, 99)] == [11, 11, 21, 21, 36, 36]
    assert [Doubling(total=2, first=10, last=25).points(k) for k in (0, 1)] == [11, 21]  # a step for each stage


class Crippled(Curriculum):
    """The same formula with a last number of 11 intervals, as copies of it have."""

    def points(self, step: int) -> int:
        first, last, total = 10, 11, 400_000
        stage = total // (int(math.log2(last // first)) + 1)
        return min(first * 2 ** (step // stage), last) + 1


def test_a_curriculum_that_never_doubles_is_told_apart_and_refused() -> None:
    with pytest.raises(AssertionError):
        assert_doubles(Crippled(), 400_000)
    with pytest.raises(ValueError, match=r"curriculum stuck: .* never does: last must be at least twice first"):
        Doubling(total=400_000, last=11)
    with pytest.raises(ValueError, match="never does"):
        Doubling(total=400_000, first=0)


def test_a_run_shorter_than_its_stages_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train.steps 7 are too few for .*curriculum .* which has 8 stages"):
        Doubling(total=7)


@pytest.mark.parametrize(
    ("last", "table"),
    [
        (150, {0: 2, 1: 3, 8_000: 16, 80_000: 48, 200_000: 76, 400_000: 107, 600_000: 131, 720_000: 144, 799_999: 151}),
        (
            200,
            {0: 2, 1: 3, 8_000: 21, 80_000: 64, 200_000: 101, 400_000: 143, 600_000: 175, 720_000: 191, 799_999: 201},
        ),
    ],
)
def test_cts_square_root(last: int, table: dict[int, int]) -> None:
    curriculum = SquareRoot(total=800_000, last=last)
    assert {k: curriculum.points(k) for k in table} == table
    assert curriculum.points(800_000) == curriculum.points(10**7) == last + 1
    counts = [curriculum.points(k) for k in range(0, 800_001, 100)]
    assert counts == sorted(counts)


def test_cts_average_slows_down_with_the_levels() -> None:
    """mu(k) of the paper for mu_0 = 0.9."""
    student = Denoiser(CountingNetwork(), VE(), ConsistencyKarras(), image_shape=(1, 4, 4))
    target = AveragedWeights(student, rate=0.9, curriculum=SquareRoot(total=800_000))
    table = {0: 0.9, 1: 0.93217, 8_000: 0.986916, 80_000: 0.99562, 200_000: 0.997231, 400_000: 0.998033}
    table |= {600_000: 0.998393, 720_000: 0.998538, 800_000: 0.998605}
    assert {k: target.mu(k) for k in table} == pytest.approx(table, abs=1e-6)
    assert AveragedWeights(student, rate=0.95).mu(10**6) == 0.95


def test_curricula_of_nothing_are_refused() -> None:
    assert Constant(count=18).points(10**9) == 18
    with pytest.raises(ValueError, match="at least 2 points, got 1"):
        Constant(count=1)
    for given in ({"total": 0}, {"total": 9, "first": 1}, {"total": 9, "first": 5, "last": 4}):
        with pytest.raises(ValueError, match=r"2 <= first <= last and train.steps >= 1"):
            SquareRoot(**given)


def test_ends_in_the_wrong_order_are_refused_by_the_names_of_their_options() -> None:
    with pytest.raises(ValueError, match=r"objective.levels.curriculum SquareRoot .* train.steps >= 1, got first 9"):
        SquareRoot(total=10, first=9, last=3)
