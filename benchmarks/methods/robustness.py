"""One slim model under other schedulers, steps and guidance than it was calibrated with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)

from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import Sampling

from .bench import Bench, Cell
from .cells import once
from .measure import errors, record
from .settings import OURS, Settings

__all__ = ["robustness"]

SCHEDULERS: dict[str, Any] = {
    "DDIM": DDIMScheduler,
    "DPM-Solver++": DPMSolverMultistepScheduler,
    "Euler": EulerDiscreteScheduler,
}


@dataclass(frozen=True)
class Condition:
    """One way to draw; all but one part of it is as in calibration."""

    scheduler: str
    sampling: Sampling

    @property
    def name(self) -> str:
        s = self.sampling
        return f"{self.scheduler}, {s.steps} steps, guidance {s.guidance:g}"


def robustness(bench: Bench) -> dict[str, dict[str, float]]:
    """Condition -> errors of our slim model of the first seed against the dense model there."""
    settings = bench.settings
    slim, _ = bench.slim(Cell(*OURS, settings.detail_pool, settings.seeds[0]))
    results = {}
    for condition in conditions(settings, type(bench.dense.scheduler)):  # pyright: ignore
        file = condition.name.replace(",", "").replace(" ", "-")
        path = bench.work / "robustness" / f"{file}.json"
        results[condition.name] = once(path, lambda c=condition: _measure(bench, slim, c))
        print(f"{condition.name}: {results[condition.name]['noise_rel_mse']:.3e}", flush=True)
    return results


def conditions(settings: Settings, own: type) -> Iterator[Condition]:
    """Other schedulers, then other steps, then other guidance; as calibrated comes once."""
    names = [name for name, kind in SCHEDULERS.items() if kind is own]
    (home,), base = names, settings.sampling
    found = [Condition(name, base) for name in SCHEDULERS]
    found += [Condition(home, replace(base, steps=steps)) for steps in settings.other_steps]
    found += [Condition(home, replace(base, guidance=g)) for g in settings.other_guidance]
    yield from dict.fromkeys(found)


def _measure(bench: Bench, slim: DiffusionPipeline, condition: Condition) -> dict[str, float]:
    dense = _with_scheduler(bench.dense, condition.scheduler)
    reference = record(dense, bench.held_out, condition.sampling)
    return asdict(errors(_with_scheduler(slim, condition.scheduler), reference))


def _with_scheduler(pipe: DiffusionPipeline, name: str) -> DiffusionPipeline:
    copied = copy_pipeline(pipe)
    copied.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)  # pyright: ignore
    return copied
