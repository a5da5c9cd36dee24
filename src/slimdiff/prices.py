"""What widths cost, as data: one price list for each unit that a budget can be said in.

A price list knows what the dense denoiser costs and what sites cost at given widths; the rest,
convolutions and embeddings, is the difference and never shrinks. Parameters, bytes and
multiply-adds are linear in the widths; measured times are a table
(:class:`slimdiff.latency.LatencyTable`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from .sites import Site, free_sites, pool_parameters

__all__ = ["Linear", "PriceList", "fixed", "price_lists"]


class PriceList(Protocol):
    """Prices in one unit."""

    @property
    def total(self) -> float:
        """Cost of the dense denoiser."""
        ...

    def of(self, sites: Sequence[Site], widths: Mapping[str, int]) -> float:
        """Cost of sites that shrink together, at ``widths``."""
        ...


@dataclass(frozen=True)
class Linear:
    """Costs in proportion to the widths: ``per_unit``, by site, is what one unit of width costs.

    ``widest``, by module, is what one unit of the wider of its sites costs: fused attention pads
    the narrower. ``total`` is the whole denoiser's.
    """

    total: float
    per_unit: Mapping[str, float]
    widest: Mapping[str, float] = field(default_factory=dict)

    def of(self, sites: Sequence[Site], widths: Mapping[str, int]) -> float:
        own = sum(self.per_unit[site.name] * widths[site.name] for site in sites)
        shared = {site.module for site in sites} & set(self.widest)
        return own + sum(
            self.widest[module] * max(widths[s.name] for s in sites if s.module == module)
            for module in sorted(shared)
        )


def price_lists(
    parameters: int,
    sites: Sequence[Site],
    dtype: str,
    macs: PriceList | None = None,
    latency: PriceList | None = None,
) -> dict[str, PriceList]:
    """Price lists by the names of :class:`slimdiff.Budget`, as many as there are figures for.

    ``parameters``: of the dense denoiser; ``dtype``: what it is stored in, such as ``float16``.
    """
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    free = free_sites(sites)
    each = {site.name: site.parameters(1) for site in free}
    known: dict[str, PriceList | None] = {
        "params": Linear(parameters, each),
        "pool": Linear(pool_parameters(sites), each),
        "macs": macs,
        "bytes": Linear(size * parameters, {name: size * n for name, n in each.items()}),
        "latency": latency,
    }
    return {name: prices for name, prices in known.items() if prices is not None}


def fixed(prices: PriceList, groups: Sequence[Sequence[Site]]) -> float:
    """What no choice of widths for ``groups`` saves."""
    whole = (prices.of(sites, {site.name: site.width for site in sites}) for sites in groups)
    return prices.total - sum(whole)
