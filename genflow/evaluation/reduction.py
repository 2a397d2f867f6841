"""Sums of tensors over the processes of a launch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def several_processes() -> bool:
    """Tell whether processes were launched that know of each other."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the elementwise sum of each process's tensor, the same in all; the tensor itself if there is but one.

    Every process must call it, with a tensor of the same shape and dtype. What comes back lies where ``tensor`` does,
    on the CPU say, also where processes can only talk from one accelerator to another; it may be ``tensor``, changed.
    """
    if not several_processes():
        return tensor
    talks = "cpu:" in dist.get_backend_config()  # such as "cpu:gloo,cuda:nccl"; nccl alone is "cuda:nccl"
    moved = tensor if talks else tensor.to(torch.accelerator.current_accelerator())
    dist.all_reduce(moved)
    return moved.to(tensor.device)
