"""Value-output: keep the head coordinates that the output projection hears most, then refit it.

Per head, with ``c`` the centred moment of the head's attention output ``y_h`` and ``W_h`` its
rows of the output projection, the best rank-r bottleneck keeps the leading directions of
``U S V^T = svd(c^{1/2} W_h)``: coordinates ``y_h c^{-1/2} U[:, :r]``. Only their span matters once
the output projection is refitted, so an orthonormal basis ``Q`` of the nested spans is kept:
``W_v' = W_v Q[:, :r]``. Then the output projection and its bias are refitted over all heads at
once (:mod:`slimdiff.decomposition.refit`).

In joint attention one softmax serves several streams, each with a reader ``W_s`` of its own. They
share the basis, which is that of the pooled moment against all readers side by side; then every
reader is refitted on the moment of what it reads itself.

References: Lin et al., MoDeGPT, 2024 (arXiv 2408.09632), type III; Roy et al., SlimDiff, 2025
(arXiv 2509.21498). The moment of the attention *output* and the joint affine refit are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import centre, roots
from .basis import Basis, Maps, Moments, of_reader, reader_moments
from .refit import DAMPING, prefix_errors, refit

__all__ = ["decompose", "maps"]

_FLOOR = 1e-7


def decompose(moments: Moments, readers: Tensor, damping: float = 0.0) -> Basis:
    """Ordered head directions and the share of output energy lost at each width after the refit.

    ``moments``: ``augmented``, the moment of ``[y, 1]`` over all heads, shape (Hd+1, Hd+1), one
    for each reader. ``readers``: the output projection, shape (H, d, D), several of equal size
    side by side. The basis holds ``value`` = Q, shape (H, d, d), orthonormal, columns ordered.
    """
    heads, width, _ = readers.shape
    own = reader_moments(moments)
    _, c = centre(torch.stack(own).sum(0))
    blocks = _diagonal_blocks(c, heads)
    root, inverse = roots(blocks, _FLOOR)
    missing = max(0, width - readers.shape[-1])
    weight = torch.nn.functional.pad(readers, (0, missing))
    u, _, _ = torch.linalg.svd(root @ weight, full_matrices=False)
    q, _ = torch.linalg.qr(inverse @ u)
    gained = torch.stack(
        [
            moment[-1, -1] * _gained(centre(moment)[1], q, reader, damping)
            for moment, reader in zip(own, readers.flatten(0, 1).chunk(len(own), -1), strict=True)
        ]
    ).sum(0)
    tail = gained.flip(0).cumsum(0).flip(0)
    errors = torch.cat([tail, tail.new_zeros(1)])
    return Basis({"value": q}, errors / errors[0].clamp_min(torch.finfo(errors.dtype).tiny))


def maps(basis: Basis, moments: Moments, width: int, damping: float = DAMPING) -> Maps:
    """``value`` map, (H, d, r); per reader its map ``output``, (Hr, Hd), and bias row, (Hd,)."""
    q = basis.tensors["value"]
    heads, full, _ = q.shape
    basis_change = torch.block_diag(*q)
    index = torch.arange(heads * full, device=q.device).view(heads, full)
    kept, dropped = index[:, :width].reshape(-1), index[:, width:].reshape(-1)
    found = {"value": q[..., :width].clone()}
    for i, moment in enumerate(reader_moments(moments)):
        mean, c = centre(moment)
        transfer, bias = refit(
            mean @ basis_change, basis_change.mT @ c @ basis_change, kept, dropped, damping
        )
        found[of_reader("output", i)] = transfer @ basis_change.mT
        found[of_reader("bias", i)] = bias @ basis_change.mT
    return found


def _gained(c: Tensor, q: Tensor, reader: Tensor, damping: float) -> Tensor:
    """Centred output energy that each width adds, all heads cut alike, shape (d,)."""
    heads, width, _ = q.shape
    basis_change = torch.block_diag(*q)
    rank_major = torch.arange(heads * width, device=q.device).view(heads, width).T.reshape(-1)
    rotated = (basis_change.mT @ c @ basis_change)[rank_major][:, rank_major]
    weight = (basis_change.mT @ reader)[rank_major]
    return prefix_errors(rotated, weight, damping).view(width, heads).sum(1)


def _diagonal_blocks(c: Tensor, heads: int) -> Tensor:
    """The per-head diagonal blocks of ``c``, shape (H, d, d)."""
    width = c.shape[0] // heads
    return c.view(heads, width, heads, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
