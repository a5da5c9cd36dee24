"""``slimdiff merge``: adds statistics that were gathered apart."""

from __future__ import annotations

from pathlib import Path

import click

from ..files import new_folder, refuse_existing
from ..merging import merge as run_merge
from ..statistics import Statistics
from .display import out, say
from .options import PATH, force_option

__all__ = ["merge"]


@click.command()
@click.argument("stats", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the sum.")
@force_option
def merge(stats: tuple[Path, ...], output: Path, force: bool) -> None:
    """Add the statistics in the folders STATS, gathered on disjoint prompts of one model.

    Split the prompts with calibrate --part. Bases and gains do not add: slimdiff finish works
    them out anew from the sum.

    Example: slimdiff merge stats-a stats-b -o stats
    """
    refuse_existing(output, force)
    merged = run_merge([Statistics.load(folder) for folder in stats])
    with new_folder(output, force=force) as work:
        merged.save(work)
    out.print(str(merged), highlight=False, soft_wrap=True)
    say(f"Now: slimdiff finish MODEL {output}")
