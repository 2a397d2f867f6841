"""A linear layer whose kernel is made of components: learngenes for every class, tailors for some."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.kind.gate import Assigned, Closed, Gating, Mixed, Segments, Switch
from genflow.kind.segments import segmented_linear


@dataclasses.dataclass(frozen=True)
class Components:
    """Rank-one terms `u_i σ_i v_i` of a kernel, or of the kernels of C tailors.

    Shapes: u (m, r), sigma (r,), v (r, n); of tailors u (C, m, k), sigma (C, k), v (C, k, n).
    """

    u: Tensor
    sigma: Tensor
    v: Tensor

    @property
    def down(self) -> Tensor:
        """`diag(σ) v`: the scale sits on the small factor, so that activations keep their dtype under autocast."""
        return self.sigma[..., None] * self.v

    def select(self, tailors: Tensor) -> Components:
        """Return the blocks of these tailors, in this order."""
        parts = (part.index_select(0, tailors.to(part.device)) for part in (self.u, self.sigma, self.v))
        return Components(*parts)


def mask(x: Tensor, tailors: Components, weights: Tensor) -> Tensor:
    """Compute all tailors for all images and weight them: `Σ_c w_c x v_cᵀ σ_c u_cᵀ`, B N C k (m + n) products.

    A weight of 0 does not hide a tailor that holds infinities.

    Shapes: x (B, N, n), weights (B, C) to (B, N, m).
    """
    rank = tailors.sigma.shape[1]
    h = F.linear(x, tailors.down.flatten(0, 1))  # (B, N, C·k)
    h = h * weights.to(h.dtype).repeat_interleave(rank, dim=1)[:, None]  # (B, N, C·k)
    return F.linear(h, tailors.u.transpose(0, 1).flatten(1))  # (B, N, m)


def gather(x: Tensor, tailors: Components, gating: Assigned) -> Tensor:
    """Copy each image's tailor and multiply in batches: `x v_cᵀ σ_c u_cᵀ`, B N k (m + n) products.

    On CUDA the gradients of the copies are added in no fixed order.
    Shapes: x (B, N, n) to (B, N, m).
    """
    place = gating.tailors.clamp(min=0)  # (B,)
    on = (gating.tailors >= 0).to(x.dtype)[:, None, None]  # (B, 1, 1)
    h = (x * on) @ tailors.down.index_select(0, place).mT  # (B, N, k)
    return h @ tailors.u.index_select(0, place).mT  # (B, N, m)


def segments(x: Tensor, tailors: Components, gating: Segments) -> Tensor:
    """Multiply each segment of a sorted batch by its tailor: `x v_cᵀ σ_c u_cᵀ`, B N k (m + n) products.

    Shapes: x (B, N, n) to (B, N, m).
    """
    downs, ups = tailors.down.unbind(), tailors.u.unbind()  # whose gradients are one stack, not a sum of padded ones
    parts: list[Tensor] = []
    for (tailor, _), part in zip(gating.sizes, x.split([count for _, count in gating.sizes]), strict=True):
        on = None if tailor >= 0 else 0  # none: a product over no components, which is 0 in the dtype of the others
        parts.append(F.linear(F.linear(part, downs[tailor][:on]), ups[tailor][:, :on]))
    return torch.cat(parts)


def cheapest(tokens: int, tailors: int) -> str:
    """Name the mode with the least work for a batch that is not sorted, of so many tokens an image: mask or gather.

    In products of an image with one component. A processor is taken to do 16 of them while it moves one number, and a
    copied weight is moved five times (copy, gradient, sum of gradients).
    """
    return "mask" if tokens * tailors <= tokens + 5 * 16 else "gather"


def with_tailors(base: Tensor, x: Tensor, tailors: Components, gating: Gating) -> Tensor:
    """Add to what a layer gives every image what the tailors that are on give it: `base + Σ_c w_c x v_cᵀ σ_c u_cᵀ`.

    Shapes: base (B, *, m), x (B, *, n) to (B, *, m), with B the batch that the gate was told of.
    """
    count = len(tailors.sigma)
    if isinstance(gating, Closed) or count == 0:
        return base
    tokens = x.flatten(1, -2) if x.ndim > 2 else x[:, None]  # (B, N, n)
    match gating:
        case Mixed(weights):
            added = mask(tokens, tailors, weights)
        case Segments():
            added = segments(tokens, tailors, gating)
        case Assigned(_, mode):
            if (mode if mode in ("mask", "gather") else cheapest(tokens.shape[1], count)) == "mask":
                added = mask(tokens, tailors, gating.weights(count))
            else:
                added = gather(tokens, tailors, gating)
    return base + added.view_as(base)


def held(switch: Switch, x: Tensor) -> Gating:
    """Return the gating of the present batch.

    Raises:
        RuntimeError: If no gate is held, as when the backbone is called rather than the model around it.
        ValueError: If the batch is not the one that the gate was told of.
    """
    match switch.gating:
        case None:
            raise RuntimeError("no gate is held: call the decomposed model, which tells its layers the classes")
        case Closed():
            told = len(x)
        case Mixed(weights):
            told = len(weights)
        case Assigned(tailors, _):
            told = len(tailors)
        case Segments(order):
            told = len(order)
    if told != len(x):
        raise ValueError(f"the gate was told of {told} images, and a layer got a batch of {len(x)}")
    return switch.gating


@final
class KINDLinear(nn.Module):
    """Linear layer with a gated kernel, `W(y) x + b`, `W(y) = Σ_G u_i σ_i v_i + Σ_{j in tailor(y)} u_j σ_j v_j`.

    Learngenes G are on for every image, a tailor for the images of its classes, so that other classes send it a
    gradient of exactly 0. U, σ and V are free parameters; σ may have any sign. W is never formed: the layer multiplies
    by V, then by U, which is cheaper than the dense layer if fewer than `m n / (m + n)` components are active.

    Shapes: x (B, *, n) to (B, *, m) with B the batch that the gate was told of. `learngene_u` (m, r), `learngene_sigma`
    (r,), `learngene_v` (r, n), `tailor_u` (C, m, k), `tailor_sigma` (C, k), `tailor_v` (C, k, n), `bias` (m,) or None.
    Source: "KIND: Knowledge Integration and Diversion for Training Decomposable Models" (arXiv 2408.07337). Unconfirmed
    there: whether U and V are held orthonormal (here only at the start) and the sign of σ.

    Raises:
        RuntimeError: If no gate is held, as when the backbone is called rather than the model around it.
        ValueError: If the batch is not the one that the gate was told of.
    """

    def __init__(self, learngenes: Components, tailors: Components, bias: Tensor | None, switch: Switch) -> None:
        super().__init__()
        self.learngene_u = parameter(learngenes.u)
        self.learngene_sigma = parameter(learngenes.sigma)
        self.learngene_v = parameter(learngenes.v)
        self.tailor_u = parameter(tailors.u)
        self.tailor_sigma = parameter(tailors.sigma)
        self.tailor_v = parameter(tailors.v)
        self.bias = None if bias is None else parameter(bias)
        self.switch = switch

    @property
    def in_features(self) -> int:
        """n, as of the dense layer."""
        return self.learngene_v.shape[1]

    @property
    def out_features(self) -> int:
        """m, as of the dense layer."""
        return self.learngene_u.shape[0]

    @property
    def learngenes(self) -> Components:
        """The components that are always on."""
        return Components(self.learngene_u, self.learngene_sigma, self.learngene_v)

    @property
    def tailors(self) -> Components:
        """The components of all tailors."""
        return Components(self.tailor_u, self.tailor_sigma, self.tailor_v)

    def forward(self, x: Tensor) -> Tensor:
        gating, tailors = held(self.switch, x), self.tailors
        if isinstance(gating, Segments) and len(tailors.sigma):
            shared, own = (self.learngenes.down, self.learngene_u), (tailors.down, tailors.u)
            return segmented_linear(x, shared, own, self.bias, gating.sizes)
        base = F.linear(F.linear(x, self.learngenes.down), self.learngene_u, self.bias)  # (B, *, m)
        return with_tailors(base, x, tailors, gating)

    @torch.no_grad()
    def kernel(self, tailors: Sequence[int] = ()) -> Tensor:
        """Return the dense kernel (m, n) with these tailors on, by their places; formed in float32 at least."""
        wide = torch.promote_types(self.learngene_u.dtype, torch.float32)
        u = torch.cat([self.learngene_u, *(self.tailor_u[c] for c in tailors)], dim=1).to(wide)  # (m, r_act)
        sigma = torch.cat([self.learngene_sigma, *(self.tailor_sigma[c] for c in tailors)]).to(wide)  # (r_act,)
        v = torch.cat([self.learngene_v, *(self.tailor_v[c] for c in tailors)]).to(wide)  # (r_act, n)
        return (u * sigma @ v).to(self.learngene_u.dtype)

    def extra_repr(self) -> str:
        learngenes, (count, rank) = len(self.learngene_sigma), self.tailor_sigma.shape
        size = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{size}, learngenes={learngenes}, tailors={count} of rank {rank}"


def check_rank(rank: int, name: str, shape: tuple[int, int]) -> None:
    """Refuse no components for a layer, and more than its kernel (m, n) can have: beyond min(m, n) they add nothing.

    Raises:
        ValueError: Naming the layer and its size.
    """
    m, n = shape
    if rank < 1:
        raise ValueError(f"components of {name} have a rank of at least 1, got {rank}")
    if rank > min(m, n):
        raise ValueError(
            f"{name} has a kernel of {m}x{n}, whose rank is {min(m, n)} at most, got rank {rank}: give a lower one, or"
            " leave this layer out"
        )


def parameter(value: Tensor) -> nn.Parameter:
    """Return a parameter with a copy of a value; without elements it is not trained, so that none goes unused."""
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), requires_grad=value.numel() > 0)
