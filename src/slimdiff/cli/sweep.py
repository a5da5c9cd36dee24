"""``slimdiff sweep``: one calibration, many budgets."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from ..budget import Budget
from ..errors import SlimdiffError
from ..files import refuse_existing
from ..prompts import read_prompts, split
from ..statistics import Statistics
from ..sweep import Point, clear, figure, require_matplotlib
from ..sweep import sweep as run_sweep
from .budgeting import Budgeting, budget_options
from .calibrating import pool_of
from .display import out, say
from .opening import Opening, model_options
from .options import PATH, force_option

__all__ = ["sweep"]


@click.command()
@click.argument("stats", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for points and figure.")
@budget_options
@click.option("--prompts", type=PATH, help="Prompt pool; its last tenth is compared on.")
@click.option("--eval-prompts", type=PATH, help="Prompts to compare on, one a line.")
@click.option(
    "--num-eval", type=click.IntRange(1), default=8, show_default=True, help="How many of them."
)
@model_options
@force_option
def sweep(
    stats: Path,
    output: Path,
    prompts: Path | None,
    eval_prompts: Path | None,
    num_eval: int,
    force: bool,
    budgeting: Budgeting,
    opening: Opening,
) -> None:
    """Slim the model that STATS are of to several budgets and show error against cost.

    One of the budgets takes several amounts, separated by commas. A sweep that was interrupted
    goes on where it stopped.

    Example: slimdiff sweep emoji-statistics --latency 0.95,0.9,0.85 -o sweep
    """
    require_matplotlib()
    budgets = _budgets(budgeting)
    if not (output / "points").is_dir():
        refuse_existing(output, force)
    elif force:
        clear(output)
    found = Statistics.load(stats)
    held_out = read_prompts(eval_prompts) if eval_prompts else None
    pool = [] if held_out and not prompts else pool_of(found.header.source.name, prompts)
    _, chosen = split(pool, 1, held_out)
    pipe = opening.open_source(found)
    options = budgeting.allocation()
    points = run_sweep(pipe, found, budgets, chosen[:num_eval], output, **options)
    figure(points, output / "sweep.png")
    _show(points)
    say(f"Points and plans in {output}, figure in {output / 'sweep.png'}")


def _budgets(budgeting: Budgeting) -> list[Budget]:
    """One budget for each amount of the list."""
    asked = budgeting.asked()
    several = [name for name, text in asked.items() if "," in text]
    if len(several) != 1:
        raise SlimdiffError(
            "A sweep needs one budget with several amounts, such as --latency 0.9,0.8,0.7; got "
            f"{len(several)}. The other budgets take one amount each."
        )
    (name,) = several
    amounts = dict.fromkeys(text.strip() for text in asked[name].split(","))
    return [Budget(**{**asked, name: amount}) for amount in amounts]


def _show(points: list[Point]) -> None:
    table = Table("asked", "time a step", "parameters", "error", title="Sweep")
    for point in points:
        figures = f"{point.time:.1%}", f"{point.params:.1%}", f"{point.error:.2e}"
        table.add_row(point.name, *figures)
    out.print(table)
