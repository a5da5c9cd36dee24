"""Feed-forward: keep a subset of the hidden channels and refit the down projection on it.

Backward elimination: each time the channel goes whose removal costs least *after* optimal
compensation by those that stay (optimal brain surgery). With ``c`` the centred moment of the
hidden activations, ``L`` the living channels, ``K = (c_LL)^{-1}`` and ``G`` the down projection
refitted on ``L``::

    cost_j = |G_j|^2 / K_jj      K <- K - K_:j K_j: / K_jj      G <- G - K_:j G_j / K_jj

The last r to go are the best r that greedy elimination finds. Updates of K and G are gathered
into blocks (as in blocked factorisations); what the choice needs, diag K and |G_j|^2, is kept
exact at every step, so the result does not depend on the block size.

References: Hassibi & Stork, Optimal Brain Surgeon, 1992; Lin et al., MoDeGPT, 2024
(arXiv 2408.09632), type I (Nystrom); Roy et al., SlimDiff, 2025 (arXiv 2509.21498). Ordering by
the cost on the output instead of leverage scores, and the affine refit, are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import centre, cholesky
from .basis import Basis, Maps, Moments
from .refit import DAMPING, prefix_errors, refit

__all__ = ["decompose", "eliminate", "maps"]

_ORDER_DAMPING = 1e-8
_BLOCK = 64


def decompose(moments: Moments, readers: Tensor, damping: float = 0.0) -> Basis:
    """Channels, most worth keeping first, and the share of output energy lost at each width.

    ``moments``: ``augmented``, the moment of ``[z, 1]``, shape (F+1, F+1). ``readers``: the down
    projection, shape (1, F, D). The basis holds ``order``, shape (F,): channel indices.
    """
    readers = readers.flatten(0, 1)
    _, c = centre(moments["augmented"])
    order = eliminate(c, readers).flip(0)
    gained = prefix_errors(c[order][:, order], readers[order], damping)
    tail = gained.flip(0).cumsum(0).flip(0)
    errors = torch.cat([tail, tail.new_zeros(1)])
    return Basis({"order": order}, errors / errors[0].clamp_min(torch.finfo(c.dtype).tiny))


def maps(basis: Basis, moments: Moments, width: int, damping: float = DAMPING) -> Maps:
    """``up``, ``gate``: kept channels, ascending, shape (r,); ``down``, (r, F); ``bias``, (F,)."""
    order = basis.tensors["order"]
    mean, c = centre(moments["augmented"])
    kept, dropped = order[:width].sort().values, order[width:].sort().values
    transfer, bias = refit(mean, c, kept, dropped, damping)
    return {"up": kept, "gate": kept, "down": transfer, "bias": bias}


def eliminate(
    c: Tensor, weight: Tensor, damping: float = _ORDER_DAMPING, block: int = _BLOCK
) -> Tensor:
    """Order in which the channels go, cheapest first, shape (F,).

    ``c``: centred moment, shape (F, F); ``weight``: shape (F, D). ``damping`` is relative to the
    mean diagonal. Time O(F^3 + F^2 D), memory O(F^2 + F D).
    """
    alive = torch.arange(c.shape[0], device=c.device)
    inverse = torch.cholesky_inverse(cholesky(c, damping))
    weight = weight.clone()
    gone: list[Tensor] = []
    while len(alive):
        picked = _eliminate_block(inverse, weight, min(block, len(alive)))
        gone.append(alive[picked])
        stay = torch.ones(len(alive), dtype=torch.bool, device=c.device)
        stay[picked] = False
        alive, inverse, weight = alive[stay], inverse[stay][:, stay], weight[stay]
    return torch.cat(gone) if gone else alive


def _eliminate_block(inverse: Tensor, weight: Tensor, count: int) -> Tensor:
    """Eliminate ``count`` channels one by one; updates ``inverse`` and ``weight`` in place.

    During the block ``K = inverse - A diag(p) A^T`` and ``G = weight - A R`` are left implicit:
    column b of ``A`` is ``K_:j / K_jj``, ``p_b`` is ``K_jj`` and row b of ``R`` is ``G_j`` at the
    time channel j went. Returns the positions that went, in order, shape (count,).
    """
    size = inverse.shape[0]
    columns = inverse.new_zeros(size, count)
    pivots = inverse.new_zeros(count)
    rows = weight.new_zeros(count, weight.shape[1])
    diagonal, energy = inverse.diagonal().clone(), weight.square().sum(1)
    alive = torch.ones(size, dtype=torch.bool, device=inverse.device)
    picked = torch.zeros(count, dtype=torch.long, device=inverse.device)
    for b in range(count):
        cost = torch.where(alive, energy.clamp_min(0) / diagonal, torch.inf)
        j = int(cost.argmin())
        column = inverse[:, j] - columns[:, :b] @ (pivots[:b] * columns[j, :b])
        row = weight[j] - columns[j, :b] @ rows[:b]
        step = column / column[j]
        overlap = weight @ row - columns[:, :b] @ (rows[:b] @ row)
        energy += step * (step * row.square().sum() - 2 * overlap)
        diagonal -= column * step
        diagonal.clamp_min_(torch.finfo(diagonal.dtype).tiny)
        columns[:, b], pivots[b], rows[b], picked[b] = step, column[j], row, j
        alive[j] = False
    inverse -= (columns * pivots) @ columns.mT
    weight -= columns @ rows
    return picked
