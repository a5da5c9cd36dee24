"""The widths that sites may take, and which sites take theirs together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

from .errors import SlimdiffError
from .policies.shapes import Block
from .sites import Site, free_sites

__all__ = ["Grid", "blocks", "tied"]

_FEW = 16
"""Most widths of one site where time counts: kernels and compilers like few distinct shapes."""


class Grid:
    """The widths that sites may take: multiples of ``multiple``, or whole.

    Where time counts (``timed``), the step is so many multiples that a site has a few widths only.
    """

    def __init__(
        self,
        multiple: int,
        only: tuple[str, ...] = (),
        skip: tuple[str, ...] = (),
        *,
        timed: bool = False,
    ) -> None:
        if multiple < 1:
            raise SlimdiffError(f"multiple={multiple} is out of range; expected 1 or more.")
        self.multiple, self.only, self.skip, self.timed = multiple, only, skip, timed

    def movable(self, site: Site) -> bool:
        """Whether the patterns let ``site`` shrink."""
        chosen = not self.only or any(fnmatch(site.name, p) for p in self.only)
        return chosen and not any(fnmatch(site.name, p) for p in self.skip)

    def widths(self, members: Sequence[Site]) -> list[dict[str, int]]:
        """Width settings of sites that shrink together, ascending, the last one whole."""
        if not all(self.movable(site) for site in members):
            # A pattern that names one of two tied sites frees only that one from the tie.
            moving = [site for site in members if self.movable(site)]
            rest = {site.name: site.width for site in members if not self.movable(site)}
            return [ws | rest for ws in self.widths(moving)] if moving else [rest]
        full = members[0].width
        step = self.multiple * (-(-full // (_FEW * self.multiple)) if self.timed else 1)
        return [{site.name: w for site in members} for w in [*range(step, full, step), full]]


def tied(sites: Iterable[Site]) -> list[tuple[str, list[Site]]]:
    """Unlocked sites in groups that shrink together: those of one module and one width."""
    groups: dict[tuple[str, int], list[Site]] = {}
    for site in free_sites(sites):
        groups.setdefault((site.module, site.width), []).append(site)
    return [(module, members) for (module, _), members in groups.items()]


def blocks(together: Sequence[tuple[str, Sequence[Site]]], grid: Grid) -> list[Block]:
    """The repeated blocks that the groups of :func:`tied` belong to, by their place in it.

    A block's name ends at the last number in a module's name: `transformer_blocks.3` of
    `transformer_blocks.3.attn1`.
    """
    found: dict[str, list[int]] = {}
    for i, (module, _) in enumerate(together):
        number = re.match(r"(.*\.\d+)(\.|$)", module)
        found.setdefault(number[1] if number else module, []).append(i)
    return [
        Block(
            tuple(together[i][0].removeprefix(name) for i in members),
            tuple(_shape(together[i][1], grid) for i in members),
            tuple(members),
        )
        for name, members in found.items()
    ]


def _shape(members: Sequence[Site], grid: Grid) -> tuple[object, ...]:
    """What must agree for modules to be alike: sizes of all slabs, and the choice of widths."""
    slabs = [
        (s.kind, s.heads, s.width, *((p.role, p.size, p.across, p.bias) for p in s.parts))
        for s in members
    ]
    return *slabs, tuple(tuple(widths.values()) for widths in grid.widths(members))
