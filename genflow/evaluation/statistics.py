"""Mean and covariance of features as float64 sums that can be updated, merged and stored."""

import json
import zipfile
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from genflow.files import atomic_file


@final
class FeatureStats:
    """Streaming first and second moments of feature vectors f (D,).

    Holds the count n and, around a fixed origin o (the mean of the first batch, which keeps the
    subtraction below accurate), s = sum (f - o) and S = sum (f - o)(f - o)^T, all in float64 on the
    CPU. Then

        mean = o + s / n,    covariance = (S - s s^T / n) / (n - 1).

    The result depends on the order and size of batches only by rounding.

    Args:
        dims: D.

    Raises:
        ValueError: dims < 1.
    """

    def __init__(self, dims: int) -> None:
        if dims < 1:
            raise ValueError(f"dims={dims} must be at least 1")
        self.dims = dims
        self.count = 0
        self._origin = torch.zeros(dims, dtype=torch.float64)
        self._sum = torch.zeros(dims, dtype=torch.float64)
        self._outer = torch.zeros(dims, dims, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStats":
        """Statistics of one batch (N, D)."""
        if features.ndim != 2:
            raise ValueError(f"features must be (N, D), got {tuple(features.shape)}")
        stats = cls(features.shape[1])
        stats.update(features)
        return stats

    def update(self, features: Tensor) -> None:
        """Add a batch of features (B, D) of any floating dtype, on any device.

        Raises:
            ValueError: the batch has another D, or holds NaN or infinity.
        """
        if features.ndim != 2 or features.shape[1] != self.dims:
            raise ValueError(f"features must be (B, {self.dims}), got {tuple(features.shape)}")
        rows = features.detach().to("cpu", torch.float64)
        if not rows.isfinite().all():
            raise ValueError("features hold NaN or infinity: look at the images they come from")
        if len(rows) == 0:
            return
        if self.count == 0:
            self._origin = rows.mean(dim=0)
        centred = rows - self._origin
        self.count += len(rows)
        self._sum += centred.sum(dim=0)
        self._outer += centred.T @ centred

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """Statistics of both sets of features together; neither operand changes.

        Raises:
            ValueError: the sets differ in D.
        """
        if other.dims != self.dims:
            raise ValueError(f"cannot merge statistics of {self.dims} and {other.dims} dims")
        both = FeatureStats(self.dims)
        both._origin = self._origin if self.count else other._origin
        for part in (self, other):
            shift = part._origin - both._origin  # f - o' = (f - o) + shift
            both.count += part.count
            both._sum += part._sum + part.count * shift
            cross = torch.outer(part._sum, shift)
            both._outer += part._outer + cross + cross.T + part.count * torch.outer(shift, shift)
        return both

    @property
    def mean(self) -> Tensor:
        """Mean (D,) float64.

        Raises:
            ValueError: there are no features yet.
        """
        if self.count < 1:
            raise ValueError("the mean of no features is undefined: call update first")
        return self._origin + self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (D, D) float64, divided by n - 1, symmetric.

        Raises:
            ValueError: there are fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        centred = self._outer - torch.outer(self._sum, self._sum) / self.count
        return (centred + centred.T) / (2 * (self.count - 1))

    def save(self, path: Path, protocol: dict[str, object]) -> None:
        """Write ``mu`` (D,), ``sigma`` (D, D), ``n`` and the protocol as JSON to a ``.npz`` file.

        The file appears complete or not at all. ``mu`` and ``sigma`` are named as in other
        projects' reference files.

        Args:
            path: ends in ``.npz``.
            protocol: how the features were made (network, data, count ...), JSON values.

        Raises:
            ValueError: fewer than two features, or another suffix.
        """
        path = _npz(path)
        mu, sigma = self.mean.numpy(), self.covariance.numpy()
        text = json.dumps(protocol, sort_keys=True)
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez(file, mu=mu, sigma=sigma, n=np.int64(self.count), protocol=np.array(text))

    @classmethod
    def load(cls, path: Path) -> tuple["FeatureStats", dict[str, object]]:
        """Read a file written by ``save``: the statistics and their protocol.

        Raises:
            ValueError: the file is not there, is damaged, or holds no such statistics.
        """
        try:
            with _npz(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                mu, sigma = (torch.from_numpy(file[key].astype(np.float64)) for key in _MOMENTS)
                count, protocol = int(file["n"]), json.loads(str(file["protocol"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no feature statistics (mu, sigma, n, protocol): {error}") from error
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or count < 2:
            raise ValueError(f"{path}: mu {tuple(mu.shape)}, sigma {tuple(sigma.shape)} and n={count} do not fit")
        stats = cls(len(mu))
        stats.count = count
        stats._origin = mu
        stats._outer = sigma * (count - 1)
        return stats, protocol


_MOMENTS = ("mu", "sigma")


def _npz(path: Path) -> Path:
    if Path(path).suffix != ".npz":
        raise ValueError(f"{path} must end in .npz")
    return Path(path)
