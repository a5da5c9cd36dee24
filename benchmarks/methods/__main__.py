"""``python -m benchmarks.methods``: the command line, and the order of things."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from slimdiff.errors import SlimdiffError
from slimdiff.files import read_json, write_json, write_text

from .ablation import FORMS, ablation_cells, kind_cells
from .bench import Bench, Cell
from .cells import better_policy, equal_rank_cells, main_cells, run, take_known
from .pictures import picture_scores
from .robustness import robustness
from .settings import FULL, QUICK
from .tables import Findings, markdown, plot_errors


def main(argv: list[str] | None = None) -> None:
    """Measure what has no result yet, then write results.json, table.md and pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=main.__doc__)
    parser.add_argument("--work", type=Path, help="folder for results (default: ~/.cache/...)")
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see it work")
    parser.add_argument("--known", type=Path, help="a results.json whose cells need no measuring")
    parser.add_argument("--seeds", type=int, default=0, help="the first so many only (0: all)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if importlib.util.find_spec("matplotlib") is None:
        raise SlimdiffError("matplotlib is not installed; run pip install 'matplotlib>=3.10,<4'.")
    settings = QUICK if args.quick else FULL
    if args.seeds:
        settings = replace(settings, seeds=settings.seeds[: args.seeds])
    cache = Path.home() / ".cache" / "slimdiff" / "methods"
    work = args.work or (cache / "quick" if args.quick else cache / "full")
    bench = Bench(settings, work, FORMS)
    if args.known:
        take_known(bench, read_json(args.known, "benchmark result"))
    found = measure(bench)
    write_json(work / "results.json", found)
    write_text(work / "table.md", markdown(found, settings))
    plot_errors(found["cells"], settings, work / "error.png")
    print(f"Results in {work}")


def measure(bench: Bench) -> Findings:
    """Everything, in the order of the tables."""
    settings = bench.settings
    cells = run(bench, main_cells(settings))
    equal_ranks = run(bench, equal_rank_cells(settings))
    policies = {pool: better_policy(cells, pool) for pool in settings.pools}
    return {
        "provenance": bench.provenance,
        "cells": cells,
        "equal_ranks": equal_ranks,
        "kinds": _steps(bench, kind_cells(settings)),
        "ablation": _steps(bench, ablation_cells(settings, policies[settings.detail_pool])),
        "pictures": picture_scores(bench, policies),
        "robustness": robustness(bench),
    }


def _steps(bench: Bench, steps: Sequence[tuple[str, list[Cell]]]) -> list[dict[str, Any]]:
    return [
        {"label": label, "policy": cells[0].policy, "cells": run(bench, cells)}
        for label, cells in steps
    ]


if __name__ == "__main__":
    try:
        main()
    except SlimdiffError as error:
        raise SystemExit(str(error)) from None
