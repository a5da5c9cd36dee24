"""Finds the statistics that a slim folder was cut by, or says why there are none to use."""

from __future__ import annotations

from pathlib import Path

from diffusers import DiffusionPipeline

from ..calibration import check_statistics
from ..errors import SlimdiffError
from ..plan import Plan
from ..statistics import Statistics
from ..store import statistics_beside
from .controls import Slider

__all__ = ["find_statistics"]


def find_statistics(
    dense: DiffusionPipeline, plan: Plan, slim: Path, named: Path | None
) -> tuple[Statistics | None, str]:
    """Statistics of ``dense`` at ``named``, else beside the folder ``slim``; or why not.

    Raises SlimdiffError if those that were ``named`` cannot be used.
    """
    try:
        found = Statistics.load(named or statistics_beside(slim if slim.name else slim.resolve()))
        check_statistics(dense, found)
        Slider.over(found, plan)
    except SlimdiffError as error:
        if named:
            raise
        return None, f"{error} Statistics kept elsewhere are named by --statistics."
    return found, ""
