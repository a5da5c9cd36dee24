"""The main path, in the order of the data flow."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from . import families
from .allocation import (
    DEFAULT_POLICY,
    SHAPES,
    allocate,
    check_budget,
    check_policy,
    grid_for,
)
from .budget import Budget
from .calibration import calibrate
from .classes import class_names
from .compression import compress_, record_plan_
from .cost import mac_prices
from .deadline import Clock, plan_in_time, start_clock
from .denoiser import component, denoiser, dtype_name, refuse_slim
from .errors import SlimdiffError
from .feedback import repair_
from .forecast import forecast
from .gains import gain_calls, output_error
from .gathering import SAVE_EVERY
from .interactions import apart, with_shares
from .placing import offload_device, place
from .plan import Plan
from .prices import price_lists
from .profiling import timed_call
from .prompts import NUM_PROMPTS, split
from .report import Report, compare
from .sampling import Sampling
from .statistics import Statistics
from .token_sampling import SHARE

__all__ = ["copy_pipeline", "cut", "decide", "refuse_unreachable", "slim"]

_CORRECTIONS = 2


def slim(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    budget: Budget,
    *,
    num_prompts: int = NUM_PROMPTS,
    eval_prompts: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    tokens: int | float | None = SHARE,
    method: str = "exact",
    timestep_weights: str = "uniform",
    policy: str = DEFAULT_POLICY,
    multiple: int = 8,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    shapes: int = SHAPES,
    rounds: int = 0,
    name: str = "",
    statistics: str | Path | None = None,
    save_every: float = SAVE_EVERY,
    max_moment_mib: float | None = None,
) -> tuple[DiffusionPipeline, Report]:
    """Slim a pipeline to ``budget`` and compare the result with it. ``pipe`` stays as it is.

    ``prompts`` is the pool: its last tenth (at least 8), or ``eval_prompts``, is held out for the
    comparison and the first ``num_prompts`` of the rest calibrate. ``statistics`` is a folder to
    keep the calibration in, or to take it from, saved every ``save_every`` seconds, with at most
    ``max_moment_mib`` of sums in memory. ``method`` names the closed forms and
    ``timestep_weights`` how much each step counts; ``rounds`` of error feedback follow the cut
    (:mod:`slimdiff.feedback`). Returns the slim pipeline, which shares every component but the
    denoiser with ``pipe``, and the report.

    Raises SlimdiffError, before calibrating if it can, for whatever cannot be done.
    """
    check_policy(policy)
    if rounds < 0:
        raise SlimdiffError(f"rounds={rounds}; expected 0 or more. Leave it out for none.")
    sampling = sampling or Sampling()
    options: dict[str, Any] = {"policy": policy, "multiple": multiple, "only": only, "skip": skip}
    options["shapes"] = shapes
    clock = refuse_unreachable(pipe, budget, sampling, **options)
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
        max_moment_mib=max_moment_mib,
    )
    slim_pipe = cut(pipe, stats, budget, clock=clock, **options)
    if rounds:
        repair_(pipe, slim_pipe, stats, rounds)
    return slim_pipe, compare(pipe, slim_pipe, held_out, sampling=sampling, statistics=stats)


def cut(
    pipe: DiffusionPipeline,
    stats: Statistics,
    budget: Budget,
    *,
    clock: Clock | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """A slim copy of ``pipe``; ``options`` are those of :func:`slimdiff.allocate`.

    Policy ``measured`` measures the gains anew at its first plan (:mod:`slimdiff.interactions`)
    and plans again; once more if predicted and achieved error still part. The plan that achieves
    least on the gains' prompts is kept, and its total measured on more (:mod:`slimdiff.forecast`).
    """
    plan, clock = decide(pipe, stats, budget, clock=clock, **options)
    slim_pipe: Any = _slim_copy(pipe, stats, plan)
    if plan.policy != "measured" or not plan.removed:
        return slim_pipe
    calls = gain_calls(pipe, stats.header)
    achieved = output_error(denoiser(slim_pipe), calls)
    found = [(achieved, plan, stats)]
    for corrections in range(_CORRECTIONS):
        if corrections and not apart(plan.predicted_error, achieved):
            break
        stats = with_shares(pipe, slim_pipe, stats, plan, calls)
        plan, clock = decide(pipe, stats, budget, clock=clock, **options)
        slim_pipe = None  # one copy of the denoiser at a time
        slim_pipe = _slim_copy(pipe, stats, plan)
        achieved = output_error(denoiser(slim_pipe), calls)
        found.append((achieved, plan, stats))
    _, best, stats = min(found, key=lambda tried: tried[0])
    if best is not plan:
        slim_pipe = None
        slim_pipe = _slim_copy(pipe, stats, best)
    record_plan_(slim_pipe, forecast(pipe, slim_pipe, stats.header, best))
    return slim_pipe


def _slim_copy(pipe: DiffusionPipeline, stats: Statistics, plan: Plan) -> DiffusionPipeline:
    slim_pipe = copy_pipeline(pipe)
    compress_(slim_pipe, stats, plan)
    return slim_pipe


def decide(
    pipe: DiffusionPipeline,
    stats: Statistics,
    budget: Budget,
    *,
    clock: Clock | None = None,
    **options: Any,
) -> tuple[Plan, Clock | None]:
    """A plan within ``budget``; where time counts it is timed, and the clock comes back corrected.

    ``options`` are those of :func:`slimdiff.allocate`.
    """
    if budget.latency is None:
        return allocate(stats, budget, **options), clock
    clock = clock or start_clock(pipe, stats.header.sampling, grid_for(budget, **options))
    return plan_in_time(stats, budget, clock, **options)


def refuse_unreachable(
    pipe: DiffusionPipeline,
    budget: Budget,
    sampling: Sampling,
    *,
    clock: Clock | None = None,
    **options: Any,
) -> Clock | None:
    """Raise SlimdiffError if the denoiser is unknown or cannot be cut to ``budget``.

    ``options`` are those of :func:`slimdiff.allocate`. Where time counts it is measured, if
    ``clock`` has not yet; returns the clock.
    """
    model = denoiser(pipe)
    refuse_slim(model)
    sites, grid = families.find(model).sites(model), grid_for(budget, **options)
    macs = None
    if budget.macs is not None:
        macs = mac_prices(model, sites, timed_call(pipe, sampling), sampling.batch_size)
    if budget.latency is not None:
        clock = clock or start_clock(pipe, sampling, grid)
    table = None if clock is None else clock.table
    dtype = dtype_name(model)
    prices = price_lists(model.num_parameters(), sites, dtype, macs, table)
    check_budget(prices, sites, budget, grid)
    return clock


def copy_pipeline(pipe: DiffusionPipeline) -> Any:
    """A pipeline with a copy of the denoiser that shares all other components."""
    offload = offload_device(pipe)
    if offload is not None:  # its hooks tie the parts together; a copy gets its own
        pipe.remove_all_hooks()
        pipe.to("cpu", silence_dtype_warnings=True)
    components = dict(pipe.components)
    components[component(pipe)] = copy.deepcopy(denoiser(pipe))
    accepted = inspect.signature(type(pipe).__init__).parameters
    settings = {k: v for k, v in pipe.config.items() if k in accepted and k not in components}
    found = type(pipe)(**components, **settings)
    if names := class_names(pipe):
        found.labels = pipe.labels  # pyright: ignore
        found.register_to_config(id2label=names)  # else saving forgets them
    if offload is not None:
        for each in (pipe, found):
            place(each, offload, offload=True)
    return found
