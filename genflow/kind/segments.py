"""A decomposed layer on a batch that is sorted by tailor: learngenes and tailors in one pass over the activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = Sequence[tuple[int, int]]  # (tailor or -1, rows), in the order of the batch


def segmented_linear(
    x: Tensor, learngenes: tuple[Tensor, Tensor], tailors: tuple[Tensor, Tensor], bias: Tensor | None, sizes: Rows
) -> Tensor:
    """Return `x (D_G)ᵀ U_Gᵀ + x (D_c)ᵀ U_cᵀ + b` with c the tailor of each image, B N (r + k) (m + n) products.

    What tailors add costs hardly more than its products: it is computed beside what learngenes give, into the same
    tensors, where a layer of its own would read and write all activations again.

    Shapes: x (B, *, n), sorted as `sizes` says, which counts images; learngenes D (r, n), U (m, r); tailors
    D (C, k, n), U (C, m, k); bias (m,) to (B, *, m).
    """
    tokens = x.shape[1:-1].numel()
    given = [x.flatten(0, -2), *learngenes, *tailors, bias]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        # As autocast itself does, which leaves float64 alone.
        given = [part if part is None or part.dtype == torch.float64 else part.to(dtype) for part in given]
    rows = tuple((tailor, images * tokens) for tailor, images in sizes)
    return _SegmentedLinear.apply(*given, rows).unflatten(0, x.shape[:-1])


class _SegmentedLinear(torch.autograd.Function):
    """By hand, since autograd knows of no product into a part of a tensor."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, u: Tensor, own_down: Tensor, own_u: Tensor, bias: Tensor | None, rows: Rows
    ) -> Tensor:
        rank = len(down)
        h = x.new_empty(len(x), rank + own_down.shape[1])  # (T, r + k): learngenes' part, each row's tailor's part
        shared, own = h[:, :rank], h[:, rank:]
        torch.mm(x, down.T, out=shared)
        y = shared @ u.T if bias is None else torch.addmm(bias, shared, u.T)  # (T, m)
        for tailor, (x_c, own_c, y_c) in _segments(rows, x, own, y):
            torch.mm(x_c, own_down[tailor].T, out=own_c)
            y_c.addmm_(own_c, own_u[tailor].T)
        ctx.save_for_backward(x, down, u, own_down, own_u, h)
        ctx.rows = rows
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, down, u, own_down, own_u, h = ctx.saved_tensors
        for_x, for_down, for_u, for_own_down, for_own_u, for_bias, _ = ctx.needs_input_grad
        rank = len(down)
        shared, own = h[:, :rank], h[:, rank:]
        dh = torch.empty_like(h)
        dshared, down_grad = dh[:, :rank], None
        if for_x or for_down:
            torch.mm(dy, u, out=dshared)
        if for_down:
            down_grad = dshared.T @ x
        dx = dshared @ down if for_x else None
        d_own_down = torch.zeros_like(own_down) if for_own_down else None
        d_own_u = torch.zeros_like(own_u) if for_own_u else None
        for tailor, (x_c, own_c, dy_c, dh_c) in _segments(ctx.rows, x, own, dy, dh[:, rank:]):
            torch.mm(dy_c, own_u[tailor], out=dh_c)
            if d_own_u is not None:
                torch.mm(dy_c.T, own_c, out=d_own_u[tailor])
            if d_own_down is not None:
                torch.mm(dh_c.T, x_c, out=d_own_down[tailor])
        if dx is not None:
            for tailor, (dx_c, dh_c) in _segments(ctx.rows, dx, dh[:, rank:]):
                dx_c.addmm_(dh_c, own_down[tailor])
        u_grad = dy.T @ shared if for_u else None
        bias_grad = dy.sum(0) if for_bias else None
        return dx, down_grad, u_grad, d_own_down, d_own_u, bias_grad, None


def _segments(rows: Rows, *tensors: Tensor) -> list[tuple[int, tuple[Tensor, ...]]]:
    """Return each tailor with its rows of each tensor, which are views; rows without a tailor are left out."""
    counts = [count for _, count in rows]
    parts = zip(*(tensor.split(counts) for tensor in tensors), strict=True)
    return [(tailor, part) for (tailor, _), part in zip(rows, parts, strict=True) if tailor >= 0]
