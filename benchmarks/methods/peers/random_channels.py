"""``random``: random channels of each head and of each feed-forward stay; nothing is refitted.

The floor every method must beat. Widths: one common share of every site's width per head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from slimdiff.sites import Site, free_sites

from .channels import slim_by_scores_
from .moments import Moments

__all__ = ["slim_"]


def slim_(
    model: nn.Module,
    sites: Sequence[Site],
    moments: Moments,
    share: float,
    generator: torch.Generator,
) -> int:
    """Keep channels drawn by ``generator``; returns the parameters left. Sees no moments."""
    scores = {
        site.name: torch.rand(site.heads, site.width, generator=generator)
        for site in free_sites(sites)
    }
    return slim_by_scores_(model, sites, scores, share)
