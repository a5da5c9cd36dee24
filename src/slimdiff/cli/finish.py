"""``slimdiff finish``: works out what follows from merged sums."""

from __future__ import annotations

from pathlib import Path

import click

from ..calibration import finish as run_finish
from ..locking import exclusive
from ..statistics import Statistics
from .calibrating import method_option
from .display import out
from .opening import Opening, model_options
from .options import PATH

__all__ = ["finish"]


@click.command()
@click.argument("model")
@click.argument("stats", type=PATH)
@method_option
@model_options
def finish(model: str, stats: Path, method: str, opening: Opening) -> None:
    """Work out bases, error curves and gains of the sums in STATS, after a merge.

    Example: slimdiff finish emoji stats
    """
    found = Statistics.load(stats)
    pipe = opening.open(model, found.header.source.dtype)
    with exclusive(stats):
        found = run_finish(pipe, found, method)
        found.save(stats)
    out.print(str(found), highlight=False, soft_wrap=True)
