"""The steps of the job, one command each: calibrate, plan, apply, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..allocation import allocate
from ..calibration import calibrate as run_calibrate
from ..classes import suited_pool
from ..compression import compress_, plan_of
from ..estimate import estimate
from ..feedback import repair_
from ..files import new_folder, refuse_existing
from ..locking import remove_idle
from ..plan import Plan
from ..prompts import part_of, read_prompts, split
from ..recipe import copy_pipeline, decide
from ..report import compare as run_compare
from ..statistics import Statistics
from ..store import PLAN_FILE, require_slim, write_into
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
from .display import out, plan_table, report_table, say, what_remains
from .drawing import sampling_from, sampling_options
from .opening import Opening, model_options
from .options import PATH, force_option

__all__ = ["apply", "calibrate", "compare", "plan"]


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the statistics.")
@prompt_options
@click.option("--eval-prompts", type=PATH, help="What compare will use; all --prompts calibrate.")
@method_option
@weights_option
@calibration_options
@model_options
@click.option("--dry-run", is_flag=True, help="Print predicted time and memory, then stop.")
@click.option("--resume", is_flag=True, help="Take what is there, also if it is complete.")
@click.option("--part", metavar="K/N", help="Only the K-th of N parts of the prompts, to merge.")
@save_every_option
@max_moment_option
@force_option
def calibrate(
    model: str,
    output: Path,
    prompts: Path | None,
    num_prompts: int,
    eval_prompts: Path | None,
    method: str,
    timestep_weights: str,
    dry_run: bool,
    resume: bool,
    part: str | None,
    save_every: float,
    max_moment_mib: float | None,
    force: bool,
    drawing: dict[str, Any],
    opening: Opening,
) -> None:
    """Watch MODEL denoise and keep the statistics that every budget needs.

    A calibration that was interrupted goes on where it stopped. Under torchrun or accelerate
    launch the processes share the prompts out.

    Example: slimdiff calibrate emoji --num-prompts 256 -o emoji-statistics
    """
    refuse_existing(output, force or _begun(output) or (resume and Statistics.exists(output)))
    held_out = read_prompts(eval_prompts) if eval_prompts else None
    pool = pool_of(model, prompts)
    part_of(split(pool, num_prompts, held_out)[0], part)  # refuses before the model is read
    sampling = sampling_from(model, drawing, {})
    pipe = opening.open(model)
    chosen, _ = split(pool if prompts else suited_pool(pipe, pool), num_prompts, held_out)
    start, chosen = part_of(chosen, part)
    if dry_run:
        say("Dry run; nothing is written.")
        guess = estimate(pipe, chosen[0], len(chosen), sampling, max_moment_mib=max_moment_mib)
        click.echo(guess)
        return
    settings: dict[str, Any] = {"sampling": sampling, "name": model, "method": method}
    settings |= {"timestep_weights": timestep_weights, "save_every": save_every, "start": start}
    settings["max_moment_mib"] = max_moment_mib
    with joined() as team:
        if force and output.exists() and team.leads:
            remove_idle(output)
        team.wait()
        try:
            stats = run_calibrate(pipe, chosen, **settings, folder=output)
        except KeyboardInterrupt:
            say(what_remains(output))
            raise
        if team.leads:
            out.print(str(stats), highlight=False, soft_wrap=True)


def _begun(folder: Path) -> bool:
    """Whether a calibration that has not ended lies in ``folder``."""
    return folder.is_dir() and not (Statistics.exists(folder) and Statistics.load(folder).complete)


@click.command()
@click.argument("stats", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="File for the plan (JSON).")
@budget_options
@model_options
@force_option
def plan(stats: Path, output: Path, force: bool, budgeting: Budgeting, opening: Opening) -> None:
    """Share out a budget over the sites of STATS.

    No model is needed, but for --latency, which times the model that STATS are of.

    Example: slimdiff plan emoji-statistics --params 0.8 -o plan.json
    """
    refuse_existing(output, force)
    statistics, budget = Statistics.load(stats), budgeting.budget()
    if budget.latency is None:
        found = allocate(statistics, budget, **budgeting.allocation())
    else:
        pipe = opening.open_source(statistics)
        found, _ = decide(pipe, statistics, budget, **budgeting.allocation())
    found.save(output)
    plan_table(found)
    say("Predicted from each site alone; slimdiff slim, which has the model, measures the sum.")


@click.command()
@click.argument("model")
@click.argument("stats", type=PATH)
@click.argument("plan_file", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the slim pipeline.")
@rounds_option
@model_options
@force_option
def apply(
    model: str,
    stats: Path,
    plan_file: Path,
    output: Path,
    rounds: int,
    force: bool,
    opening: Opening,
) -> None:
    """Cut MODEL to the widths of PLAN_FILE, which may have been edited by hand.

    Example: slimdiff apply emoji emoji-statistics plan.json -o emoji-slim
    """
    refuse_existing(output, force)
    wanted, found = Plan.load(plan_file), Statistics.load(stats)
    dense = opening.open(model, found.header.source.dtype)
    pipe = copy_pipeline(dense) if rounds else dense
    compress_(pipe, found, wanted)
    if rounds:
        repair_(dense, pipe, found, rounds)
    with new_folder(output, force=force) as work:
        write_into(pipe, work)
    out.print(str(plan_of(pipe)).splitlines()[-1], highlight=False, soft_wrap=True)
    say(f"Slim pipeline in {output}")


@click.command()
@click.argument("dense")
@click.argument("slim", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the report.")
@click.option("--prompts", type=PATH, help="Prompt pool; its last tenth is compared on.")
@click.option("--eval-prompts", type=PATH, help="Prompts to compare on, one a line.")
@click.option("--statistics", type=PATH, help="Show the error curves of this calibration too.")
@sampling_options
@model_options
@force_option
def compare(
    dense: str,
    slim: Path,
    output: Path,
    prompts: Path | None,
    eval_prompts: Path | None,
    statistics: Path | None,
    force: bool,
    drawing: dict[str, Any],
    opening: Opening,
) -> None:
    """Draw the same prompts with DENSE and SLIM and report what slimming cost.

    Example: slimdiff compare emoji emoji-slim -o report
    """
    refuse_existing(output, force)
    require_slim(slim)
    provenance = Plan.load(slim / PLAN_FILE).calibration
    stats = Statistics.load(statistics) if statistics else None
    held_out = read_prompts(eval_prompts) if eval_prompts else None
    pool = [] if held_out and not prompts else pool_of(dense, prompts)
    split(pool, 1, held_out)  # refuses before the model is read
    sampling = sampling_from(dense, drawing, dict(provenance.get("sampling", {})))
    dense_pipe = opening.open(dense, provenance.get("dtype"))
    pool = pool if prompts or not pool else suited_pool(dense_pipe, pool)
    _, chosen = split(pool, 1, held_out)
    slim_pipe = opening.open_slim(slim, dense_pipe)
    report = run_compare(dense_pipe, slim_pipe, chosen, sampling=sampling, statistics=stats)
    with new_folder(output, force=force) as work:
        report.save(work)
    report_table(report)
    say(f"Report in {output / 'report.html'}")
