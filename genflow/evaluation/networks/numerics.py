"""What a network computes in, whatever its surroundings have set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in the type that tensors have: no gradients, no autocast, no TF32, no bfloat16 inside a product.

    TF32 costs three digits, and so does bfloat16 where ``set_float32_matmul_precision("medium")`` allows it on a CPU.
    All settings, torch's older one and the newer ones of each device, are put back afterwards.
    """
    cublas, cudnn, cpu = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    settings = (cublas.matmul, cudnn.conv, cpu.matmul, cpu.conv)  # pyright: ignore[reportAttributeAccessIssue]
    before, legacy = [setting.fp32_precision for setting in settings], _matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")  # torch complains where it contradicts the others
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = "none"  # what it reads now is what it inherits from settings above it
            if setting.fp32_precision != value:
                setting.fp32_precision = value


def _matmul_precision() -> str:
    """Return torch's older setting, which it does not tell once a newer one contradicts it: then it is the default."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` or ``bfloat16``, the two that networks compute in.

    Raises ``ValueError`` for any other.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"feature networks compute in torch.float32, or faster in torch.bfloat16, not in {dtype}")
    return str(dtype).removeprefix("torch.")
