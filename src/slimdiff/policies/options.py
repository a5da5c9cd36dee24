"""What a policy chooses from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Costs", "Group", "Option", "Policy", "fits", "total"]

_ROUNDING = 1e-11

Costs = tuple[float, ...]
"""One figure for each ceiling, in the ceilings' order and units."""


@dataclass(frozen=True)
class Option:
    """One setting of a group: widths by site, costs, predicted error, share of the width."""

    widths: Mapping[str, int]
    costs: Costs
    error: float
    share: float


@dataclass(frozen=True)
class Group:
    """Sites that shrink together; options in the order of their width, the last one whole.

    No option costs more than a wider one, in any unit.
    """

    name: str
    options: tuple[Option, ...]


Policy = Callable[[Sequence[Group], Costs], list[Option]]
"""Groups and the most they may cost together, in each unit -> one option a group."""


def total(chosen: Sequence[Option], ceilings: Costs) -> list[float]:
    """What the chosen options cost together, one figure a ceiling."""
    return [sum(option.costs[k] for option in chosen) for k in range(len(ceilings))]


def fits(chosen: Sequence[Option], ceilings: Costs) -> bool:
    """Whether every ceiling holds, up to the rounding of a sum of times."""
    pairs = zip(total(chosen, ceilings), ceilings, strict=True)
    return all(cost <= most + _ROUNDING * abs(most) for cost, most in pairs)
