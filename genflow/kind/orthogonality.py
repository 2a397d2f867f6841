"""How far the learngenes of a trained model have come from the singular vectors that they were at the start."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from genflow.kind.model import Decomposed, check_decomposed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Departure:
    """Frobenius norms `|Uᵀ U - I|` and `|V Vᵀ - I|` of the learngenes of one layer; 0 is orthonormal."""

    u: float
    v: float


@torch.no_grad()
def departures(model: Decomposed) -> dict[str, Departure]:
    """Return how far the learngenes of each layer are from orthonormal, by the layer's name.

    KIND's paper speaks of singular vectors (arXiv 2408.07337); that nothing holds them orthonormal in training is
    unconfirmed there, and so here.

    Raises:
        ValueError: For what is no decomposed backbone.
    """
    check_decomposed(model)
    found: dict[str, Departure] = {}
    for name, linear in model.linears().items():
        g = linear.learngenes
        found[name] = Departure(u=_from_identity(g.u.mT @ g.u), v=_from_identity(g.v @ g.v.mT))
    return found


def _from_identity(gram: Tensor) -> float:
    return float(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
