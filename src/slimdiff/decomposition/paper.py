"""The published forms, as far as they are known, behind the same two functions a kind.

- **qk**: as :mod:`slimdiff.decomposition.qk`, but keys are not centred.
- **vo**: whitening with the moment of the values themselves, ``C_v = W_v^T C_x W_v``; per head
  ``U S V^T = svd(C_v^{1/2} W_h)``, ``W_v' = W_v C_v^{-1/2} U_r``, ``W_h' = U_r^T C_v^{1/2} W_h``.
  It takes no account of attention averaging the values; nothing is refitted, the bias stays.
- **ffn**: channels by ridge leverage score ``[C (C + lambda I)^{-1}]_jj``, the down projection by
  Nystrom, ``W' = (C_SS)^+ C_S: W``; the bias stays. Moments are not centred.

References: Roy et al., SlimDiff, 2025 (arXiv 2509.21498); Lin et al., MoDeGPT, 2024 (arXiv
2408.09632). Where neither says how, ``lambda`` is the mean diagonal of ``C``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import cholesky, damped, roots
from . import qk
from .basis import Basis, Maps, Moments, of_reader, reader_moments
from .refit import DAMPING, prefix_errors

__all__ = [
    "ffn_decompose",
    "ffn_maps",
    "qk_decompose",
    "qk_maps",
    "vo_decompose",
    "vo_maps",
]

_FLOOR = 1e-7


def qk_decompose(moments: Moments, readers: Tensor) -> Basis:
    """As the exact form on uncentred keys: ``key`` plus ``key_mean``, shape (H, d, d) each."""
    uncentred = {"query": moments["query"], "key": moments["key"] + moments["key_mean"]}
    return qk.decompose(uncentred, readers)


qk_maps = qk.maps


def vo_decompose(moments: Moments, readers: Tensor) -> Basis:
    """Per-head factors under the values' moment ``value``, shape (H, d, d).

    ``readers``: shape (H, d, D). The basis holds ``value`` and ``output``, shape (H, d, d): the
    maps of both projections at full width.
    """
    root, inverse = roots(moments["value"], _FLOOR)
    missing = max(0, readers.shape[1] - readers.shape[2])
    weight = torch.nn.functional.pad(readers, (0, missing))
    u, s, _ = torch.linalg.svd(root @ weight, full_matrices=False)
    errors = _tails(s.square().sum(0))
    return Basis({"value": inverse @ u, "output": u.mT @ root}, errors)


def vo_maps(basis: Basis, moments: Moments, width: int) -> Maps:
    """``value``, (H, d, r); ``output``, block-diagonal, (Hr, Hd); no change of the bias.

    Several readers get the same map.
    """
    output = torch.block_diag(*basis.tensors["output"][:, :width])
    found = {"value": basis.tensors["value"][..., :width].clone()}
    for i, _ in enumerate(reader_moments(moments)):
        found[of_reader("output", i)] = output
        found[of_reader("bias", i)] = output.new_zeros(output.shape[1])
    return found


def ffn_decompose(moments: Moments, readers: Tensor) -> Basis:
    """``order`` by falling ridge leverage score, shape (F,); ``readers``: shape (1, F, D)."""
    c, weight = _uncentred(moments), readers.flatten(0, 1)
    scores = torch.linalg.solve(damped(c, 1.0), c).diagonal()
    order = scores.argsort(descending=True, stable=True)
    gained = prefix_errors(c[order][:, order], weight[order])
    return Basis({"order": order}, _tails(gained))


def ffn_maps(basis: Basis, moments: Moments, width: int) -> Maps:
    """``up``, ``gate``: kept channels, (r,); ``down``: ``(C_SS)^+ C_S:``, (r, F); bias kept."""
    c = _uncentred(moments)
    kept = basis.tensors["order"][:width].sort().values
    factor = cholesky(c[kept][:, kept], DAMPING)
    return {
        "up": kept,
        "gate": kept,
        "down": torch.cholesky_solve(c[kept], factor),
        "bias": c.new_zeros(c.shape[0]),
    }


def _uncentred(moments: Moments) -> Tensor:
    augmented = moments["augmented"]
    return augmented[:-1, :-1] / augmented[-1, -1].clamp_min(torch.finfo(torch.float64).tiny)


def _tails(gained: Tensor) -> Tensor:
    """Share of the energy that is lost when the first r entries are kept, shape (n + 1,)."""
    tail = gained.flip(0).cumsum(0).flip(0)
    errors = torch.cat([tail, tail.new_zeros(1)])
    return errors / errors[0].clamp_min(torch.finfo(errors.dtype).tiny)
