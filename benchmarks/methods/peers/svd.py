"""``svd``: each matrix alone is replaced by two low-rank factors (SVD-LLM).

With ``C = E[x x^T] = S S^T`` the Cholesky factor of the input's second moment, ``W`` of shape
(m, n) and ``U Sigma V^T = svd(W S)``::

    W' = (U_r Sigma_r) (V_r^T S^{-1})        E|W x - W' x|^2 = sum_{i > r} Sigma_i^2

which is the least error any matrix of rank r has on these inputs. Kept are the two factors,
shapes (m, r) and (r, n), and the bias; r follows from ``r (m + n) = share * m n``, one common
share for all matrices. A matrix whose factors would cost as much as itself stays whole.

Publication: Wang et al., SVD-LLM, 2024 (arXiv 2403.07378), truncation-aware data whitening
(without its later LoRA-style update, which trains).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from slimdiff.linalg import cholesky
from slimdiff.sampling import IndexedPrompt, Sampling
from slimdiff.sites import Site, free_sites, pool_parameters, reader_biases

from .channels import linear_of
from .moments import Moments, input_moments
from .pool import Width, parameters_left, shared_out, spendable, used

__all__ = ["gather", "ranks", "slim_", "truncated"]


def truncated(weight: Tensor, moment: Tensor, rank: int) -> Tensor:
    """The best ``W'`` of rank r for inputs of second moment ``moment``, float64.

    ``weight``: shape (m, n); ``moment``: shape (n, n).
    """
    root = cholesky(moment.double(), 0.0)
    u, s, vt = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    right = torch.linalg.solve_triangular(root, vt[:rank], upper=False, left=False)
    return (u[:, :rank] * s[:rank]) @ right


def ranks(model: nn.Module, sites: Sequence[Site], share: float) -> tuple[dict[str, int], int]:
    """Rank of every matrix, 0 for one that stays whole, and the parameters of all of them."""
    shapes = {name: linear.weight.shape for name, linear in _linears(model, sites).items()}
    # Biases stay whole here, those of the writers too: only weights can be spent.
    biases = _writer_biases(sites)
    if share >= 1:
        return dict.fromkeys(shapes, 0), sum(m * n for m, n in shapes.values()) + biases
    widths = {name: Width(m * n / (m + n), m + n) for name, (m, n) in shapes.items()}
    found = shared_out(widths, spendable(sites, share) - biases)
    return found, used(widths, found) + biases


@torch.no_grad()
def slim_(
    model: nn.Module,
    sites: Sequence[Site],
    moments: Moments,
    share: float,
    generator: torch.Generator,
) -> int:
    """Replace every matrix by the product of its factors; returns the parameters left."""
    found, kept = ranks(model, sites, share)
    for name, linear in _linears(model, sites).items():
        if found[name]:
            moment = moments[name].to(linear.weight.device)
            linear.weight.copy_(truncated(linear.weight, moment, found[name]))
    return parameters_left(model, sites, kept)


def gather(
    pipe: DiffusionPipeline,
    sites: Sequence[Site],
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
) -> Moments:
    """Input moments of every Linear in the pool, all steps alike."""
    names = dict.fromkeys(part.linear for site in free_sites(sites) for part in site.parts)
    return input_moments(pipe, list(names), prompts, sampling)


def _linears(model: nn.Module, sites: Sequence[Site]) -> dict[str, nn.Linear]:
    return {p.linear: linear_of(model, p) for s in free_sites(sites) for p in s.parts}


def _writer_biases(sites: Sequence[Site]) -> int:
    free = free_sites(sites)
    weights = sum(part.size * part.across for site in free for part in site.parts)
    return pool_parameters(sites) - reader_biases(free) - weights
