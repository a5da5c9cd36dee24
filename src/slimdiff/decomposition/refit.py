"""Affine refit of a reader on the coordinates that are kept, in deviation form.

The reader computes ``y W + b``. In a full basis split into kept (1) and dropped (2) coordinates
with means ``m`` and centred moment ``c``, least squares on ``[y_1, 1]`` gives::

    D = (c_11 + lambda I)^{-1} c_12          W' = W_1 + D W_2
    b' = b + (m_2 - m_1 D) W_2

Written as a deviation from ``W_1`` it is the identity at full width for any damping. Both are
linear in ``W``: ``W' = T W`` and ``b' = b + t W``. Minimal error of every prefix at once, with
``c = L L^T`` in kept-first order: ``E(r) = sum_{i > r} |(L^T W)_i|^2``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import cholesky

__all__ = ["DAMPING", "prefix_errors", "refit"]

DAMPING = 1e-7
"""Default ridge, relative to the mean diagonal of the moment."""


def prefix_errors(c: Tensor, weight: Tensor, damping: float = 0.0) -> Tensor:
    """Output energy that coordinate i adds once those before it are kept and refitted.

    ``c``: centred moment, kept-first order, shape (n, n); ``weight``: shape (n, D).
    Returns shape (n,); the error of keeping the first r is the sum of entries r and on.
    """
    return (cholesky(c, damping).mT @ weight).square().sum(1)


def refit(
    mean: Tensor, c: Tensor, kept: Tensor, dropped: Tensor, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """The reader's map in the full basis: ``T``, shape (r, n), and the bias row ``t``, shape (n,).

    ``mean``: shape (n,); ``c``: centred moment, shape (n, n); ``kept`` and ``dropped``: index
    vectors that share out 0..n-1.
    """
    transfer = c.new_zeros(len(kept), c.shape[0])
    transfer[torch.arange(len(kept), device=c.device), kept] = 1.0
    bias = torch.zeros_like(mean)
    if len(dropped):
        factor = cholesky(c[kept][:, kept], damping)
        deviation = torch.cholesky_solve(c[kept][:, dropped], factor)
        transfer[:, dropped] = deviation
        bias[dropped] = mean[dropped] - mean[kept] @ deviation
    return transfer, bias
