"""Few distinct shapes of a block, for compilers: blocks that were alike may stay alike.

A compiler builds one program a block shape and gives up after some (`torch.compile` of repeated
blocks after eight). A *block* is what repeats, such as one transformer layer; here blocks of equal
dense shape are put into sets that take their widths together. With a price p for a unit of cost, a
set C is worth

    L(C) = sum over the groups g of a block of  min_w sum_{b in C} error_bg(w) + p cost_bg(w),

and joining two sets costs L(A u B) - L(A) - L(B) >= 0. The cheapest pair is joined until few
enough sets are left (Ward's agglomeration, with this loss in place of variance). The price is the
one at which the plan without sets would make its next cut.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

from .options import Costs, Group, Option

__all__ = ["Block", "merged", "price_of", "sets_of_blocks", "shapes_of"]


@dataclass(frozen=True)
class Block:
    """What repeats: its groups in a fixed order, and what must agree for two to be alike."""

    kind: Hashable
    shape: Hashable
    groups: tuple[int, ...]


Losses = tuple[tuple[float, ...], ...]
"""For each group of a block, the priced loss of each of its options."""


def shapes_of(blocks: Sequence[Block], chosen: Sequence[Option]) -> int:
    """The most distinct shapes that blocks of one kind have when ``chosen`` is taken."""
    shapes: dict[Hashable, set[Hashable]] = {}
    for block in blocks:
        widths = tuple(tuple(chosen[i].widths.values()) for i in block.groups)
        shapes.setdefault(block.kind, set()).add((block.shape, widths))
    return max(map(len, shapes.values()), default=0)


def price_of(groups: Sequence[Group], chosen: Sequence[Option], ceilings: Costs) -> float:
    """Error that the next cut would take for a unit of cost, each cost a share of its ceiling."""
    rates = [
        (narrow.error - now.error) / saved
        for group, now in zip(groups, chosen, strict=True)
        for narrow in group.options
        if narrow.error > now.error
        and (saved := _cost(now, ceilings) - _cost(narrow, ceilings)) > 0
    ]
    return min(rates, default=0.0)


def sets_of_blocks(
    groups: Sequence[Group], blocks: Sequence[Block], most: int, price: float, ceilings: Costs
) -> list[list[Block]]:
    """Blocks in sets of one shape each, at most ``most`` a kind unless dense shapes are more."""
    sets: list[list[Block]] = []
    for kind in dict.fromkeys(block.kind for block in blocks):
        sets += _joined(groups, [b for b in blocks if b.kind == kind], most, price, ceilings)
    return sets


def merged(groups: Sequence[Group], sets: Sequence[Sequence[Block]]) -> list[Group]:
    """One group for all groups that have the same place in the blocks of a set."""
    return [
        _merge([groups[i] for i in places])
        for blocks in sets
        for places in zip(*(block.groups for block in blocks), strict=True)
    ]


def _joined(
    groups: Sequence[Group], blocks: Sequence[Block], most: int, price: float, ceilings: Costs
) -> list[list[Block]]:
    sets = {i: [block] for i, block in enumerate(blocks)}
    losses = {i: _losses(groups, block, price, ceilings) for i, block in enumerate(blocks)}

    def rise(a: int, b: int) -> float:
        return _worth(_sum(losses[a], losses[b])) - _worth(losses[a]) - _worth(losses[b])

    alike = [(a, b) for a, b in combinations(sets, 2) if blocks[a].shape == blocks[b].shape]
    rises = {pair: rise(*pair) for pair in alike}
    while len(sets) > most and rises:
        a, b = min(rises, key=lambda pair: (rises[pair], pair))
        sets[a], losses[a] = sets[a] + sets.pop(b), _sum(losses[a], losses.pop(b))
        rises = {pair: r for pair, r in rises.items() if b not in pair}
        rises |= {pair: rise(*pair) for pair in rises if a in pair}
    return list(sets.values())


def _losses(groups: Sequence[Group], block: Block, price: float, ceilings: Costs) -> Losses:
    return tuple(
        tuple(o.error + price * _cost(o, ceilings) for o in groups[i].options)
        for i in block.groups
    )


def _sum(a: Losses, b: Losses) -> Losses:
    return tuple(
        tuple(x + y for x, y in zip(ours, theirs, strict=True))
        for ours, theirs in zip(a, b, strict=True)
    )


def _worth(losses: Losses) -> float:
    return math.fsum(min(options) for options in losses)


def _cost(option: Option, ceilings: Costs) -> float:
    return sum(c / max(most, 1e-300) for c, most in zip(option.costs, ceilings, strict=True))


def _merge(groups: Sequence[Group]) -> Group:
    options = zip(*(group.options for group in groups), strict=True)
    return Group(groups[0].name, tuple(_together(each) for each in options))


def _together(options: Sequence[Option]) -> Option:
    widths = {name: width for option in options for name, width in option.widths.items()}
    costs = tuple(map(sum, zip(*(option.costs for option in options), strict=True)))
    return Option(
        widths, costs, math.fsum(o.error for o in options), min(o.share for o in options)
    )
