"""Plans that are as fast as asked, by the clock: plan, time the whole denoiser, correct, again.

Widths alone decide a denoiser's time, so what is timed is the dense model resized, before
anything is decomposed. The plan aims a little below what was asked, for the next measurement to
stay within it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from diffusers import DiffusionPipeline

from . import families
from .allocation import allocate, grid_for, kept_shares, least, prices_of
from .budget import Budget
from .cost import step_times
from .denoiser import denoiser
from .errors import SlimdiffError
from .gains import Call
from .grid import Grid, tied
from .latency import LatencyTable
from .placing import offload_device
from .plan import Plan
from .profiling import measure_latency, timed_call
from .sampling import Sampling
from .statistics import Statistics
from .surgery import resized

__all__ = ["Clock", "plan_in_time", "start_clock"]

_AIM = 0.975
_LOWEST, _HIGHEST = 0.95, 0.99
"""The measured time that ends the search, as a share of what was asked."""

_TRIES = 6


@dataclass(frozen=True)
class Clock:
    """What plans are timed with: the dense model, one call of it, and the table to plan with."""

    model: Any
    call: Call
    table: LatencyTable

    def share(self, widths: Mapping[str, int]) -> float:
        """Time of a call at ``widths`` to the dense model's, the whole denoisers timed in turn."""
        sites = families.find(self.model).sites(self.model)
        return step_times(self.model, resized(self.model, sites, widths), self.call).ratio

    def corrected(self, expected: float, found: float) -> Clock:
        return replace(self, table=self.table.corrected(expected, found))


def start_clock(pipe: DiffusionPipeline, sampling: Sampling, grid: Grid) -> Clock:
    """Time modules, unless that was done before, and the denoiser cut as far as ``grid`` allows.

    The latter corrects the table, so that the least it gives is a measured figure.

    Raises SlimdiffError for an offloaded pipeline: what it takes is mostly moving weights.
    """
    if offload_device(pipe) is not None:
        raise SlimdiffError(
            "The time of a step cannot be measured while parts are offloaded. Ask for parameters "
            "or multiply-adds instead, or do without --offload."
        )
    model = denoiser(pipe)
    clock = Clock(model, timed_call(pipe, sampling), measure_latency(pipe, sampling))
    sites = families.find(model).sites(model)
    widths: dict[str, int] = {}
    for _, members in tied(sites):
        widths |= grid.widths(members)[0]
    expected = kept_shares({"latency": clock.table}, sites, widths)["latency"]
    return clock.corrected(expected, clock.share(widths))


def plan_in_time(
    stats: Statistics, budget: Budget, clock: Clock, **options: Any
) -> tuple[Plan, Clock]:
    """A plan whose measured time a step is within ``budget``, and the clock it has corrected.

    ``options`` are those of :func:`slimdiff.allocate`. Of the plans tried the one that comes
    nearest to the budget is returned, the measured share of the dense time in ``kept``.

    Raises SlimdiffError with the least time reachable if none is fast enough.
    """
    asked = budget.ceilings(prices_of(stats, clock.table))["latency"] / clock.table.total
    grid, found = grid_for(budget, **options), dict[float, Plan]()
    for _ in range(_TRIES):
        reach = least(clock.table, stats.header.sites, grid) / clock.table.total
        aim = max(_AIM * asked, reach * (1 + 1e-9))
        aimed = replace(budget, latency=min(1.0, aim))
        plan = allocate(stats, aimed, latency=clock.table, **options)
        if any(plan.widths == other.widths for other in found.values()):
            break
        share = clock.share(plan.widths)
        found[share] = replace(plan, budget=asdict(budget), kept={**plan.kept, "latency": share})
        if _LOWEST * asked <= share <= _HIGHEST * asked:
            break
        clock = clock.corrected(plan.kept["latency"], share)
    within = [share for share in found if share <= asked]
    if not within:
        raise SlimdiffError(
            f"Budget {budget} is out of reach: the fastest plan found takes {min(found):.4f} of "
            f"the dense time a step (latency={min(found):.4f}). Raise the budget, lower "
            "--multiple or drop --only/--skip."
        )
    return found[max(within)], clock
