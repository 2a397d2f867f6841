"""What a network computes in, whatever its surroundings have set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in the type that tensors have: no gradients, no autocast, no TF32, no bfloat16 inside a product.

    TF32 costs three digits, and so does ``set_float32_matmul_precision("medium")`` on a CPU that multiplies bfloat16.
    Settings are put back afterwards.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            if device.type != "cuda":
                yield
                return
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
    finally:
        torch.set_float32_matmul_precision(precision)


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` or ``bfloat16``, the two that networks compute in.

    Raises ``ValueError`` for any other.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"feature networks compute in torch.float32, or faster in torch.bfloat16, not in {dtype}")
    return str(dtype).removeprefix("torch.")
