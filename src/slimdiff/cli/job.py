"""``slimdiff slim``: the whole job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..calibration import calibrate as run_calibrate
from ..classes import suited_pool
from ..errors import SlimdiffError
from ..estimate import estimate
from ..files import new_folder, refuse_existing
from ..locking import remove_idle
from ..prompts import read_prompts, split
from ..recipe import refuse_unreachable
from ..recipe import slim as run_slim
from ..store import statistics_beside, write_into
from ..team import joined
from .budgeting import Budgeting, budget_options
from .calibrating import (
    calibration_options,
    max_moment_option,
    method_option,
    pool_of,
    prompt_options,
    rounds_option,
    save_every_option,
    weights_option,
)
from .display import report_table, say, what_remains
from .drawing import sampling_from
from .opening import Opening, model_options
from .options import PATH, force_option

__all__ = ["slim"]

DEFAULT_POOL = "0.6"


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the slim pipeline.")
@budget_options
@prompt_options
@click.option("--eval-prompts", type=PATH, help="Prompts to compare on, one a line.")
@click.option("--statistics", type=PATH, help="Where to keep (or find) the calibration.")
@method_option
@weights_option
@rounds_option
@calibration_options
@model_options
@click.option("--dry-run", is_flag=True, help="Print predicted time and memory, then stop.")
@save_every_option
@max_moment_option
@force_option
def slim(
    model: str,
    output: Path,
    prompts: Path | None,
    num_prompts: int,
    eval_prompts: Path | None,
    statistics: Path | None,
    method: str,
    timestep_weights: str,
    rounds: int,
    dry_run: bool,
    save_every: float,
    max_moment_mib: float | None,
    force: bool,
    budgeting: Budgeting,
    drawing: dict[str, Any],
    opening: Opening,
) -> None:
    """Slim MODEL and show what it cost; without a budget 60 % of the pool stays.

    MODEL is 'emoji', a pipeline folder, a .safetensors checkpoint or a hub id.

    Example: slimdiff slim emoji --pool 0.6 -o emoji-slim
    """
    budget = budgeting.budget(DEFAULT_POOL)
    refuse_existing(output, force)
    pool = pool_of(model, prompts)
    held_out = read_prompts(eval_prompts) if eval_prompts else None
    split(pool, num_prompts, held_out)  # refuses before the model is read
    sampling = sampling_from(model, drawing, {})
    pipe = opening.open(model)
    pool = pool if prompts else suited_pool(pipe, pool)
    calibration, _ = split(pool, num_prompts, held_out)
    refuse_unreachable(pipe, budget, sampling, **budgeting.allocation())
    if dry_run:
        say("Dry run; nothing is written.")
        guess = estimate(
            pipe, calibration[0], len(calibration), sampling, max_moment_mib=max_moment_mib
        )
        click.echo(guess)
        return
    named = statistics is not None
    statistics = statistics or statistics_beside(output)
    _refuse_nested(output, statistics)
    gathering: dict[str, Any] = {
        "sampling": sampling,
        "name": model,
        "method": method,
        "timestep_weights": timestep_weights,
        "save_every": save_every,
        "max_moment_mib": max_moment_mib,
    }
    say(f"Calibrating on {len(calibration)} prompts; kept in {statistics}")
    try:
        with joined() as team:
            if force and not named and statistics.exists() and team.leads:
                refuse_existing(statistics, force)
                remove_idle(statistics)
            team.wait()
            if team.size > 1:
                run_calibrate(pipe, calibration, folder=statistics, **gathering)
        if not team.leads:
            return
        slim_pipe, report = run_slim(
            pipe,
            pool,
            budget,
            num_prompts=num_prompts,
            eval_prompts=held_out,
            statistics=statistics,
            rounds=rounds,
            **gathering,
            **budgeting.allocation(),
        )
        with new_folder(output, force=force) as work:
            write_into(slim_pipe, work, f"{report}.\n\n![](report/before_after.png)")
            report.save(work / "report")
    except KeyboardInterrupt:
        say(f"{output} was not written. {what_remains(statistics)}")
        raise
    report_table(report)
    say(f"Slim pipeline in {output}; look at {output / 'report' / 'report.html'}")


def _refuse_nested(output: Path, statistics: Path) -> None:
    first, second = output.resolve(), statistics.resolve()
    if first == second or first in second.parents or second in first.parents:
        raise SlimdiffError(
            f"Output '{output}' and statistics '{statistics}' lie in one another; expected two "
            "separate folders. Change -o or --statistics."
        )
