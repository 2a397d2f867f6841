"""The Fréchet distance of two Gaussians, by symmetric factors: real, finite and fast for any covariances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.evaluation.statistics import FeatureStats

_ROUNDING = 1e-6  # of the traces, that a distance of nearly equal covariances may lie below zero
TOLERANCE = 1e-9  # relative rounding error of a distance, above which a slower solution is used
STRIP = 256  # columns of a triangular factor that are multiplied at a time


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Squared Fréchet distance of two Gaussians with the given means and covariances.

        d = |m_a - m_b|^2 + tr A + tr B - 2 tr (A B)^1/2

    The last trace is the sum of ``Solution.roots``. Rounding below zero is clipped; equal statistics give exactly zero.
    "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (arXiv 1706.08500, eq. 6); with
    n images the estimate is biased upwards by about 1/n (``uncertainty.estimate`` undoes that).

    Raises:
        ValueError: the statistics differ in D, or one holds fewer than two features.
    """
    return solve(a, b).distance


@dataclass(frozen=True)
class Solution:
    """A Fréchet distance and what it is made of."""

    distance: float
    roots: Tensor
    """Roots of the eigenvalues of A B that the numbers of features allow to be nonzero, ascending, in float64.

    A B is similar to the symmetric R^T B R with A = R R^T, so its eigenvalues are real. R is the Cholesky factor of
    whichever covariance has one, else a thin root from an eigendecomposition. n features have a covariance of rank
    n - 1 at most, so no more than the lesser rank of eigenvalues is kept: the others are zero but for rounding, whose
    roots would not be small.
    """
    traces: tuple[float, float]
    """tr A and tr B."""


def thin_root(stats: FeatureStats) -> Tensor | None:
    """Return R (D, r) with R R^T the covariance, for ``solve``; None where it has full rank, and is quick to factor."""
    rank = _rank(stats)
    return _thin_root(stats.covariance, rank) if rank < stats.dims else None


def solve(a: FeatureStats, b: FeatureStats, *, tolerance: float = TOLERANCE, root_b: Tensor | None = None) -> Solution:
    """Return the Fréchet distance with its parts, raising as ``frechet_distance`` does.

    Where rounding may change it by more than ``tolerance`` of itself, a solution is used that takes 5 times as long.
    ``root_b``, the ``thin_root`` of b, saves most of the time where many a are compared with one b of few features.
    """
    if a.dims != b.dims:
        raise ValueError(f"cannot compare features of {a.dims} and {b.dims} dims")
    cov_a, cov_b = a.covariance, b.covariance
    traces = float(cov_a.trace()), float(cov_b.trace())
    apart = float((a.mean - b.mean).square().sum())
    if apart == 0 and torch.equal(cov_a, cov_b):
        values = torch.linalg.eigvalsh(cov_a).clamp(min=0)
        return Solution(0.0, values[-_rank(a) :], traces)
    if root_b is not None and _rank(a) < a.dims:
        roots, error = _roots(root_b.T @ cov_a @ root_b, min(_rank(a), _rank(b)))
    else:
        roots, error = _by_eigenvalues(cov_a, _rank(a), cov_b, _rank(b))
    distance = apart + sum(traces) - 2 * float(roots.sum())
    if error > tolerance * distance:
        del cov_a, cov_b  # the factors need their memory
        roots = _by_singular_values(a, b)
        distance = apart + sum(traces) - 2 * float(roots.sum())
    if distance < -_ROUNDING * sum(traces):
        raise ValueError("a covariance has negative variances, so it is none: there is no distance")
    return Solution(max(0.0, distance), roots, traces)


def _rank(stats: FeatureStats) -> int:
    """Return the greatest rank the covariance can have."""
    return stats.dims if stats.count is None else min(stats.dims, stats.count - 1)


def _by_eigenvalues(cov_a: Tensor, rank_a: int, cov_b: Tensor, rank_b: int) -> tuple[Tensor, float]:
    """Return the roots of the eigenvalues of A B, and about how much rounding changes their sum."""
    if rank_a < rank_b:  # a covariance of full rank has the cheaper factor
        cov_a, rank_a, cov_b, rank_b = cov_b, rank_b, cov_a, rank_a
    root = _cholesky(cov_a) if rank_a == len(cov_a) else None
    if root is not None:
        inner = _triangular_sandwich(root, cov_b)
    else:  # the thinner root makes the smaller problem
        root = _thin_root(cov_b, rank_b)
        inner = root.T @ cov_a @ root
    del root  # a third of the memory that this takes
    return _roots(inner, min(rank_a, rank_b))


def _roots(inner: Tensor, rank: int) -> tuple[Tensor, float]:
    """Return the roots of the ``rank`` largest eigenvalues of a symmetric matrix, and the rounding error of their sum.

    An eigenvalue comes with the rounding error of the largest one. A root of little more than that has lost its digits.
    """
    squares = torch.linalg.eigvalsh(inner, UPLO="U")[-min(rank, len(inner)) :].clamp(min=0)
    roots = squares.sqrt()
    noise = float(torch.finfo(squares.dtype).eps * squares.max())
    least = noise**0.5
    drowned = int((roots < least).sum())  # each is off by as much as it could be; the others by chance, up or down
    spread = float(roots.clamp(min=least or 1).reciprocal().norm())
    return roots, drowned * least + noise * spread / len(squares) ** 0.5


def _by_singular_values(a: FeatureStats, b: FeatureStats) -> Tensor:
    """Return the same roots as singular values of a product of factors, which keep twice the digits, in more time."""
    product = _factor(a).T @ _factor(b)
    return torch.linalg.svdvals(product).flip(0)[-min(_rank(a), _rank(b)) :]


def _factor(stats: FeatureStats) -> Tensor:
    """Return R with R R^T the covariance: Cholesky's if there is one, else a thin one."""
    covariance = stats.covariance
    root = _cholesky(covariance) if _rank(stats) == stats.dims else None
    return _thin_root(covariance, _rank(stats)) if root is None else root


def _cholesky(covariance: Tensor) -> Tensor | None:
    """Return lower triangular L with L L^T = covariance, or None if rounding leaves it not positive definite."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    return None if failed else root


def _thin_root(covariance: Tensor, rank: int) -> Tensor:
    """Return R (D, r), r <= rank, with R R^T = covariance, leaving out what is zero but for rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    zero = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    kept = max(1, min(rank, int((values > zero).sum())))
    return vectors[:, -kept:] * values[-kept:].clamp(min=0).sqrt()


def _triangular_sandwich(root: Tensor, covariance: Tensor) -> Tensor:
    """Return the upper triangle of L^T B L for lower triangular L: half the work of the products in full."""
    inner = torch.zeros_like(covariance)
    for start in range(0, len(root), STRIP):
        columns = slice(start, start + STRIP)
        right = covariance[:, start:] @ root[start:, columns]
        for upper in range(0, start + 1, STRIP):
            rows = slice(upper, upper + STRIP)
            torch.mm(root[upper:, rows].T, right[upper:], out=inner[rows, columns])
    return inner
