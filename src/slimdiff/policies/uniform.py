"""The control: every group keeps the largest common share of its width that fits."""

from __future__ import annotations

from collections.abc import Sequence

from .options import Costs, Group, Option, fits

__all__ = ["uniform"]


def uniform(groups: Sequence[Group], ceilings: Costs) -> list[Option]:
    """The largest share s such that widths ``s * full``, rounded down to the grid, fit."""
    shares = sorted({option.share for group in groups for option in group.options}, reverse=True)
    for share in shares:
        chosen = [_at(group, share) for group in groups]
        if fits(chosen, ceilings):
            return chosen
    return [group.options[0] for group in groups]


def _at(group: Group, share: float) -> Option:
    fitting = [option for option in group.options if option.share <= share + 1e-12]
    return fitting[-1] if fitting else group.options[0]
