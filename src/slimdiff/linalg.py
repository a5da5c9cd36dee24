"""Dense linear algebra that the closed forms share. Knows nothing of diffusion.

Everything runs in float64. Second moments come *augmented*: the moment of ``[x, 1]``, shape
(n+1, n+1), holds ``sum x x^T``, ``sum x`` and ``sum 1`` in one additive matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["centre", "cholesky", "damped", "roots"]

_TRIES = 12


def centre(augmented: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, shape (n,), and centred second moment, shape (n, n), of an augmented sum."""
    weight = augmented[-1, -1].clamp_min(torch.finfo(augmented.dtype).tiny)
    mean = augmented[:-1, -1] / weight
    centred = augmented[:-1, :-1] / weight
    centred.addr_(mean, mean, alpha=-1)
    return mean, (centred + centred.mT).div_(2)


def damped(c: Tensor, damping: float) -> Tensor:
    """``c + damping * mean(diag c) * I``; a moment that is all zero gets the identity.

    ``c`` has shape (..., n, n); each matrix is damped by its own mean diagonal.
    """
    level = c.diagonal(dim1=-2, dim2=-1).mean(-1)
    level = torch.where(level > 0, damping * level, torch.ones_like(level))
    result = c.clone()
    result.diagonal(dim1=-2, dim2=-1).add_(level[..., None])
    return result


def roots(c: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """``c^{1/2}`` and its inverse, symmetric, shape (..., n, n) each.

    Eigenvalues below ``floor`` times the largest count as that much, which keeps both roots
    invertible where ``c`` is rank-deficient; sums of float32 products are exact to about 1e-8 of
    the largest, so smaller values are noise, of either sign. A moment that is all zero counts as
    the identity. With ``floor`` 0 a null direction keeps a zero root and a zero inverse root.
    """
    values, vectors = torch.linalg.eigh(c)
    largest = values.amax(-1, keepdim=True)
    null = largest.clamp_min(0) * c.shape[-1] * torch.finfo(c.dtype).eps
    values = torch.where(largest > 0, values.clamp_min(0).maximum(floor * largest), 1.0)
    root = values.sqrt()
    inverse = torch.where(values > null, root.reciprocal(), torch.zeros_like(root))
    return vectors * root[..., None, :] @ vectors.mT, vectors * inverse[..., None, :] @ vectors.mT


def cholesky(c: Tensor, damping: float) -> Tensor:
    """Lower Cholesky factor of ``c``, shape (n, n), damped by no more than it takes to exist.

    Starts at ``damping`` (relative to the mean diagonal) and multiplies it by ten while the
    factorisation fails, which happens for rank-deficient moments only. A matrix of nothing but
    rounding (all channels constant) is outweighed by the identity.
    """
    level = damping
    for _ in range(_TRIES):
        factor, info = torch.linalg.cholesky_ex(damped(c, level) if level else c)
        if int(info) == 0:
            return factor
        level = max(10 * level, 1e-14)
    outweighed = c + 2 * c.abs().sum(-1).max() * torch.eye(len(c), dtype=c.dtype, device=c.device)
    factor, info = torch.linalg.cholesky_ex(outweighed)
    if int(info) == 0:
        return factor
    raise ArithmeticError(f"moment of size {c.shape[-1]} is not positive, not even damped")
