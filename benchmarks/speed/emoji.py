"""A latency budget on the embedded pipeline: is it met, and is it worth planning for time?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from slimdiff import Budget, Plan, Sampling, Statistics, allocate, calibrate
from slimdiff.allocation import grid_for, kept_shares
from slimdiff.compression import plan_of
from slimdiff.cost import step_times
from slimdiff.deadline import Clock, plan_in_time, start_clock
from slimdiff.denoiser import denoiser
from slimdiff.errors import SlimdiffError
from slimdiff.fidelity import measure_fidelity
from slimdiff.pipelines import EMOJI, open_pipeline, preset
from slimdiff.prompts import read_prompts, split
from slimdiff.recipe import cut
from slimdiff.sampling import IndexedPrompt

__all__ = ["asked_and_got"]

_HALVINGS = 14


def asked_and_got(
    asked: float, repeats: int, prompts: int, held_out: int, sampling: Sampling, folder: Path
) -> dict[str, Any]:
    """``repeats`` plans for ``asked`` of the time, each timed again, then the two errors.

    The error of the last plan for time is set beside that of a plan for parameters that the same
    corrected table expects to be no faster; both were cut with every correction and timed anew.
    """
    found = preset(EMOJI)
    assert found is not None
    pipe = open_pipeline(EMOJI)
    calibration, compared = split(read_prompts(found.prompts), prompts)
    stats = calibrate(pipe, calibration, sampling=sampling, folder=folder)
    budget = Budget(latency=asked)
    runs, plan, clock = [], None, None
    for _ in range(repeats):
        clock = start_clock(pipe, sampling, grid_for(budget))
        plan, clock = plan_in_time(stats, budget, clock)
        got = clock.share(plan.widths)
        runs.append({"asked": asked, "planned": plan.kept["latency"], "got": got})
    assert plan is not None
    assert clock is not None
    rival = _as_slow(stats, clock, plan)
    rows = [
        _row(pipe, stats, Budget(latency=asked), clock, compared[:held_out], sampling),
        _row(pipe, stats, rival, clock, compared[:held_out], sampling),
    ]
    return {"runs": runs, "equal_time": rows}


def _as_slow(stats: Statistics, clock: Clock, plan: Plan) -> Budget:
    """The budget of parameters whose plan is expected to take as long as ``plan``, or longer."""
    target, low, high = _expected(stats, clock, plan), 0.0, 1.0
    for _ in range(_HALVINGS):
        pool = (low + high) / 2
        try:
            slower = _expected(stats, clock, allocate(stats, Budget(pool=pool))) >= target
        except SlimdiffError:
            slower = False
        low, high = (low, pool) if slower else (pool, high)
    return Budget(pool=high)


def _expected(stats: Statistics, clock: Clock, plan: Plan) -> float:
    """Share of the dense time that the corrected table gives a plan."""
    prices = {"latency": clock.table}
    return kept_shares(prices, stats.header.sites, plan.widths)["latency"]


def _row(
    pipe: DiffusionPipeline,
    stats: Statistics,
    budget: Budget,
    clock: Clock,
    prompts: list[IndexedPrompt],
    sampling: Sampling,
) -> dict[str, Any]:
    slim = cut(pipe, stats, budget, clock=clock)
    plan = plan_of(slim)
    assert plan is not None
    fidelity, _ = measure_fidelity(pipe, slim, prompts, sampling)
    return {
        "budget": str(budget),
        "time": step_times(denoiser(pipe), denoiser(slim), clock.call).ratio,
        "params": plan.params_kept,
        "macs": plan.kept["macs"],
        **asdict(fidelity),
    }
