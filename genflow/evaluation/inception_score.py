"""The Inception score of logits that stream by."""

from __future__ import annotations

import statistics
from typing import final

import numpy as np
import torch
from torch import Tensor

from genflow.evaluation.protocol import Figure
from genflow.evaluation.reduction import several_processes, sum_over_processes

SPLITS = 10
SHUFFLE_SEED = 2020  # torch-fidelity's


@final
class InceptionScore:
    """Streaming Inception score: exp of the mean over images of KL(p(y | x) || p(y)), p = softmax of the logits.

    "Improved Techniques for Training GANs" (arXiv 1606.03498, section 4). Equal to torch-fidelity's
    ``isc_features_to_metric``, which scores 10 splits of the images shuffled with a known seed: since ``total`` is
    known beforehand, so is the split of every image, and for each split the sums of p and of sum p log p suffice.
    All in float64.

    Args:
        total: how many images there will be, in all processes together.

    Raises:
        ValueError: total < 10, the number of splits.
    """

    def __init__(self, total: int) -> None:
        if total < SPLITS:
            raise ValueError(f"an Inception score is over {SPLITS} splits: it needs as many images, got {total}")
        self.total = total
        # this very shuffle is part of the metric
        order = np.random.RandomState(SHUFFLE_SEED).permutation(total)
        ends = [(split + 1) * total // SPLITS for split in range(SPLITS)]
        split = np.empty(total, dtype=np.int64)
        split[order] = np.searchsorted(ends, np.arange(total), side="right")
        self._split = torch.from_numpy(split)
        self._count = torch.zeros(SPLITS, dtype=torch.int64)
        self._entropy = torch.zeros(SPLITS, dtype=torch.float64)
        self._mass: Tensor | None = None  # (SPLITS, K); K is known with the first logits

    def update(self, logits: Tensor, first_index: int) -> None:
        """Add the logits (B, K) of images first_index, first_index + 1, ..., in any order, each image once.

        Raises:
            ValueError: an image is not among ``total``, K changes, or a logit is NaN or infinite.
        """
        if first_index < 0 or first_index + len(logits) > self.total:
            last = first_index + len(logits) - 1
            raise ValueError(f"images {first_index} to {last} are not among the {self.total} expected")
        if logits.ndim != 2 or (self._mass is not None and logits.shape[1] != self._mass.shape[1]):
            raise ValueError(f"logits must be (B, K), K as before, got {tuple(logits.shape)}")
        if not logits.isfinite().all():
            raise ValueError("logits hold NaN or infinity: look at the images they come from")
        log_p = logits.detach().to("cpu", torch.float64).log_softmax(dim=1)
        p = log_p.exp()
        split = self._split[first_index : first_index + len(logits)]
        if self._mass is None:
            self._mass = torch.zeros(SPLITS, logits.shape[1], dtype=torch.float64)
        self._count += split.bincount(minlength=SPLITS)
        self._entropy.index_add_(0, split, (p * log_p).sum(dim=1))
        self._mass.index_add_(0, split, p)

    def reduce(self) -> InceptionScore:
        """The score of the images of all processes together, the same in each.

        Every process must call it, also one without images. A single process gets this score itself.
        """
        if not several_processes():
            return self
        everybody = InceptionScore(self.total)
        classes = 0 if self._mass is None else self._mass.shape[1]
        with_images = sum_over_processes(torch.tensor([classes, int(classes > 0)]))
        if with_images[1] == 0:
            return everybody
        mass = self._mass
        if mass is None:
            mass = torch.zeros(SPLITS, int(with_images[0] // with_images[1]), dtype=torch.float64)
        everybody._count = sum_over_processes(self._count.clone())
        everybody._entropy = sum_over_processes(self._entropy.clone())
        everybody._mass = sum_over_processes(mass.clone())
        return everybody

    def score(self) -> Figure:
        """Mean over the splits; ``standard_error`` is that of the mean, their standard deviation over its root.

        Papers print the standard deviation itself (over n, not n - 1), which is sqrt(10) times as large.

        Raises:
            ValueError: not all images are there.
        """
        if self._mass is None or int(self._count.sum()) != self.total:
            raise ValueError(f"{int(self._count.sum())} of the {self.total} images have come: the score is of all")
        marginal = self._mass / self._count[:, None]
        divergence = self._entropy / self._count - torch.xlogy(marginal, marginal).sum(dim=1)
        scores = divergence.exp().tolist()
        return Figure(value=statistics.fmean(scores), standard_error=statistics.pstdev(scores) / len(scores) ** 0.5)
