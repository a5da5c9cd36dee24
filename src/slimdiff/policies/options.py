"""What a policy chooses from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Group", "Option", "Policy"]


@dataclass(frozen=True)
class Option:
    """One setting of a group: widths by site, parameters, predicted error, share of the width."""

    widths: Mapping[str, int]
    parameters: int
    error: float
    share: float


@dataclass(frozen=True)
class Group:
    """Sites that shrink together; options in the order of their width, the last one whole."""

    name: str
    options: tuple[Option, ...]


Policy = Callable[[Sequence[Group], int], list[Option]]
"""Groups and the most parameters they may have together -> one option a group."""
