"""What can be cut of one published model, counted on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slimdiff import families
from slimdiff.allocation import least
from slimdiff.cost import multiply_adds
from slimdiff.gains import Call
from slimdiff.grid import Grid, tied
from slimdiff.policies import POLICIES, Group, Option
from slimdiff.prices import PriceList, fixed, price_lists
from slimdiff.recording import moment_mib
from slimdiff.sites import Site, free_sites, pool_parameters

from .published import Published

__all__ = ["Figures", "figures", "uniform_widths"]

_GRID = Grid(8)


@dataclass(frozen=True)
class Figures:
    """Counts of one model; ``slim`` is it with ``pool`` of its pool kept at one common share.

    ``locked`` are the parameters of sites that must stay whole, ``moments`` the MiB of all float64
    sums of a calibration, ``widest`` those of the largest site.
    """

    free: int
    kept_whole: int
    parameters: int
    pool: int
    locked: int
    macs: int
    slim_parameters: int
    slim_macs: int
    least: int
    moments: float
    widest: float


def figures(model: Published, pool: float = 0.6) -> Figures:
    """Build, count, cut uniformly to ``pool`` of the pool, count again."""
    network: Any = model.build()
    sites = families.find(network).sites(network)
    call = Call((), model.call(), torch.empty(0))
    parameters = network.num_parameters()
    prices = price_lists(parameters, sites, "float16")
    widths = uniform_widths(prices["pool"], sites, pool)
    free = free_sites(sites)
    removed = sum(site.parameters() - site.parameters(widths[site.name]) for site in free)
    return Figures(
        free=len(free),
        kept_whole=len(sites) - len(free),
        parameters=parameters,
        pool=pool_parameters(sites),
        locked=sum(site.parameters() for site in sites if site.locked is not None),
        macs=multiply_adds(network, call),
        slim_parameters=parameters - removed,
        slim_macs=multiply_adds(network, call, widths),
        least=round(least(prices["params"], sites, _GRID)),
        moments=moment_mib(sites),
        widest=max(moment_mib([site]) for site in free),
    )


def uniform_widths(prices: PriceList, sites: Sequence[Site], pool: float) -> dict[str, int]:
    """Width of every free site at the largest common share that fits."""
    together = tied(sites)
    groups = [
        Group(name, tuple(_option(prices, members, widths) for widths in _GRID.widths(members)))
        for name, members in together
    ]
    room = pool * prices.total - fixed(prices, [members for _, members in together])
    chosen = POLICIES["uniform"](groups, (room,))
    return {name: width for option in chosen for name, width in option.widths.items()}


def _option(prices: PriceList, members: Sequence[Site], widths: dict[str, int]) -> Option:
    share = min(widths[site.name] / site.width for site in members)
    return Option(widths, (prices.of(members, widths),), 0.0, share)
