"""Tensors that FSDP2 spreads over processes, and plain ones, by the same two functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor as it is, or gathered from its shards; all processes must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor as it is, or spread as ``model`` is."""
    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device_mesh.device_type), model.device_mesh, model.placements)


@torch.no_grad()
def load_whole(tensors: dict[str, Tensor], into: torch.nn.Module) -> None:
    """Load a state dict of whole tensors into a module, sharded or not.

    Raises ``RuntimeError`` if they are of another model.
    """
    present = into.state_dict()
    into.load_state_dict({k: shard_like(v, present[k]) if k in present else v for k, v in tensors.items()})
