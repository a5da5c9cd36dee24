"""One calibration, many budgets: where does error begin to grow faster than time falls?"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from .budget import Budget
from .errors import SlimdiffError
from .files import read_json, write_bytes, write_json
from .recipe import cut, refuse_unreachable
from .report import compare
from .sampling import IndexedPrompt
from .statistics import Statistics

__all__ = ["Point", "figure", "knee", "require_matplotlib", "sweep"]

_POINTS = "points"


@dataclass(frozen=True)
class Point:
    """One budget's figures: its name, shares of the dense denoiser, error on held-out prompts."""

    name: str
    time: float
    params: float
    error: float


def sweep(
    pipe: DiffusionPipeline,
    stats: Statistics,
    budgets: Sequence[Budget],
    prompts: Sequence[IndexedPrompt],
    folder: Path,
    **options: Any,
) -> list[Point]:
    """Cut ``pipe`` to each budget, compare on ``prompts``, and keep each point in ``folder``.

    ``options`` are those of :func:`slimdiff.allocate`. Points that are there are not made again.
    Each comes with its plan, ready for ``slimdiff apply``. Writes ``sweep.json`` at the end.

    Raises SlimdiffError if a budget is out of reach, before the first is cut, or if ``folder``
    holds points of another sweep.
    """
    places = {budget: folder / _POINTS / f"{_name(budget)}.json" for budget in budgets}
    settings = _settings(stats, prompts, options)
    found = {b: _kept(path, settings) for b, path in places.items() if path.is_file()}
    missing = [budget for budget in budgets if budget not in found]
    sampling, clock = stats.header.sampling, None
    for budget in missing:
        clock = refuse_unreachable(pipe, budget, sampling, clock=clock, **options) or clock
    for budget in missing:
        slim = cut(pipe, stats, budget, clock=clock, **options)
        report = compare(pipe, slim, prompts, sampling=sampling)
        report.plan.save(folder / f"{_name(budget)}-plan.json")
        found[budget] = {"name": _name(budget), "settings": settings, **report.to_dict()}
        write_json(places[budget], found[budget])
    points = [_point(found[budget]) for budget in budgets]
    best = knee([p.time for p in points], [p.error for p in points])
    write_json(
        folder / "sweep.json",
        {
            "points": [found[budget] for budget in budgets],
            "knee": None if best is None else points[best].name,
        },
    )
    return points


def knee(costs: Sequence[float], errors: Sequence[float]) -> int | None:
    """The point farthest below the line between the cheapest and the dearest, errors as logs.

    Both axes are scaled to the range they span. None for fewer than three points, or if none
    lies below the line.
    """
    if len(costs) < 3 or max(costs) == min(costs):
        return None
    logs = [math.log(max(error, 1e-300)) for error in errors]
    first, last = costs.index(min(costs)), costs.index(max(costs))
    height = (logs[first] - logs[last]) or 1.0
    across = [(c - costs[first]) / (costs[last] - costs[first]) for c in costs]
    below = [1 - x - (y - logs[last]) / height for x, y in zip(across, logs, strict=True)]
    deepest = max(range(len(costs)), key=lambda i: below[i])
    return deepest if below[deepest] > 1e-9 else None


def require_matplotlib() -> None:
    """Raise SlimdiffError if figures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise SlimdiffError(
            "The figure of a sweep needs matplotlib, which is not installed. Run pip install "
            "'slimdiff[bench]'."
        )


def figure(points: Sequence[Point], path: Path) -> None:
    """Draw error against time and against parameters, the knee of each marked, as a PNG."""
    import io

    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 4), layout="constrained")
    panels = canvas.subplots(1, 2, sharey=True)
    for panel, (label, costs) in zip(
        panels,
        (
            ("time a step, share of the dense", [p.time for p in points]),
            ("parameters, share of the dense", [p.params for p in points]),
        ),
        strict=True,
    ):
        order = sorted(range(len(points)), key=lambda i: costs[i])
        errors = [point.error for point in points]
        panel.semilogy([costs[i] for i in order], [errors[i] for i in order], "o-")
        for point, cost in zip(points, costs, strict=True):
            panel.annotate(point.name, (cost, point.error), fontsize=7)
        best = knee(costs, errors)
        if best is not None:
            panel.plot(costs[best], errors[best], "o", ms=14, mfc="none", mec="red", label="knee")
            panel.legend()
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("relative squared error of the denoiser's output")
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())


def clear(folder: Path) -> None:
    """Remove the points that an earlier sweep left."""
    shutil.rmtree(folder / _POINTS, ignore_errors=True)


def _name(budget: Budget) -> str:
    return "_".join(f"{name}-{amount}" for name, amount in budget.asked.items())


def _settings(
    stats: Statistics, prompts: Sequence[IndexedPrompt], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What points of one sweep have in common."""
    return {
        "model": stats.header.source.hash,
        "prompts": [text for _, text in stats.header.prompts],
        "compared": [text for _, text in prompts],
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
    }


def _kept(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    found = read_json(path, "point of a sweep")
    if found.get("settings") != settings:
        raise SlimdiffError(
            f"'{path}' is of a sweep with other statistics, prompts or options. Choose another "
            "-o, or pass --force to begin anew."
        )
    return found


def _point(found: Mapping[str, Any]) -> Point:
    return Point(
        found["name"],
        found["step_time"]["ratio"],
        found["params"]["kept"],
        found["fidelity"]["noise_rel_mse"],
    )
