"""``magnitude``: the channels with the largest weights stay; nothing is refitted.

The score of channel j of a head is the L1 norm of all that belongs to it::

    score_j = sum over writers |W_j:|_1 + sum over readers |W_:j|_1

Writers are query and key, value, or up and gate, shape (H d, D); readers the output or down
projection, shape (D, H d). Queries and keys are read by the softmax, which has no weights.

Publication: Li et al., Pruning Filters for Efficient ConvNets, 2017 (arXiv 1608.08710), the L1
norm of a filter, extended to the whole group that a channel takes away as in Fang et al.,
DepGraph, 2023 (arXiv 2301.12900).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimdiff.sites import Site, free_sites

from .channels import slabs, slim_by_scores_
from .moments import Moments

__all__ = ["scores", "slim_"]


def scores(model: nn.Module, site: Site) -> Tensor:
    """L1 norm of every channel's weights, shape (H, width)."""
    norms = [slab.double().abs().sum(1) for slab in slabs(model, site)]
    return torch.stack(norms).sum(0).view(site.heads, site.width)


def slim_(
    model: nn.Module,
    sites: Sequence[Site],
    moments: Moments,
    share: float,
    generator: torch.Generator,
) -> int:
    """Keep the channels of largest norm; returns the parameters left. Sees no moments."""
    found = {site.name: scores(model, site) for site in free_sites(sites)}
    return slim_by_scores_(model, sites, found, share)
