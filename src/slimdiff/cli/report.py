"""``slimdiff report``: makes the page of a report again."""

from __future__ import annotations

from pathlib import Path

import click

from ..page import find_report, write_page
from .display import say
from .options import PATH

__all__ = ["report"]


@click.command()
@click.argument("folder", type=PATH)
def report(folder: Path) -> None:
    """Make report.html again from the figures and pictures in FOLDER or FOLDER/report.

    Example: slimdiff report emoji-slim
    """
    say(f"Report in {write_page(find_report(folder))}")
