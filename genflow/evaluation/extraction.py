"""One pass over images: each goes through the network once, and whoever wants something of it takes it there.

Images pass in units of ``UNIT``; of several processes each passes every n-th unit, and sums are added up at the end.
So neither the number of processes nor memory depends on how many images there are.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from genflow.evaluation.blocks import BlockStats
from genflow.evaluation.features import FeatureNetwork, Outputs
from genflow.evaluation.inception_score import InceptionScore
from genflow.evaluation.metrics import nearest_distances
from genflow.evaluation.reduction import several_processes, sum_over_processes
from genflow.evaluation.sources import UNIT, Source
from genflow.evaluation.statistics import FeatureStats
from genflow.files import naming

Progress = Callable[[Iterable[int]], Iterable[int]]
_ROWS = 2048  # of a file of vectors that are moved at once


@dataclass(frozen=True)
class Passed:
    """What passes a sink: images (B, C, H, W) from place ``start`` on, labels (B,), and what the network gave."""

    start: int
    images: Tensor
    labels: Tensor | None
    outputs: Outputs


class Sink(Protocol):
    """Takes what it wants of everything that passes, in ascending order of places."""

    def update(self, passed: Passed) -> None:
        """Take one unit."""

    def reduce(self) -> None:
        """Put together what the processes took; all of them call this at the end."""


def pass_through(source: Source, network: FeatureNetwork, sinks: Sequence[Sink], progress: Progress = iter) -> None:
    """Pass all images of a source through a network into the sinks; every process of a launch passes its share."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if several_processes() else (0, 1)
    for number in progress(range(rank, source.units, processes)):
        images, labels = source.unit(number)
        kept = min(UNIT, source.count - number * UNIT)
        found = network.outputs(images)
        outputs = Outputs(found.vectors[:kept], _cut(found.spatial, kept), _cut(found.logits, kept))
        passed = Passed(number * UNIT, images[:kept], _cut(labels, kept), outputs)
        for sink in sinks:
            sink.update(passed)
    for sink in sinks:
        sink.reduce()


def _cut(values: Tensor | None, count: int) -> Tensor | None:
    return None if values is None else values[:count]


@final
class VectorBlocks:
    """Moments of the vectors, in blocks from which their uncertainty is told (``BlockStats``)."""

    def __init__(self, blocks: BlockStats) -> None:
        self.blocks = blocks

    def update(self, passed: Passed) -> None:
        self.blocks.update(passed.outputs.vectors, passed.start)

    def reduce(self) -> None:
        self.blocks = self.blocks.reduce()


@final
class SpatialMoments:
    """Moments of Inception's spatial features, in a single block, which lies on the disk at the end."""

    def __init__(self, blocks: BlockStats) -> None:
        self._blocks = blocks

    def update(self, passed: Passed) -> None:
        assert passed.outputs.spatial is not None
        self._blocks.update(passed.outputs.spatial, passed.start)

    def reduce(self) -> None:
        self._blocks = self._blocks.reduce()
        self._blocks.put_away()

    def stats(self) -> FeatureStats:
        """Read them."""
        return self._blocks.block(0)


@final
class Scores:
    """What the Inception score needs of the logits."""

    def __init__(self, score: InceptionScore) -> None:
        self.score = score

    def update(self, passed: Passed) -> None:
        assert passed.outputs.logits is not None
        self.score.update(passed.outputs.logits, passed.start)

    def reduce(self) -> None:
        self.score = self.score.reduce()


@final
class VectorFile:
    """All vectors and labels, for what needs each of them: in a file that is mapped into memory once it is whole.

    Every process has a file of all places, and fills those of its share; ``reduce`` fills the rest. It is written, not
    mapped, while it grows: a full disk is then an error, and not the end of the process.

    Args:
        count: number of images.
        dims: D.
        folder: where the file lies while it is needed.
    """

    vectors: npt.NDArray[np.float32]
    """(N, D), after ``reduce``."""

    def __init__(self, count: int, dims: int, folder: Path) -> None:
        self._file = tempfile.NamedTemporaryFile(dir=folder, suffix=".f32", delete=False)  # noqa: SIM115 (until reduce)
        self._file.truncate(4 * count * dims)
        self._shape = (count, dims)
        self.labels = np.zeros(count, np.int64)  # of a place that another process fills

    def update(self, passed: Passed) -> None:
        self._write(passed.start, passed.outputs.vectors)
        if passed.labels is not None:
            self.labels[passed.start : passed.start + len(passed.images)] = passed.labels.numpy()

    def reduce(self) -> None:
        self._file.flush()
        path = Path(self._file.name)
        if several_processes():
            mine = np.memmap(path, np.float32, "r", shape=self._shape)
            for start in range(0, len(mine), _ROWS):
                self._write(start, sum_over_processes(torch.from_numpy(np.array(mine[start : start + _ROWS]))))
            self.labels = sum_over_processes(torch.from_numpy(self.labels)).numpy()
        with naming(path):
            self._file.close()
        self.vectors = np.memmap(path, np.float32, "r", shape=self._shape)

    def _write(self, start: int, rows: Tensor) -> None:
        with naming(Path(self._file.name)):
            self._file.seek(4 * start * self._shape[1])
            self._file.write(rows.cpu().contiguous().numpy().data)


@final
class NearestImages:
    """How near images are to the nearest training image: the mean of ``nearest_distances``.

    Args:
        train: training images (M, C, H, W) uint8.
    """

    def __init__(self, train: Tensor) -> None:
        self._train = train
        self._sum = torch.zeros(2, dtype=torch.float64)

    def update(self, passed: Passed) -> None:
        found = nearest_distances(passed.images.cpu(), self._train).double()
        self._sum += torch.stack([found.sum(), torch.tensor(float(len(found)), dtype=torch.float64)])

    def reduce(self) -> None:
        self._sum = sum_over_processes(self._sum)

    @property
    def mean(self) -> float:
        """Mean distance to the nearest training image."""
        return float(self._sum[0] / self._sum[1])


@final
class PixelDigest:
    """What names a set of images by their pixels alone, whatever their order, their names and how they are packed.

    The sum, modulo 2^128, of BLAKE2b of 16 bytes over each image's shape and pixels.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(4, dtype=torch.int64)  # of 32-bit words, which leave room to add up 2^31 of them

    def update(self, passed: Passed) -> None:
        for image in passed.images.cpu().numpy():
            state = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
            state.update(np.ascontiguousarray(image).data)
            self._sums += torch.from_numpy(np.frombuffer(state.digest(), "<u4").astype(np.int64))

    def reduce(self) -> None:
        self._sums = sum_over_processes(self._sums)

    @property
    def hexadecimal(self) -> str:
        """The digest, 32 hexadecimal digits."""
        total = sum(int(word) << (32 * place) for place, word in enumerate(self._sums.tolist()))
        return f"{total % 2**128:032x}"


@final
class AskedClass:
    """Share of images that the network reads as the class that was asked for.

    Args:
        meant: the network's own class of each label.
    """

    def __init__(self, meant: Sequence[int]) -> None:
        self.meant = torch.tensor(meant)
        self._sum = torch.zeros(2, dtype=torch.float64)

    def update(self, passed: Passed) -> None:
        assert passed.outputs.logits is not None
        assert passed.labels is not None
        read = passed.outputs.logits.argmax(dim=1).cpu()
        self._sum += torch.tensor(
            [float((read == self.meant[passed.labels]).sum()), float(len(read))], dtype=torch.float64
        )

    def reduce(self) -> None:
        self._sum = sum_over_processes(self._sum)

    @property
    def share(self) -> float:
        """Share of right ones, in [0, 1]."""
        return float(self._sum[0] / self._sum[1])
