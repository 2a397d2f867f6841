"""Metrics on pairs of feature vectors: kernel distance, precision and recall, as torch-fidelity computes them.

Features are numpy arrays (N, D) float32, which may be memory maps larger than memory.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from genflow.evaluation.protocol import Figure

SUBSETS = 100
SUBSET_SIZE = 1000
NEIGHBOURS = 3
DISTANCES = 2**26  # that are in memory at a time


def kernel_distance(samples: np.ndarray, reference: np.ndarray) -> Figure:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, on Inception features the KID.

    Mean of the unbiased estimate over 100 random subsets of min(1000, N / 2, M / 2) images of each side, by
    torch-fidelity's ``kid_features_to_metric``. Unbiased for any number of images, so it can lie below zero.
    "Demystifying MMD GANs" (arXiv 1801.01401, section 4).

    The standard deviation d over subsets of s of the n = min(N, M) images does not see how the n images themselves
    vary. As variances go with 1/n, or fall faster, ``standard_error``^2 is d^2 (1/100 + (s / n) / (1 - s / n)), which
    is rather too large for laws that are nearly the same. So subsets hold half of few images: the estimate is unbiased
    whatever their size, and all of them would tell no error.

    Raises:
        ValueError: fewer than two images on a side, or the sides differ in D.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    _check(samples, reference, least=2)
    least = min(len(samples), len(reference))
    size = max(2, min(SUBSET_SIZE, least // 2))
    with np.errstate(over="ignore", invalid="ignore"):  # whoever gets infinity says so
        found = kid_features_to_metric(
            _tensor(samples), _tensor(reference), kid_subsets=SUBSETS, kid_subset_size=size, verbose=False
        )
    error = None
    if size < least:
        share = size / least
        error = found[KEY_METRIC_KID_STD] * math.sqrt(1 / SUBSETS + share / (1 - share))
    return Figure(value=found[KEY_METRIC_KID_MEAN], standard_error=error)


def precision_recall(samples: np.ndarray, reference: np.ndarray) -> tuple[Figure, Figure]:
    """Precision: share of samples nearer to some reference image than its third neighbour is; recall: the reverse.

    By torch-fidelity's ``prc_features_to_metric``, in parts that hold 256 MiB of distances. ``standard_error`` is the
    binomial one, sqrt(p (1 - p) / n), for n images that are judged by fixed other ones. "Improved Precision and Recall
    Metric for Assessing Generative Models" (arXiv 1904.06991, eq. 2).

    Raises:
        ValueError: fewer than four images on a side, or the sides differ in D.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    _check(samples, reference, least=NEIGHBOURS + 1)
    found = prc_features_to_metric(
        _tensor(samples),
        _tensor(reference),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=max(1, DISTANCES // max(len(samples), len(reference))),
        save_cpu_ram=True,
        verbose=False,
    )
    precision, recall = found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]
    return _share(precision, len(samples)), _share(recall, len(reference))


def _share(value: float, count: int) -> Figure:
    return Figure(value=value, standard_error=math.sqrt(value * (1 - value) / count))


def _check(samples: np.ndarray, reference: np.ndarray, least: int) -> None:
    for features, side in ((samples, "samples"), (reference, "reference images")):
        if features.ndim != 2:
            raise ValueError(f"features of {side} must be (N, D), got {features.shape}")
        if len(features) < least:
            raise ValueError(f"{len(features)} {side} are too few: this metric needs at least {least}")
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(f"cannot compare features of {samples.shape[1]} and {reference.shape[1]} dims")


def _tensor(features: np.ndarray) -> Tensor:
    """Return a tensor on the same memory, which may be a map of a file that must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(features)
