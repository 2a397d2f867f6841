"""Leave tailors whose classes are absent from a batch exactly as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genflow.kind.learngenes import class_parameters
from genflow.kind.model import Decomposed, check_decomposed


def lazy_tailors(optimizer: torch.optim.Optimizer, model: Decomposed) -> None:
    """Have an optimizer pass over tailors and label rows without a gradient, weights and state alike.

    A gradient of 0 is not an update of 0: under Adam an absent tailor goes on moving by its old momentum (4 % of its
    norm in 50 steps, measured), and weight decay shrinks it. With this, a block `[c]` of a tensor whose gradient is 0
    throughout keeps its value and its moments; step counts, which are one a tensor, go on.

    Unconfirmed in KIND's paper (arXiv 2408.07337), whose optimizer is taken to be plain AdamW, as by default here.

    Raises:
        ValueError: For what is no decomposed backbone.
    """
    check_decomposed(model)
    watched = class_parameters(model)
    before: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def remember(*_: Any) -> None:
        for p in watched:
            if p.grad is None or not p.numel():
                continue
            absent = ~p.grad.flatten(1).any(dim=1)  # (C,)
            absent = absent.view(-1, *[1] * (p.ndim - 1))  # (C, 1, …)
            moments = {k: v.clone() for k, v in optimizer.state.get(p, {}).items() if v.shape == p.shape}
            before.append((p, absent, {"": p.detach().clone(), **moments}))

    @torch.no_grad()
    def put_back(*_: Any) -> None:
        for p, absent, kept in before:  # whole tensors: to pick out blocks would wait for the device, every step
            p.copy_(torch.where(absent, kept[""], p))
            for name, state in optimizer.state[p].items():
                if state.shape == p.shape:
                    old = kept.get(name, torch.zeros_like(state))  # moments start at 0
                    state.copy_(torch.where(absent, old, state))
        before.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(put_back)
