"""Mean and covariance of features as float64 sums that can be updated, merged and shared by processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from genflow.evaluation.reduction import several_processes, sum_over_processes
from genflow.files import naming

CHUNK = 2048  # rows that are in memory as float64 at a time
STRIP = 512  # columns of the outer products that are computed at a time
LARGEST = 1e15  # feature that is taken: products of squares of larger ones leave the range of numbers


@final
class FeatureStats:
    """Streaming first and second moments of feature vectors f (D,).

    Holds the count n and, around a fixed origin o (the mean of the first batch, which keeps the
    subtraction below accurate), s = sum (f - o) and S = sum (f - o)(f - o)^T, all in float64 on the
    CPU. Then

        mean = o + s / n,    covariance = (S - s s^T / n) / (n - 1).

    The result depends on the order and size of batches only by rounding. Of the symmetric S only
    strips on and above the diagonal are kept up to date, which halves the work; what is below is
    mirrored when it is asked for.

    ``count`` is n, or None for moments of an unknown number of features (``from_moments``).

    Args:
        dims: D.

    Raises:
        ValueError: dims < 1.
    """

    def __init__(self, dims: int) -> None:
        if dims < 1:
            raise ValueError(f"dims={dims} must be at least 1")
        self.dims = dims
        self.count: int | None = 0
        self._origin = torch.zeros(dims, dtype=torch.float64)
        self._sum = torch.zeros(dims, dtype=torch.float64)
        self._outer = torch.zeros(dims, dims, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> FeatureStats:
        """Statistics of one batch (N, D)."""
        if features.ndim != 2:
            raise ValueError(f"features must be (N, D), got {tuple(features.shape)}")
        stats = cls(features.shape[1])
        stats.update(features)
        return stats

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, count: int | None) -> FeatureStats:
        """Statistics with this mean (D,) and unbiased covariance (D, D), of any real dtype.

        With a ``count`` they can be merged and updated like any others. None says that nobody knows how many features
        they are of: they can then only be compared.

        Raises:
            ValueError: the shapes do not fit, a value is not finite, the covariance is not symmetric (to the rounding
                of single precision), or count < 2.
        """
        mean, covariance = (x.detach().to("cpu", torch.float64) for x in (mean, covariance))
        if mean.ndim != 1 or len(mean) < 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)} do not fit")
        if count is not None and count < 2:
            raise ValueError(f"moments of count={count} features: a covariance needs at least 2")
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("the moments hold NaN or infinity")
        if mean.abs().max() > LARGEST or covariance.abs().max() > LARGEST**2:
            raise ValueError(f"the moments are of features beyond {LARGEST:g}: scale the features")
        if (covariance - covariance.T).abs().max() > 1e-4 * covariance.abs().max():
            raise ValueError("the covariance is not symmetric")
        stats = cls(len(mean))
        stats.count = count
        stats._origin = mean.clone()
        stats._outer = (covariance + covariance.T) * ((1 if count is None else count - 1) / 2)
        return stats

    def update(self, features: Tensor) -> None:
        """Add a batch of features (B, D) of any floating dtype, on any device.

        Raises:
            ValueError: the batch has another D, or holds NaN or infinity (nothing is then added), or the count is
                unknown.
        """
        count = self._known()
        if features.ndim != 2 or features.shape[1] != self.dims:
            raise ValueError(f"features must be (B, {self.dims}), got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("features hold NaN or infinity: look at the images they come from")
        if len(features) and features.abs().max() > LARGEST:
            raise ValueError(f"features of up to {float(features.abs().max()):.3g}, beyond {LARGEST:g}: scale them")
        for part in features.detach().split(CHUNK):
            if len(part) == 0:
                return
            rows = part.to("cpu", torch.float64)
            if count == 0:
                self._origin = rows.mean(dim=0)
            centred = rows - self._origin
            for strip, right in _strips(self._outer):
                strip.addmm_(centred[:, right][:, : len(strip)].T, centred[:, right])
            self._sum += centred.sum(dim=0)
            count += len(rows)
        self.count = count

    def merge(self, other: FeatureStats) -> FeatureStats:
        """Statistics of both sets of features together; neither operand changes.

        Raises:
            ValueError: the sets differ in D, or a count is unknown.
        """
        both = FeatureStats(self.dims)
        both._origin = self._origin if self._known() else other._origin
        both._add(self, 1)
        both._add(other, 1)
        return both

    def without(self, part: FeatureStats) -> FeatureStats:
        """Statistics of these features less ``part``, which are some of them; neither operand changes.

        Loses the digits by which the part outweighs the rest, so take away less than nearly all.

        Raises:
            ValueError: the sets differ in D, a count is unknown, or the part has more features than there are.
        """
        rest = FeatureStats(self.dims)
        rest._origin = self._origin
        rest._add(self, 1)
        rest._add(part, -1)
        return rest

    def _add(self, other: FeatureStats, sign: int) -> None:
        """Add the sums of other features to these, around this origin, or take them away."""
        if other.dims != self.dims:
            raise ValueError(f"cannot merge statistics of {self.dims} and {other.dims} dims")
        count = other._known()
        if self._known() + sign * count < 0:
            raise ValueError(f"cannot take {count} features from {self.count}")
        self.count = self._known() + sign * count
        shift = other._origin - self._origin  # f - o' = (f - o) + shift
        self._sum.add_(other._sum + count * shift, alpha=sign)
        self._outer.add_(other._outer, alpha=sign)
        if shift.any():
            self._outer.addr_(other._sum, shift, alpha=sign)
            self._outer.addr_(shift, other._sum + count * shift, alpha=sign)

    def reduce(self) -> FeatureStats:
        """Statistics of the features of all processes together, the same in each; these do not change.

        Every process must call it, also one without features. A single process gets these statistics themselves.

        Raises:
            ValueError: the count is unknown.
        """
        if not several_processes():
            return self
        count = self._known()
        everybody = FeatureStats(self.dims)
        total = sum_over_processes(torch.tensor(count))
        # one origin for all processes, amid the features
        everybody._origin = sum_over_processes(self._origin * count) / total.clamp(min=1)
        everybody._add(self, 1)
        everybody.count = int(total)
        everybody._sum = sum_over_processes(everybody._sum)
        everybody._outer = sum_over_processes(everybody._outer)
        return everybody

    @property
    def mean(self) -> Tensor:
        """Mean (D,) float64.

        Raises:
            ValueError: there are no features yet.
        """
        if self.count == 0:
            raise ValueError("the mean of no features is undefined: call update first")
        return self._origin + self._sum / (self.count or 1)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (D, D) float64, divided by n - 1, symmetric.

        Raises:
            ValueError: there are fewer than two features.
        """
        if self.count is None:
            covariance = self._outer.clone()
        elif self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        else:
            covariance = torch.addr(self._outer, self._sum, self._sum, alpha=-1 / self.count)
            covariance /= self.count - 1
        for strip, right in _strips(covariance):
            square = strip[:, : len(strip)]
            square.copy_(square.triu() + square.triu(1).T)
            covariance[right, right.start : right.start + len(strip)] = strip.T.clone()
        return covariance

    def _known(self) -> int:
        if self.count is None:
            raise ValueError("nobody knows how many features these statistics are of: they can only be compared")
        return self.count

    def write_raw(self, path: Path) -> None:
        """Write the sums as they are, for this program to read again: (1 + 2 D + D D) float64 numbers, n first.

        Raises:
            ValueError: the count is unknown.
        """
        with naming(path), path.open("wb") as file:
            for part in (torch.tensor([self._known()]), self._origin, self._sum, self._outer):
                file.write(part.double().numpy().data)  # tofile would not say that the disk is full

    @classmethod
    def read_raw(cls, path: Path, dims: int) -> FeatureStats:
        """Read what ``write_raw`` wrote of statistics of that many dims, to the last bit."""
        stats = cls.__new__(cls)
        stats.dims = dims
        with path.open("rb") as file:
            parts = [torch.from_numpy(np.fromfile(file, count=size)) for size in (1, dims, dims, dims * dims)]
        count, stats._origin, stats._sum, outer = parts
        stats.count = int(count)
        stats._outer = outer.view(dims, dims)
        return stats


def _strips(matrix: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Yield views of a square matrix that cover its upper triangle: rows, from the diagonal on, and their columns."""
    for start in range(0, len(matrix), STRIP):
        right = slice(start, len(matrix))
        yield matrix[start : start + STRIP, right], right
