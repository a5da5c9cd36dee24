"""Step time against parameters: widths chosen by the clock and one common share, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slimdiff import Budget, Plan, Statistics, allocate, families
from slimdiff.cost import mac_prices
from slimdiff.errors import SlimdiffError
from slimdiff.gains import Call
from slimdiff.latency import LatencyTable
from slimdiff.profiling import latency_of
from slimdiff.surgery import resized
from slimdiff.timing import in_turn, median_ratio

from .models import made_up

__all__ = ["frontier"]

_HALVINGS = 12


def frontier(
    model: Any, call: Call, reductions: Sequence[str], rounds: int, cache: Path | None = None
) -> list[dict[str, Any]]:
    """One row a plan: parameters, multiply-adds and measured time, each to the dense model's.

    At every reduction a uniform plan and one that spends it where the table says the time is;
    all of them and the dense model take turns.
    """
    table = latency_of(model, call, cache)
    sites = families.find(model).sites(model)
    stats = made_up(model)
    macs = mac_prices(model, sites, call)
    stats = replace(stats, header=replace(stats.header, macs=macs))
    plans: list[tuple[str, Plan]] = []
    for reduction in reductions:
        uniform = allocate(stats, Budget(params=reduction), policy="uniform")
        plans += [("uniform", uniform), ("latency", _fastest(stats, uniform, table))]
    runs = [model, *(resized(model, sites, plan.widths) for _, plan in plans)]
    times = in_turn(
        [lambda m=m: m(*call.args, **call.kwargs) for m in runs], least=rounds, seconds=0.0
    )
    return [
        {
            "plan": policy,
            "parameters": plan.parameters - plan.removed,
            "narrowest": min(w / plan.full[s] for s, w in plan.widths.items()),
            **{name: plan.kept[name] for name in ("params", "macs")},
            "time": median_ratio(times, i, 0),
            "spread": [min(r[i] / r[0] for r in times), max(r[i] / r[0] for r in times)],
            "seconds": sorted(row[i] for row in times)[len(times) // 2],
        }
        for i, (policy, plan) in enumerate(plans, 1)
    ]


def _fastest(stats: Statistics, rival: Plan, table: LatencyTable) -> Plan:
    """The plan of least expected time that keeps no fewer parameters than ``rival``."""
    low, high = 0.0, 1.0
    found = allocate(stats, Budget(latency=1.0), latency=table)
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        plan = _within(stats, share, table)
        if plan is not None and plan.removed <= rival.removed:
            found, high = plan, share
        else:
            low = share
    return found


def _within(stats: Statistics, share: float, table: LatencyTable) -> Plan | None:
    """The plan for that share of the time, unless it takes forbidden widths."""
    try:
        plan = allocate(stats, Budget(latency=share), latency=table)
    except SlimdiffError:
        return None
    return plan if plan.predicted_error <= 1 else None
