"""Parameter accounting: how wide everything may stay so that a share of the pool is kept.

The pool is that of :func:`slimdiff.sites.pool_parameters`: weights and biases of all Linears of
the unlocked sites. Biases of output and down projections never shrink.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from slimdiff.sites import Site, free_sites, pool_parameters, reader_biases

__all__ = ["Width", "parameters_left", "shared_out", "spendable", "used"]


@dataclass(frozen=True)
class Width:
    """Something that can be narrowed: its dense width and the parameters of one unit of it."""

    full: float
    cost: int


def spendable(sites: Sequence[Site], share: float) -> int:
    """Parameters that may remain in what shrinks when ``share`` of the pool is kept."""
    return int(share * pool_parameters(sites) + 1e-9) - reader_biases(free_sites(sites))


def shared_out(
    widths: Mapping[str, Width], limit: int, worth: Mapping[str, float] | None = None
) -> dict[str, int]:
    """One common share of every width, whole units, at most ``limit`` parameters in all.

    Widths are rounded down and what is left goes to the largest remainders, one unit each;
    among equal remainders to the greatest ``worth``.
    """
    worth = worth or {}
    total = sum(width.full * width.cost for width in widths.values())
    share = min(1.0, limit / max(1.0, total))
    exact = {name: share * width.full for name, width in widths.items()}
    found = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    slack = limit - used(widths, found)
    rest = {name: round(exact[name] - found[name], 9) for name in widths}
    for name in sorted(widths, key=lambda n: (-rest[n], -worth.get(n, 0.0), n)):
        if rest[name] > 0 and widths[name].cost <= slack and found[name] + 1 <= widths[name].full:
            found[name] += 1
            slack -= widths[name].cost
    return found


def used(widths: Mapping[str, Width], found: Mapping[str, int]) -> int:
    """Parameters at the widths ``found``."""
    return sum(found[name] * width.cost for name, width in widths.items())


def parameters_left(model: nn.Module, sites: Sequence[Site], kept: int) -> int:
    """Parameters of ``model`` when ``kept`` remain in what shrinks."""
    whole = sum(parameter.numel() for parameter in model.parameters())
    return whole - pool_parameters(sites) + reader_biases(free_sites(sites)) + kept
