"""Query-key: the rank-r inner product closest to the dense one, per head.

Minimises ``E (q^T k~ - q^T P k~)^2`` over matrices ``P`` of rank r, q and k~ drawn independently
from the pooled tokens, where ``k~`` is the key less the mean of its own sequence (softmax does
not see a constant added to all keys). With ``U S V^T = svd(C_q^{1/2} C_k^{1/2})``::

    A = C_q^{-1/2} U S^{1/2}    B = A^{-T} = C_q^{1/2} U S^{-1/2}    P_r = A[:, :r] B[:, :r]^T

and the error is ``sum_{i > r} S_i^2``. The slim attention divides by ``sqrt(r)`` where the dense
one divides by ``sqrt(d)``; the factor ``sqrt(r / d)`` is folded into the query map.

References: Lin et al., MoDeGPT, 2024 (arXiv 2408.09632), type II; Roy et al., SlimDiff, 2025
(arXiv 2509.21498). Centred keys are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..linalg import roots
from .basis import Basis, Maps, Moments

__all__ = ["decompose", "maps"]

_FLOOR = 1e-7


def decompose(moments: Moments, readers: Tensor, floor: float = _FLOOR) -> Basis:
    """Ordered directions of queries and keys, and the share of logit energy lost at each width.

    ``moments``: ``query`` and ``key``, second moments per head, shape (H, d, d); sums serve as
    well as means. ``readers`` is not used: softmax reads the logits. The basis holds ``query`` = A
    and ``key`` = B, shape (H, d, d), columns ordered by singular value. ``floor`` is the least
    eigenvalue of a moment, relative to its largest (:func:`slimdiff.linalg.roots`).
    """
    root_q, inverse_q = roots(moments["query"], floor)
    root_k, _ = roots(moments["key"], floor)
    u, s, _ = torch.linalg.svd(root_q @ root_k)
    a = inverse_q @ u * s.sqrt()[:, None, :]
    # B also equals C_k^{-1/2} V S^{1/2}; from A's own factors A B^T = I to rounding, also where
    # C_k is nearly singular, and no LU: batched, torch's is wrong on several threads under MKL.
    b = root_q @ u * s.rsqrt()[:, None, :]
    # A moment of zeros is damped to the identity, yet its head has no logits to lose.
    tail = (s.square() * _live(moments)[:, None]).sum(0).flip(0).cumsum(0).flip(0)
    errors = torch.cat([tail, tail.new_zeros(1)])
    return Basis({"query": a, "key": b}, errors / errors[0].clamp_min(_tiny(errors)))


def maps(basis: Basis, moments: Moments, width: int) -> Maps:
    """``query`` and ``key`` maps, shape (H, d, r), the softmax scale folded into the query's."""
    a, b = basis.tensors["query"], basis.tensors["key"]
    fold = math.sqrt(width / a.shape[-1])
    return {"query": a[..., :width] * fold, "key": b[..., :width].clone()}


def _live(moments: Moments) -> Tensor:
    """1 for heads whose queries and keys are not all zero, shape (H,)."""
    traces = [moments[n].diagonal(dim1=-2, dim2=-1).sum(-1) for n in ("query", "key")]
    return ((traces[0] > 0) & (traces[1] > 0)).to(traces[0])


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
