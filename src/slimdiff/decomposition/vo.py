"""Value-output: keep the head coordinates that the output projection hears most, then refit it.

Per head, with ``c`` the centred moment of the head's attention output ``y_h`` and ``W_h`` its
rows of the output projection, the best rank-r bottleneck keeps the leading directions of
``U S V^T = svd(c^{1/2} W_h)``: coordinates ``y_h c^{-1/2} U[:, :r]``. Only their span matters once
the output projection is refitted, so an orthonormal basis ``Q`` of the nested spans is kept:
``W_v' = W_v Q[:, :r]``. Then the output projection and its bias are refitted over all heads at
once (:mod:`slimdiff.decomposition.refit`).

References: Lin et al., MoDeGPT, 2024 (arXiv 2408.09632), type III; Roy et al., SlimDiff, 2025
(arXiv 2509.21498). The moment of the attention *output* and the joint affine refit are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import centre, roots
from .basis import Basis, Maps, Moments
from .refit import DAMPING, prefix_errors, refit

__all__ = ["decompose", "maps"]

_FLOOR = 1e-7


def decompose(moments: Moments, readers: Tensor, damping: float = 0.0) -> Basis:
    """Ordered head directions and the share of output energy lost at each width after the refit.

    ``moments``: ``augmented``, the moment of ``[y, 1]`` over all heads, shape (Hd+1, Hd+1).
    ``readers``: the output projection, shape (H, d, D), several readers side by side. The basis
    holds ``value`` = Q, shape (H, d, d), orthonormal, columns ordered.
    """
    heads, width, _ = readers.shape
    _, c = centre(moments["augmented"])
    blocks = _diagonal_blocks(c, heads)
    root, inverse = roots(blocks, _FLOOR)
    missing = max(0, width - readers.shape[-1])
    weight = torch.nn.functional.pad(readers, (0, missing))
    u, _, _ = torch.linalg.svd(root @ weight, full_matrices=False)
    q, _ = torch.linalg.qr(inverse @ u)
    return Basis({"value": q}, _errors(c, q, readers.flatten(0, 1), damping))


def maps(basis: Basis, moments: Moments, width: int, damping: float = DAMPING) -> Maps:
    """``value`` map, shape (H, d, r); reader map ``output``, (Hr, Hd), and bias row, (Hd,)."""
    q = basis.tensors["value"]
    heads, full, _ = q.shape
    mean, c = centre(moments["augmented"])
    basis_change = torch.block_diag(*q)
    index = torch.arange(heads * full, device=q.device).view(heads, full)
    kept, dropped = index[:, :width].reshape(-1), index[:, width:].reshape(-1)
    transfer, bias = refit(
        mean @ basis_change, basis_change.mT @ c @ basis_change, kept, dropped, damping
    )
    return {
        "value": q[..., :width].clone(),
        "output": transfer @ basis_change.mT,
        "bias": bias @ basis_change.mT,
    }


def _errors(c: Tensor, q: Tensor, readers: Tensor, damping: float) -> Tensor:
    """Share of the centred output energy lost at widths 0..d, all heads cut alike."""
    heads, width, _ = q.shape
    basis_change = torch.block_diag(*q)
    rank_major = torch.arange(heads * width, device=q.device).view(heads, width).T.reshape(-1)
    rotated = (basis_change.mT @ c @ basis_change)[rank_major][:, rank_major]
    weight = (basis_change.mT @ readers)[rank_major]
    gained = prefix_errors(rotated, weight, damping).view(width, heads).sum(1)
    tail = gained.flip(0).cumsum(0).flip(0)
    errors = torch.cat([tail, tail.new_zeros(1)])
    return errors / errors[0].clamp_min(torch.finfo(errors.dtype).tiny)


def _diagonal_blocks(c: Tensor, heads: int) -> Tensor:
    """The per-head diagonal blocks of ``c``, shape (H, d, d)."""
    width = c.shape[0] // heads
    return c.view(heads, width, heads, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
