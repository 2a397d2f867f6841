"""Statistics in blocks, in memory and on the disk, in one process and in several."""

import os
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from launch import together
from safetensors.torch import load_file, save_file

from genflow.evaluation.blocks import BlockStats
from genflow.evaluation.inception_score import InceptionScore
from genflow.evaluation.statistics import FeatureStats

UNIT = 64


def features(count: int = 500, dims: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dims, generator=generator) @ torch.randn(dims, dims, generator=generator) + 5


def same(a: FeatureStats, b: FeatureStats) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-11, atol=1e-12)


def filled(scratch: Path | None, blocks: int, batch: int = UNIT, x: torch.Tensor | None = None) -> BlockStats:
    x = features() if x is None else x
    stats = BlockStats(x.shape[1], len(x), blocks, scratch)
    for start in range(0, len(x), batch):
        stats.update(x[start : start + batch], start)
    return stats


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("blocks", [1, 7, 500])
@pytest.mark.parametrize("batch", [1, 64, 500])
def test_blocks_are_those_of_the_images(tmp_path, blocks, batch, on_disk):
    x = features()
    stats = filled(tmp_path if on_disk else None, blocks, batch)
    of = torch.tensor([i * blocks // 500 for i in range(500)])
    assert len(stats) == blocks
    same(stats.whole(), FeatureStats.of(x))
    for g in range(0, blocks, 60 if blocks > 60 else 1):
        if (of == g).sum() > 1:
            same(stats.block(g), FeatureStats.of(x[of == g]))
        if blocks > 1:
            same(stats.whole().without(stats.block(g)), FeatureStats.of(x[of != g]))


def test_no_blocks_are_one():
    assert len(filled(None, 0)) == 1
    same(filled(None, 0).whole(), FeatureStats.of(features()))


def test_finished_blocks_are_on_the_disk_and_sets_do_not_collide(tmp_path):
    one, two = filled(tmp_path, 5), filled(tmp_path, 5, x=features() * 2)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(list(tmp_path.rglob("*.raw"))) == 8  # the last ones are in memory
    same(one.whole(), FeatureStats.of(features()))
    same(two.whole(), FeatureStats.of(features() * 2))


def test_refusals():
    stats = BlockStats(6, 100, 10)
    stats.update(features(30), 0)
    with pytest.raises(ValueError, match="ascending"):
        stats.update(features(10), 0)
    with pytest.raises(ValueError, match="71 to 100 are not among the 100"):
        stats.update(features(30), 71)
    with pytest.raises(IndexError):
        stats.block(10)
    with pytest.raises(ValueError, match="total=3 images cannot be cut into blocks=4"):
        BlockStats(6, 3, 4)


def shared(folder: Path, logits: torch.Tensor, lazy: int | None) -> None:
    """Take the units that fall to this process, none if it is ``lazy``, and keep what all find together."""
    state = PartialState(cpu=True)
    rank, x = int(os.environ["RANK"]), features()
    scratch = folder / f"scratch-{rank}"
    scratch.mkdir()
    blocks, stats, score = BlockStats(6, 500, 7, scratch), FeatureStats(6), InceptionScore(500)
    workers = [r for r in range(state.num_processes) if r != lazy]
    for start in range(0, 500, UNIT):
        if rank == workers[start // UNIT % len(workers)]:
            blocks.update(x[start : start + UNIT], start)
            stats.update(x[start : start + UNIT])
            score.update(logits[start : start + UNIT], start)
    blocks, stats, figure = blocks.reduce(), stats.reduce(), score.reduce().score()
    found = {"covariance": stats.covariance, "mean": stats.mean, "score": torch.tensor(figure.value).double()}
    found |= {f"block-{g}": blocks.block(g).covariance for g in range(7)}
    found["whole"] = blocks.whole().covariance
    save_file(found, folder / f"{rank}.safetensors")


@pytest.mark.parametrize("lazy", [None, 0])
def test_processes_find_together_what_one_finds(tmp_path, lazy):
    x = features()
    logits = torch.randn(500, 12, generator=torch.Generator().manual_seed(1)) * 3
    assert together(lambda: shared(tmp_path, logits, lazy), 2) == [0, 0]
    ranks = [load_file(tmp_path / f"{r}.safetensors") for r in range(2)]
    for name in ranks[0]:
        assert torch.equal(ranks[0][name], ranks[1][name])
    alone = InceptionScore(500)
    alone.update(logits, 0)
    blocks = filled(None, 7)
    expected = {f"block-{g}": blocks.block(g).covariance for g in range(7)}
    expected |= {"covariance": FeatureStats.of(x).covariance, "whole": FeatureStats.of(x).covariance}
    expected |= {"mean": FeatureStats.of(x).mean, "score": torch.tensor(alone.score().value).double()}
    for name, value in expected.items():
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-11, atol=1e-12)


def test_a_single_process_reduces_to_itself():
    stats, blocks, score = FeatureStats.of(features()), filled(None, 3), InceptionScore(20)
    assert stats.reduce() is stats
    assert blocks.reduce() is blocks
    assert score.reduce() is score
