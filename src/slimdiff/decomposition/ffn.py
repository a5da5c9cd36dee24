"""Feed-forward: keep a subset of the hidden channels and refit the down projection on it.

Backward elimination: each time the channel goes whose removal costs least *after* optimal
compensation by those that stay (optimal brain surgery). With ``c`` the centred moment of the
hidden activations, ``L`` the living channels, ``K = (c_LL)^{-1}``, ``G`` the down projection
refitted on ``L`` and ``P = G G^T``::

    cost_j = P_jj / K_jj      t = K_:j / K_jj      h = P_:j - t P_jj / 2
    K <- K - K_jj t t^T       P <- P - t h^T - h t^T      (which is G <- G - t G_j)

The last r to go are the best r that greedy elimination finds. Updates of K and P are gathered
into blocks (as in blocked factorisations); what the choice needs, their diagonals, is kept exact
at every step, so the result does not depend on the block size.

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
    mean diagonal. Time O(F^3 + F^2 D), memory O(F^2).
    """
    inverse = torch.cholesky_inverse(cholesky(c, damping))
    energy = weight @ weight.mT
    order = torch.arange(c.shape[0], device=c.device)
    # The living stand in front, so that blocks of both matrices are updated where they lie.
    alive = len(order)
    while alive:
        living = slice(alive), slice(alive)
        picked = _eliminate_block(inverse[living], energy[living], min(block, alive))
        _to_the_end(picked, alive, order, inverse, energy)
        alive -= len(picked)
    return order.flip(0)


def _to_the_end(picked: Tensor, alive: int, order: Tensor, *matrices: Tensor) -> None:
    """Move ``picked`` of the first ``alive`` positions behind the others, first picked last.

    Rows and columns of the symmetric ``matrices`` follow; of those that went they are lost.
    """
    gone, left = order[picked].flip(0), alive - len(picked)
    stays = torch.ones(alive, dtype=torch.bool, device=order.device)
    stays[picked] = False
    holes = (~stays[:left]).nonzero().flatten()
    movers = left + stays[left:].nonzero().flatten()
    for matrix in matrices:
        matrix[holes] = matrix[movers]
        matrix[:, holes] = matrix[:, movers]
    order[holes] = order[movers]
    order[left:alive] = gone


def _eliminate_block(inverse: Tensor, energy: Tensor, count: int) -> Tensor:
    """Eliminate ``count`` channels one by one; updates ``inverse`` and ``energy`` in place.

    During the block ``K = inverse - T diag(p) T^T`` and ``P = energy - T H^T - H T^T`` are left
    implicit: columns b of ``T`` and ``H`` are ``t`` and ``h``, ``p_b`` is ``K_jj``, at the time
    channel j went. Returns the positions that went, in order, shape (count,).
    """
    size = inverse.shape[0]
    steps, halves = inverse.new_zeros(size, count), inverse.new_zeros(size, count)
    pivots = inverse.new_zeros(count)
    diagonal, worth = inverse.diagonal().clone(), energy.diagonal().clone()
    alive = torch.ones(size, dtype=torch.bool, device=inverse.device)
    picked = torch.zeros(count, dtype=torch.long, device=inverse.device)
    for b in range(count):
        cost = torch.where(alive, worth.clamp_min(0) / diagonal, torch.inf)
        j = int(cost.argmin())
        t, h = steps[:, :b], halves[:, :b]
        column = inverse[j] - t @ (pivots[:b] * t[j])
        heard = energy[j] - t @ h[j] - h @ t[j]
        step = column / column[j]
        half = heard - step * (heard[j] / 2)
        worth -= 2 * step * half
        diagonal -= column * step
        diagonal.clamp_min_(torch.finfo(diagonal.dtype).tiny)
        steps[:, b], halves[:, b], pivots[b], picked[b] = step, half, column[j], j
        alive[j] = False
    inverse.addmm_(steps * pivots, steps.mT, alpha=-1)
    energy.addmm_(steps, halves.mT, alpha=-1).addmm_(halves, steps.mT, alpha=-1)
    return picked
