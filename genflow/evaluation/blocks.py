"""Statistics of consecutive blocks of images, one in memory and the others on disk: what error bars are made of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import final

from torch import Tensor

from genflow.evaluation.reduction import several_processes
from genflow.evaluation.statistics import FeatureStats


@final
class BlockStats:
    """Statistics of ``total`` images in ``blocks`` blocks: image i belongs to block i * blocks // total.

    Only the sums of the block that is being filled are in memory; finished ones are raw files in a folder of their own
    under ``scratch``, which the caller removes, or in memory if that is None. 0 blocks are 1: all is one block.

    Args:
        dims: D.
        total: how many images there will be, in all processes together.
        blocks: how many blocks.
        scratch: a folder that is there.

    Raises:
        ValueError: total < 1, or blocks < 0 or more than images.
    """

    def __init__(self, dims: int, total: int, blocks: int = 1, scratch: Path | None = None) -> None:
        blocks = blocks or 1
        if not 1 <= blocks <= total:
            raise ValueError(f"total={total} images cannot be cut into blocks={blocks}")
        self.dims, self.total = dims, total
        self._blocks = blocks
        self._folder = None if scratch is None else Path(tempfile.mkdtemp(prefix="blocks-", dir=scratch))
        self._kept: dict[int, FeatureStats] = {}
        self._filling = 0
        self._current = FeatureStats(dims)
        self._whole: FeatureStats | None = None

    def __len__(self) -> int:
        return self._blocks

    def update(self, features: Tensor, first_index: int) -> None:
        """Add the features (B, D) of images first_index, first_index + 1, ...

        A process may leave out images, others have them, but must add in ascending order.

        Raises:
            ValueError: an image is not among ``total`` or belongs to a block before the one that is being filled, or
                as ``FeatureStats.update``.
        """
        last = first_index + len(features) - 1
        if first_index < 0 or last >= self.total:
            raise ValueError(f"images {first_index} to {last} are not among the {self.total} expected")
        while len(features):
            block = first_index * self._blocks // self.total
            if block < self._filling:
                raise ValueError(f"image {first_index} came after images of later blocks: add in ascending order")
            if block > self._filling:
                self._store(self._filling, self._current)
                self._filling, self._current = block, FeatureStats(self.dims)
            end = -(-(block + 1) * self.total // self._blocks)  # where the next block starts
            self._current.update(features[: end - first_index])
            features, first_index = features[end - first_index :], end

    def block(self, number: int) -> FeatureStats:
        """Statistics of one block, without images if none came."""
        if not 0 <= number < self._blocks:
            raise IndexError(f"block {number} of {self._blocks}")
        if number == self._filling:
            return self._current
        if number in self._kept:
            return self._kept[number]
        path = self._path(number)
        return FeatureStats.read_raw(path, self.dims) if path and path.exists() else FeatureStats(self.dims)

    def whole(self) -> FeatureStats:
        """Statistics of all images, which are kept; the last block then joins the others on the disk.

        Raises:
            ValueError: not all have come.
        """
        if self._whole is not None:
            return self._whole
        whole = FeatureStats(self.dims)
        for number in range(self._blocks):
            whole = whole.merge(self.block(number))
        if whole.count != self.total:
            raise ValueError(f"{whole.count} of the {self.total} images have come: the statistics are of all")
        self.put_away()
        self._whole = whole
        return whole

    def put_away(self) -> None:
        """Bring the last block to the others, on the disk; no more images can come."""
        if self._filling < self._blocks:
            self._store(self._filling, self._current)
            self._filling, self._current = self._blocks, FeatureStats(1)  # no block is filled any more

    def reduce(self) -> BlockStats:
        """Statistics of the images of all processes together, the same in each; one block is in memory at a time.

        Every process must call it, also one without images. A single process gets these statistics themselves.
        """
        if not several_processes():
            return self
        scratch = None if self._folder is None else self._folder.parent
        everybody = BlockStats(self.dims, self.total, self._blocks, scratch)
        for number in range(self._blocks):
            everybody._store(everybody._filling, everybody._current)
            everybody._filling, everybody._current = number, self.block(number).reduce()
        return everybody

    def _store(self, number: int, stats: FeatureStats) -> None:
        path = self._path(number)
        if path is None:
            self._kept[number] = stats
        else:
            stats.write_raw(path)

    def _path(self, number: int) -> Path | None:
        return None if self._folder is None else self._folder / f"{number}.raw"
