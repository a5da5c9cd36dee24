"""Which slim models are measured, and their errors: one JSON file a cell, so a run resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from slimdiff.files import read_json, write_json

from .bench import Bench, Cell
from .measure import errors
from .peers import PEERS
from .settings import OURS, Settings

__all__ = [
    "Results",
    "better_policy",
    "equal_rank_cells",
    "main_cells",
    "mean_error",
    "once",
    "run",
    "take_known",
    "values",
]

POLICIES = ("uniform", "ara", "measured")
PAPER_POLICIES = ("uniform", "ara")
"""Policies that may count as the paper's; ``measured`` is ours."""

Results = dict[str, dict[str, Any]]
"""Cell name -> what its file says."""


def main_cells(settings: Settings) -> list[Cell]:
    """Every method under every policy it has, at every pool, for every seed it depends on."""
    cells = []
    for seed in settings.seeds:
        for pool in settings.pools:
            for method in ("exact", "paper"):
                cells += [Cell(method, policy, pool, seed) for policy in POLICIES]
            for name, peer in PEERS.items():
                if peer.seeded or seed == settings.seeds[0]:
                    cells.append(Cell(name, "uniform", pool, seed))
                if peer.measured is not None:
                    cells.append(Cell(name, "measured", pool, seed))
    return cells


def equal_rank_cells(settings: Settings) -> list[Cell]:
    """The paper's forms at the widths that ours chose."""
    method, policy = OURS
    return [
        Cell("paper", policy, pool, seed, ranks=method)
        for seed in settings.seeds
        for pool in settings.pools
    ]


def run(bench: Bench, cells: Iterable[Cell]) -> Results:
    """Measure the cells that have no file yet; returns all of them."""
    results: Results = {}
    for cell in cells:
        path = bench.work / "cells" / f"{cell.name}.json"
        results[cell.name] = once(path, lambda cell=cell: _measure(bench, cell))
        print(f"{cell.name}: {results[cell.name]['noise_rel_mse']:.3e}", flush=True)
    return results


def take_known(bench: Bench, results: dict[str, Any]) -> None:
    """Keep the cells of another run's ``results.json`` as if they had been measured here.

    Raises SlimdiffError if that run was of another model or other settings.
    """
    bench.refuse_other(results["provenance"], "results.json")
    steps = (step["cells"] for step in results["kinds"] + results["ablation"])
    for cells in (results["cells"], results["equal_ranks"], *steps):
        for name, found in cells.items():
            once(bench.work / "cells" / f"{name}.json", lambda found=found: found)


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file says, measured and written first if there is none."""
    if not path.exists():
        write_json(path, measure())
    return read_json(path, "benchmark result")


def better_policy(results: Results, pool: float) -> str:
    """The paper's policy with the smaller mean error at ``pool``."""
    return min(PAPER_POLICIES, key=lambda policy: mean_error(results, f"paper {policy}", pool))


def mean_error(results: Results, row: str, pool: float, name: str = "noise_rel_mse") -> float:
    """Mean over seeds of one figure of one line of the tables."""
    return fmean(values(results, row, pool, name))


def values(results: Results, row: str, pool: float, name: str) -> Sequence[float]:
    """One figure of one line of the tables, seed by seed."""
    return [r[name] for r in results.values() if r["row"] == row and r["pool"] == pool]


def _measure(bench: Bench, cell: Cell) -> dict[str, Any]:
    begin = time.perf_counter()
    pipe, parameters = bench.slim(cell)
    made = time.perf_counter()
    return {
        **asdict(cell),
        "row": cell.row,
        **asdict(errors(pipe, bench.reference)),
        "predicted": bench.predicted(cell),
        "parameters": parameters,
        "pool_kept": bench.pool_kept(parameters),
        "slim_seconds": round(made - begin, 2),
    }
