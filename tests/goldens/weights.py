"""Weights that are a fixed function of their names and shapes, so that goldens need not contain them."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def fill(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return float32 tensors of these shapes whose values depend on their names alone.

    Values are uniform with mean 0, and none is 0. Matrices and kernels have the variance 1 / fan-in, biases a standard
    deviation of 0.2; vectors named "weight", which scale a norm, lie around 1. The raw words of Philox are the same in
    every version of numpy.
    """
    return {name: _draw(name, tuple(shape)) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...]) -> Tensor:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(math.prod(shape))
    unit = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
    values = torch.from_numpy((2 * unit - 1) * math.sqrt(3)).reshape(shape)  # variance 1
    if len(shape) > 1:
        values = values / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.2 * values
    else:
        values = 0.2 * values
    return values.float()
