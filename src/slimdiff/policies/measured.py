"""Spend the budget where it buys the most accuracy.

Minimises the sum of predicted errors under ceilings ``b_k`` on the sums of costs. With a price
``p_k`` for each unit, an option costs ``sum_k p_k c_k``, and greedy descent along each group's
lower convex hull of (cost, error) solves the Lagrangian relaxation: each move takes the cheapest
error per cost saved, until every ceiling holds. One ceiling needs no prices; several are priced
in proportion to how tight they prove to be, in a few rounds that start from equal prices and
from each unit alone.

The last move may save more than was needed; the slack is spent on the single upgrades that win
the most, as long as any fits. The same spending starts from the uniform choice too and the best
result counts, so this is never worse than uniform, also where curves are not convex.

Ours; the paper's allocation (ARA) is spectral. Ties are broken by group name.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence

from .options import Costs, Group, Option, fits, total
from .uniform import uniform

__all__ = ["measured"]

_ROUNDS = 8
_STEEP = 4
"""How strongly a ceiling's use tells on its price in the next round."""


def measured(groups: Sequence[Group], ceilings: Costs) -> list[Option]:
    """One option a group, all costs together within every ceiling if that can be reached."""
    starts = [*_priced(groups, ceilings), uniform(groups, ceilings)]
    fitting = [chosen for chosen in starts if fits(chosen, ceilings)]
    if not fitting:
        return [group.options[0] for group in groups]
    return min((_spend(groups, chosen, ceilings) for chosen in fitting), key=_error)


def _priced(groups: Sequence[Group], ceilings: Costs) -> Iterator[list[Option]]:
    """Descents under each unit's price alone, then, if there are several, under all of them."""
    for alone in range(len(ceilings)):
        yield _descend(groups, ceilings, [float(k == alone) for k in range(len(ceilings))])
    prices = equal = [1 / max(most, 1e-300) for most in ceilings]
    for _ in range(_ROUNDS if len(ceilings) > 1 else 0):
        chosen = _descend(groups, ceilings, prices)
        yield chosen
        use = [cost * each for cost, each in zip(total(chosen, ceilings), equal, strict=True)]
        most = max([*use, 1e-300])
        prices = [price * (u / most) ** _STEEP for price, u in zip(prices, use, strict=True)]


def _descend(groups: Sequence[Group], ceilings: Costs, prices: Sequence[float]) -> list[Option]:
    """Take the cheapest moves along the hulls, one by one, until every ceiling holds."""
    hulls = [_hull(group.options, prices) for group in groups]
    chosen = [hull[0] for hull in hulls]
    left = total(chosen, ceilings)
    moves = [move for i in range(len(groups)) if (move := _move(groups, hulls, i, 0, prices))]
    heapq.heapify(moves)
    while moves and any(cost > most for cost, most in zip(left, ceilings, strict=True)):
        *_, i, at = heapq.heappop(moves)
        before, chosen[i] = chosen[i], hulls[i][at]
        left = [
            cost - old + new
            for cost, old, new in zip(left, before.costs, chosen[i].costs, strict=True)
        ]
        if move := _move(groups, hulls, i, at, prices):
            heapq.heappush(moves, move)
    return chosen


def _hull(options: Sequence[Option], prices: Sequence[float]) -> list[Option]:
    """Lower convex hull of (cost, error), from the whole group down."""
    hull: list[Option] = []
    for option in reversed(options):
        while hull and option.error <= hull[-1].error and len(hull) > 1:
            hull.pop()
        while len(hull) > 1 and _rate(hull[-2], hull[-1], prices) >= _rate(
            hull[-2], option, prices
        ):
            hull.pop()
        hull.append(option)
    return hull


def _rate(wide: Option, narrow: Option, prices: Sequence[float]) -> float:
    """Error that one saved unit of cost takes between two options."""
    saved = sum(p * (a - b) for p, a, b in zip(prices, wide.costs, narrow.costs, strict=True))
    return (narrow.error - wide.error) / saved if saved > 0 else math.inf


def _move(
    groups: Sequence[Group],
    hulls: Sequence[Sequence[Option]],
    i: int,
    at: int,
    prices: Sequence[float],
) -> tuple[float, str, int, int] | None:
    """The next step down hull ``i``: its rate, the group's name, the hull and the place."""
    if at + 1 >= len(hulls[i]):
        return None
    return _rate(hulls[i][at], hulls[i][at + 1], prices), groups[i].name, i, at + 1


def _spend(groups: Sequence[Group], chosen: list[Option], ceilings: Costs) -> list[Option]:
    """Upgrade single groups while an upgrade fits under every ceiling, best first."""
    while True:
        left = [m - c for m, c in zip(ceilings, total(chosen, ceilings), strict=True)]
        upgrades = [
            (chosen[i].error - option.error, sum(option.costs) - sum(chosen[i].costs), i, option)
            for i, group in enumerate(groups)
            for option in group.options
            if option.error < chosen[i].error and _affordable(chosen[i], option, left)
        ]
        if not upgrades:
            return chosen
        *_, i, option = min(upgrades, key=lambda u: (-u[0], u[1], groups[u[2]].name))
        chosen[i] = option


def _affordable(now: Option, then: Option, left: Sequence[float]) -> bool:
    return all(b - a <= room for a, b, room in zip(now.costs, then.costs, left, strict=True))


def _error(chosen: Sequence[Option]) -> float:
    """Sum of the errors, rounded once, so that the order of the groups does not show."""
    return math.fsum(option.error for option in chosen)
