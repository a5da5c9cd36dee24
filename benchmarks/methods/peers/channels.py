"""Channels of a site: which there are, and how a dense denoiser goes on without some of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slimdiff.sites import Part, Site, free_sites

from .pool import Width, parameters_left, shared_out, spendable, used

__all__ = ["channel_widths", "keep_channels_", "linear_of", "slabs", "slim_by_scores_"]


def linear_of(model: nn.Module, part: Part) -> nn.Linear:
    """The Linear that ``part`` is a slab of."""
    linear = model.get_submodule(part.linear)
    assert isinstance(linear, nn.Linear), f"{part.linear} is {type(linear).__name__}"
    return linear


def slabs(model: nn.Module, site: Site) -> list[Tensor]:
    """Weights of a site, one matrix a part, shape (H width, across): one row a channel."""
    found = []
    for part in site.parts:
        weight = linear_of(model, part).weight.detach()
        rows = slice(part.start, part.start + part.size)
        found.append(weight[:, rows].T if part.reads else weight[rows])
    return found


def channel_widths(sites: Sequence[Site]) -> dict[str, Width]:
    """Width per head of every unlocked site."""
    return {s.name: Width(s.width, s.parameters(1)) for s in free_sites(sites)}


@torch.no_grad()
def keep_channels_(model: nn.Module, site: Site, kept: Tensor) -> None:
    """Zero all channels of ``site`` but ``kept``, indices into 0..H width - 1, in place.

    A channel of zeros in every part says nothing, as one that was cut out; the softmax scale stays
    the dense one.
    """
    gone = torch.ones(site.heads * site.width, dtype=torch.bool, device=kept.device)
    gone[kept] = False
    for part in site.parts:
        linear = linear_of(model, part)
        places = part.start + gone.nonzero().squeeze(1)
        if part.reads:
            linear.weight[:, places] = 0
        else:
            linear.weight[places] = 0
            if linear.bias is not None:
                linear.bias[places] = 0


def slim_by_scores_(
    model: nn.Module, sites: Sequence[Site], scores: dict[str, Tensor], share: float
) -> int:
    """Keep the best channels of each head of each site, one common share of the width.

    ``scores``: site -> shape (H, width). Returns the parameters left.
    """
    widths = channel_widths(sites)
    found = shared_out(widths, spendable(sites, share))
    for site in free_sites(sites):
        best = scores[site.name].topk(found[site.name], dim=1).indices
        heads = torch.arange(site.heads, device=best.device)[:, None]
        keep_channels_(model, site, (heads * site.width + best).flatten())
    return parameters_left(model, sites, used(widths, found))
