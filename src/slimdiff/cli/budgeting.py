"""How small or fast a model is to be: its options and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from ..allocation import DEFAULT_POLICY, SHAPES
from ..budget import Budget
from ..policies import POLICIES
from .options import Command, gathered

__all__ = [
    "Budgeting",
    "budget_options",
]


@dataclass(frozen=True)
class Budgeting:
    """How small or fast, and by which policy."""

    params: str | None
    pool: str | None
    macs: str | None
    bytes: str | None
    latency: str | None
    policy: str
    multiple: int
    only: tuple[str, ...]
    skip: tuple[str, ...]
    shapes: int

    def budget(self, default_pool: str | None = None) -> Budget:
        """What was asked, or ``default_pool`` if nothing was."""
        return Budget(**self.asked() or {"pool": default_pool})

    def asked(self) -> dict[str, str]:
        """The amounts that were given, by name."""
        names = ("params", "pool", "macs", "bytes", "latency")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def allocation(self) -> dict[str, Any]:
        """Keyword arguments of :func:`slimdiff.allocate`."""
        wanted = ("policy", "multiple", "only", "skip", "shapes")
        return {name: getattr(self, name) for name in wanted}


def budget_options(command: Command) -> Command:
    """Budgets, --policy, --multiple, --only, --skip and --shapes, gathered as ``budgeting``."""
    amount = "a share (0.9), a count (759.5M) or a reduction (-100M)"
    options = [
        click.option("--params", help=f"Denoiser parameters to keep: {amount}."),
        click.option("--pool", help=f"Slimmable parameters to keep: {amount}."),
        click.option("--macs", help="Multiply-adds to keep, said likewise."),
        click.option("--bytes", help="Bytes of weights to keep, said likewise (1.6GB)."),
        click.option("--latency", help="Share of the time a step to keep, measured here (0.75)."),
        click.option(
            "--policy",
            type=click.Choice(list(POLICIES)),
            default=DEFAULT_POLICY,
            show_default=True,
            help="How the budget is shared out.",
        ),
        click.option(
            "--multiple", type=int, default=8, show_default=True, help="Grid of the widths."
        ),
        click.option("--only", multiple=True, metavar="PATTERN", help="Cut only these sites."),
        click.option("--skip", multiple=True, metavar="PATTERN", help="Leave these sites whole."),
        click.option(
            "--shapes",
            type=click.IntRange(1),
            default=SHAPES,
            show_default=True,
            help="Most different shapes of a repeated block; compilers like few.",
        ),
    ]
    return gathered(command, options, "budgeting", Budgeting)
