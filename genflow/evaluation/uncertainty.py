"""How far a Fréchet distance can be trusted: what it would be with infinitely many images, and how surely."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genflow.evaluation.blocks import BlockStats
from genflow.evaluation.frechet import Solution, solve, thin_root
from genflow.evaluation.protocol import Figure
from genflow.evaluation.statistics import FeatureStats

LEAST_BLOCKS = 8  # whose spread is a variance worth having
TOLERANCE = 1e-6  # of solutions whose differences are compared with the spread of blocks


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A Fréchet distance, what it tends to with many images, and the variances of that from either side.

    Degrees of freedom say how well a variance is known.
    """

    value: float
    """The distance of the images that there are."""
    limit: float | None = None
    samples_variance: float | None = None
    samples_freedom: float = math.inf
    reference_variance: float = 0.0
    """0 if the reference is statistics only: then it is taken for exact."""
    reference_freedom: float = math.inf
    least_variance: float = 0.0
    """What of the variances would be there if the laws were the same."""

    @property
    def figure(self) -> Figure:
        """The value, the limit L with its standard error, and its 95 % interval.

        The variance v is u, what there would be at distance zero, and a part that goes with the true distance T, since
        the slope of a square goes with its root. The interval holds every T for which L is not surprising:

            (L - T)^2 <= t^2 (v + (T - L) r),    r = (v - u) L / (L^2 + u / 4)

        where r is (v - u) / L, but vanishes where L is lost in the noise. t is Student's; the degrees of freedom of the
        sum of variances are Welch's and Satterthwaite's. L is unbiased, so it can lie below zero, as a kernel distance
        can, when the laws are nearly the same.
        """
        if self.samples_variance is None:
            return Figure(value=self.value)
        if self.limit is None:
            return Figure(value=self.value, standard_error=math.sqrt(self.samples_variance + self.reference_variance))
        parts = [(self.samples_variance, self.samples_freedom), (self.reference_variance, self.reference_freedom)]
        variance = sum(v for v, _ in parts)
        spread = sum(v * v / freedom for v, freedom in parts)
        t = student_t(variance * variance / spread if spread > 0 else math.inf)
        slope = 0.0
        if self.limit > 0:
            first_order = max(0.0, variance - self.least_variance)
            slope = first_order * self.limit / (self.limit**2 + self.least_variance / 4)
        middle = self.limit + t * t * slope / 2
        half = math.hypot(t * math.sqrt(variance), t * t * slope / 2)
        return Figure(
            value=self.value,
            standard_error=math.sqrt(variance),
            limit=self.limit,
            interval=(middle - half, middle + half),
        )


def default_blocks(dims: int, count: int) -> int:
    """How many blocks to cut ``count`` images into: more where the distance is quick to solve for, 0 for too few."""
    most = 12 if dims >= 1024 else 24 if dims >= 256 else 48
    return min(most, count) if count >= LEAST_BLOCKS else 0


Counts = tuple[int | None, int | None]
"""Numbers of images on both sides; None is infinitely many."""
Correction = Callable[[Solution, Counts], float]


def without_means_bias(solution: Solution, counts: Counts) -> float:
    """Return the distance less tr A / n + tr B / m, by which |m_a - m_b|^2 is too large on average."""
    return solution.distance - sum(t / n for t, n in zip(solution.traces, counts, strict=True) if n)


def corrected(solution: Solution, counts: Counts) -> float:
    """Return the distance without most of the bias that few images give it; each count - 1 must exceed the rank.

    Of tr A, tr B and, by ``without_means_bias``, the means the estimates are unbiased. For the roots r of the
    eigenvalues of A B, let D_k(y) = 1 - 1/(n_k - 1) sum_i r_i^2 / (r_i^2 + y). Then

        tr (A B)^1/2 = (2 / pi) int_0^inf y^1/2 sum_i r_i^2 / (r_i^2 + y)^2 (D_1 D_2)^-1/2 dy

    tends to the truth as dims and n_k grow together, where the plain sum of r is off by a share of dims / n_k. It is
    the contour integral of "Random Matrix-Improved Estimation of the Wasserstein Distance between two Centered Gaussian
    Distributions" (arXiv 1903.03447) for f = root, brought onto the negative real axis. With y = e^s the
    integrand is analytic and falls off at both ends, so that the trapezoidal rule is as good as exact.
    """
    distance = without_means_bias(solution, counts)
    squares = solution.roots[solution.roots > 1e-9 * solution.roots.max()].square()
    if len(squares) == 0:
        return distance
    step = 0.5
    s = torch.arange(float(squares[0].log()) - 25, float(squares[-1].log()) + 25, step, dtype=squares.dtype)
    y = s.exp()
    share = squares[:, None] / (squares[:, None] + y)
    density = (share / (squares[:, None] + y)).sum(dim=0)
    mass = share.sum(dim=0)
    factors = [1 - mass / (n - 1) for n in counts if n]
    excess = math.prod(factors, start=torch.ones_like(y)).rsqrt() - 1  # less the sum of r, which is in the distance
    return distance - 2 * float((2 / math.pi) * step * (y.pow(1.5) * density * excess).sum())


def estimate(samples: BlockStats, reference: BlockStats | FeatureStats) -> Estimate:
    """Estimate the distance at infinitely many images by leaving out each block of either side in turn.

    What bias ``corrected`` leaves goes with 1/n and shows, as the variance does, in how the distance changes without
    a block: the jackknife of "Delete-m Jackknife for Unequal m" (Busing, Meijer and van der Leeden, 1999). When the
    laws are (nearly) the same no first order in the blocks is left, and the jackknife counts the second order twice;
    ``_second_order`` of it is taken off, and kept as the least variance there can be.

    Statistics alone as ``reference`` are taken for exact: the limit is then the distance to these very statistics, and
    the interval holds no variance of theirs. Fewer than 8 blocks of the samples give the value alone.

    Raises:
        ValueError: the sides differ in D, one holds fewer than two features, or not all that were expected.
    """
    own = samples.whole()
    other = reference.whole() if isinstance(reference, BlockStats) else reference
    solution = solve(own, other)
    if len(samples) < LEAST_BLOCKS:
        return Estimate(value=solution.distance)
    sides = [_Side(samples, own, other, solution)]
    if isinstance(reference, BlockStats) and len(reference) >= LEAST_BLOCKS:
        sides.append(_Side(reference, other, own, replace(solution, traces=solution.traces[::-1])))
    enough = all(side.least - 1 > samples.dims for side in sides)
    correct = corrected if enough else without_means_bias
    found = [_jackknife(side, correct, counted=len(sides) > 1) for side in sides]
    return Estimate(
        value=solution.distance,
        limit=found[0].limit - sum(each.bias for each in found[1:]) if enough else None,
        samples_variance=found[0].variance,
        samples_freedom=len(samples) - 1,
        reference_variance=sum(each.variance for each in found[1:]),
        reference_freedom=len(sides[1].blocks) - 1 if len(sides) > 1 else math.inf,
        least_variance=sum(each.least for each in found),
    )


@dataclass(frozen=True)
class _Side:
    """One side of a comparison, whose blocks are left out in turn."""

    blocks: BlockStats
    own: FeatureStats
    other: FeatureStats
    solution: Solution

    @property
    def least(self) -> int:
        """How many images there are without the largest block."""
        return self.blocks.total - -(-self.blocks.total // len(self.blocks))


@dataclass(frozen=True)
class _Jackknife:
    limit: float
    """The estimate with the bias from this side undone."""
    bias: float
    variance: float
    least: float
    """What of the variance would be there if the laws were the same."""


def _jackknife(side: _Side, correct: Correction, *, counted: bool) -> _Jackknife:
    """Leave out each block of one side; ``counted`` tells that the other side's images are finitely many."""
    n, m = side.own.count, side.other.count if counted else None
    assert n
    whole = correct(side.solution, (n, m))
    root = thin_root(side.other)
    pseudo: list[float] = []
    shares: list[float] = []
    for number in range(len(side.blocks)):
        part = side.blocks.block(number)
        assert part.count
        fold = n / part.count
        rest = side.own.without(part)
        del part  # the solution needs the memory
        left = correct(solve(rest, side.other, tolerance=TOLERANCE, root_b=root), (rest.count, m))
        pseudo.append(fold * whole - (fold - 1) * left)
        shares.append(fold)
    limit = sum(p / h for p, h in zip(pseudo, shares, strict=True))
    variance = statistics.fmean((p - limit) ** 2 / (h - 1) for p, h in zip(pseudo, shares, strict=True))
    second = _second_order(side.solution.roots, n, m)
    return _Jackknife(limit, whole - limit, max(variance - second, second), second)


def _second_order(roots: Tensor, n: int, m: int | None) -> float:
    """Return one side's share of the variance of the distance between samples of one Gaussian law.

    With h the difference of the means, H that of the covariances and l the eigenvalues of the law's covariance, the
    distance is |h|^2 + 1/2 sum_ij H_ij^2 / (l_i + l_j) to second order. Its variance is

        (1/n + 1/m)^2 (2 sum_i l_i^2 + sum_ij (1 + [i = j]) (l_i l_j / (l_i + l_j))^2)

    of which n's share is that with (1/n + 1/m)^2 = 1/n^2 + 2/(n m) + 1/m^2 replaced by 1/n^2 + 1/(n m).
    """
    roots = roots[roots > 0]
    total = 2 * float(roots.square().sum()) + float((roots / 2).square().sum())
    for part in roots.split(256):
        total += float((part[:, None] * roots / (part[:, None] + roots)).square().sum())
    return total * (1 / n + (1 / m if m else 0)) / n


def combine(estimates: Sequence[Estimate]) -> Estimate:
    """Return the estimate for the mean of several sample sets' distances to one reference.

    The sets' variances average out, the reference's does not: mean / k of the ones plus the mean of the other.

    Raises:
        ValueError: there are no estimates.
    """
    if not estimates:
        raise ValueError("the mean of no estimates is undefined")
    value = statistics.fmean(each.value for each in estimates)
    limits = [each.limit for each in estimates if each.limit is not None]
    variances = [each.samples_variance for each in estimates if each.samples_variance is not None]
    if len(variances) < len(estimates):
        return Estimate(value=value)
    return Estimate(
        value=value,
        limit=statistics.fmean(limits) if len(limits) == len(estimates) else None,
        samples_variance=statistics.fmean(variances) / len(estimates),
        samples_freedom=sum(each.samples_freedom for each in estimates),
        reference_variance=statistics.fmean(each.reference_variance for each in estimates),
        reference_freedom=min(each.reference_freedom for each in estimates),
        least_variance=statistics.fmean(each.least_variance for each in estimates) / len(estimates),
    )


def advice(n: int | None, m: int | None, dims: int) -> list[str]:
    """Return a plain warning where a Fréchet distance of n samples and m reference images means little.

    None is an unknown number, which is not judged.
    """
    sides = {"samples": n, "reference images": m}
    counts = {what: count for what, count in sides.items() if count is not None and count < 10 * dims}
    singular = {what: count for what, count in counts.items() if count <= dims}
    named = " and ".join(f"{count} {what}" for what, count in (singular or counts).items())
    if singular:
        return [
            f"{named} are too few for {dims} dims: a covariance is singular, the distance is mostly bias and its"
            " interval cannot be trusted; use the kernel distance (KID), which has no such bias"
        ]
    if counts:
        return [
            f"{named} are few for {dims} dims: below {10 * dims} the bias of the distance is large and its interval"
            " not calibrated; report the kernel distance (KID) too, which has no such bias"
        ]
    return []


def student_t(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t with that many degrees of freedom, from 3 on to 0.5 %.

    The series in 1 / freedom of Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    z, v = statistics.NormalDist().inv_cdf(0.975), max(freedom, 3.0)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / v**k for k, term in enumerate(terms))
