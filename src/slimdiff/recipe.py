"""The main path, in the order of the data flow."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from . import families
from .allocation import DEFAULT_POLICY, Grid, allocate, check_budget
from .budget import Budget
from .calibration import calibrate
from .compression import compress_
from .denoiser import component, denoiser, refuse_slim
from .feedback import repair_
from .gains import gain_calls, output_error
from .gathering import SAVE_EVERY
from .interactions import apart, with_shares
from .prompts import split
from .report import Report, compare
from .sampling import Sampling
from .statistics import Statistics

__all__ = ["copy_pipeline", "cut", "refuse_unreachable", "slim"]

_CORRECTIONS = 2


def slim(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    budget: Budget,
    *,
    num_prompts: int = 64,
    eval_prompts: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    tokens: int | None = 1024,
    method: str = "exact",
    timestep_weights: str = "uniform",
    policy: str = DEFAULT_POLICY,
    multiple: int = 8,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    rounds: int = 0,
    name: str = "",
    statistics: str | Path | None = None,
    save_every: float = SAVE_EVERY,
) -> tuple[DiffusionPipeline, Report]:
    """Slim a pipeline to ``budget`` and compare the result with it. ``pipe`` stays as it is.

    ``prompts`` is the pool: its last tenth (at least 8), or ``eval_prompts``, is held out for the
    comparison and the first ``num_prompts`` of the rest calibrate. ``statistics`` is a folder to
    keep the calibration in, or to take it from, saved every ``save_every`` seconds. ``method``
    names the closed forms and ``timestep_weights`` how much each step counts; ``rounds`` of error
    feedback follow the cut
    (:mod:`slimdiff.feedback`). Returns the slim pipeline, which shares every
    component but the denoiser with ``pipe``, and the report.

    Raises SlimdiffError, before calibrating if it can, for whatever cannot be done.
    """
    sampling = sampling or Sampling()
    refuse_unreachable(pipe, budget, multiple, only, skip)
    calibration, held_out = split(prompts, num_prompts, eval_prompts)
    stats = calibrate(
        pipe,
        calibration,
        sampling=sampling,
        tokens=tokens,
        name=name,
        method=method,
        timestep_weights=timestep_weights,
        folder=statistics,
        save_every=save_every,
    )
    options = {"policy": policy, "multiple": multiple, "only": only, "skip": skip}
    slim_pipe = cut(pipe, stats, budget, **options)
    if rounds:
        repair_(pipe, slim_pipe, stats, rounds)
    return slim_pipe, compare(pipe, slim_pipe, held_out, sampling=sampling, statistics=stats)


def cut(
    pipe: DiffusionPipeline, stats: Statistics, budget: Budget, **options: Any
) -> DiffusionPipeline:
    """A slim copy of ``pipe``; ``options`` are those of :func:`slimdiff.allocate`.

    Policy ``measured`` measures the gains anew at its first plan (:mod:`slimdiff.interactions`)
    and plans again; once more if predicted and achieved error still part. The plan that achieves
    least on the gains' prompts is kept.
    """
    calls = gain_calls(pipe, stats.header)
    tried: list[tuple[float, DiffusionPipeline]] = []
    for corrections in range(1 + _CORRECTIONS):
        plan = allocate(stats, budget, **options)
        slim_pipe = copy_pipeline(pipe)
        compress_(slim_pipe, stats, plan)
        achieved = output_error(denoiser(slim_pipe), calls)
        tried.append((achieved, slim_pipe))
        agreed = corrections > 0 and not apart(plan.predicted_error, achieved)
        if plan.policy != "measured" or not plan.removed or agreed:
            break
        if corrections < _CORRECTIONS:
            stats = with_shares(pipe, slim_pipe, stats, plan, calls)
    return min(tried, key=lambda found: found[0])[1]


def refuse_unreachable(
    pipe: DiffusionPipeline,
    budget: Budget,
    multiple: int,
    only: Sequence[str],
    skip: Sequence[str],
) -> None:
    """Raise SlimdiffError if the denoiser is unknown or cannot be cut to ``budget``."""
    model = denoiser(pipe)
    refuse_slim(model)
    sites = families.find(model).sites(model)
    grid = Grid(multiple, tuple(only), tuple(skip))
    check_budget(model.num_parameters(), sites, budget, grid)


def copy_pipeline(pipe: DiffusionPipeline) -> Any:
    """A pipeline with a copy of the denoiser that shares all other components."""
    components = dict(pipe.components)
    components[component(pipe)] = copy.deepcopy(denoiser(pipe))
    accepted = inspect.signature(type(pipe).__init__).parameters
    settings = {k: v for k, v in pipe.config.items() if k in accepted and k not in components}
    return type(pipe)(**components, **settings)
