"""Spend parameters where one buys the most accuracy.

Minimises the sum of predicted errors under a ceiling on the sum of parameters. Greedy descent
along each group's lower convex hull of (parameters, error) solves the Lagrangian relaxation: each
move takes the cheapest error per parameter saved. The last move may save more than was needed;
the slack is spent on the single upgrades that win the most, as long as any fits. The same
spending starts from the uniform choice too and the better result counts, so this is never worse
than uniform, also where curves are not convex.

Ours; the paper's allocation (ARA) is spectral. Ties are broken by group name.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from .options import Group, Option
from .uniform import uniform

__all__ = ["measured"]


def measured(groups: Sequence[Group], ceiling: int) -> list[Option]:
    """One option a group, total parameters at most ``ceiling`` if that can be reached."""
    starts = _descend(groups, ceiling), uniform(groups, ceiling)
    return min((_spend(groups, chosen, ceiling) for chosen in starts), key=_error)


def _descend(groups: Sequence[Group], ceiling: int) -> list[Option]:
    """Take the cheapest moves along the hulls, one by one, until the ceiling holds."""
    hulls = [_hull(group.options) for group in groups]
    place = [0] * len(groups)
    total = sum(hull[0].parameters for hull in hulls)
    moves = [move for i in range(len(groups)) if (move := _move(groups, hulls, i, 0))]
    heapq.heapify(moves)
    while total > ceiling and moves:
        *_, i = heapq.heappop(moves)
        before = hulls[i][place[i]]
        place[i] += 1
        total -= before.parameters - hulls[i][place[i]].parameters
        if move := _move(groups, hulls, i, place[i]):
            heapq.heappush(moves, move)
    return [hull[at] for hull, at in zip(hulls, place, strict=True)]


def _hull(options: Sequence[Option]) -> list[Option]:
    """Lower convex hull of (parameters, error), from the whole group down."""
    hull: list[Option] = []
    for option in reversed(options):
        while hull and option.error <= hull[-1].error and len(hull) > 1:
            hull.pop()
        while len(hull) > 1 and _rate(hull[-2], hull[-1]) >= _rate(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _rate(wide: Option, narrow: Option) -> float:
    """Error that one saved parameter costs between two options."""
    return (narrow.error - wide.error) / max(1, wide.parameters - narrow.parameters)


def _move(
    groups: Sequence[Group], hulls: Sequence[Sequence[Option]], i: int, at: int
) -> tuple[float, str, int] | None:
    if at + 1 >= len(hulls[i]):
        return None
    return _rate(hulls[i][at], hulls[i][at + 1]), groups[i].name, i


def _spend(groups: Sequence[Group], chosen: list[Option], ceiling: int) -> list[Option]:
    """Upgrade single groups while an upgrade fits under ``ceiling``, best first."""
    slack = ceiling - sum(option.parameters for option in chosen)
    while True:
        upgrades = [
            (chosen[i].error - option.error, option.parameters - chosen[i].parameters, i, option)
            for i, group in enumerate(groups)
            for option in group.options
            if 0 < option.parameters - chosen[i].parameters <= slack
            and option.error < chosen[i].error
        ]
        if not upgrades:
            return chosen
        _, cost, i, option = min(upgrades, key=lambda u: (-u[0], u[1], groups[u[2]].name))
        chosen[i], slack = option, slack - cost


def _error(chosen: Sequence[Option]) -> float:
    """Sum of the errors, rounded once, so that the order of the groups does not show."""
    return math.fsum(option.error for option in chosen)
