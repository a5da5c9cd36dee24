"""Error curves, gains and policies as small SVG files, each for light and for dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot, style  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from slimdiff import Budget, Plan, Statistics, allocate  # noqa: E402
from slimdiff.allocation import predicted_error  # noqa: E402
from slimdiff.files import write_text  # noqa: E402
from slimdiff.page.charts import Bars, bars  # noqa: E402
from slimdiff.page.figures import SiteRow  # noqa: E402
from slimdiff.policies import POLICIES  # noqa: E402

__all__ = ["POOL", "draw_all"]

POOL = 0.6
_POOLS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_LEAST = 1e-6
_MOST_POINTS = 20
_SHADES = {"light": "default", "dark": "dark_background"}
_LONG = re.compile(r"(\d\.\d\d)\d+")
_TEXT = {"svg.fonttype": "none", "svg.hashsalt": "slimdiff", "font.size": 9}


def draw_all(stats: Statistics, folder: Path) -> list[Path]:
    """Draw every figure in every shade; returns the files."""
    plan = allocate(stats, Budget(pool=POOL))
    charts = bars([SiteRow(*row) for row in plan.rows()])
    drawings: dict[str, Callable[[], Figure]] = {
        "curves": lambda: _curves(stats, plan, charts),
        "gains": lambda: _gains(stats, charts),
        "policies": lambda: _policies(stats),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _saved(draw, folder / f"{name}-{shade}.svg", sheet)
        for name, draw in drawings.items()
        for shade, sheet in _SHADES.items()
    ]


def _saved(draw: Callable[[], Figure], path: Path, sheet: str) -> Path:
    with style.context([sheet, _TEXT]):
        figure = draw()
        buffer = io.StringIO()
        figure.savefig(buffer, transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    write_text(path, _LONG.sub(r"\1", buffer.getvalue()))
    return path


def _curves(stats: Statistics, plan: Plan, charts: list[Bars]) -> Figure:
    """Share of its own output that each site loses at every width; dots where it is cut."""
    figure, panels = pyplot.subplots(
        1, len(charts), figsize=(9, 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, chart in zip(panels[0], charts, strict=True):
        for i, bar in enumerate(chart.bars):
            errors, full = stats.bases[bar.row.name].errors, bar.row.full
            colour = pyplot.get_cmap("viridis")(0.15 + 0.8 * i / max(1, len(chart.bars) - 1))
            every = sorted({*range(0, full, -(-full // _MOST_POINTS)), bar.row.width})
            widths = [w for w in every if float(errors[w]) > _LEAST]
            panel.plot(
                [w / full for w in widths], [float(errors[w]) for w in widths], lw=1, color=colour
            )
            if bar.row.width in widths:
                cut = bar.row.width / full, float(errors[bar.row.width])
                panel.plot(*cut, "o", ms=5, color=colour, mec="white", mew=0.7)
        panel.set(title=chart.title, yscale="log", ylim=(_LEAST, 2), xlim=(0, 1))
        panel.minorticks_off()
        panel.set_xlabel("share of the width kept")
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel("share of the site's output lost")
    return figure


def _gains(stats: Statistics, charts: list[Bars]) -> Figure:
    """What a site at half its width does to the output, and the width that the plan leaves."""
    figure, panels = pyplot.subplots(
        2, len(charts), figsize=(9, 4), sharex="col", sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for (above, below), chart in zip(panels.T, charts, strict=True):
        places = [bar.left + bar.breadth / 2 for bar in chart.bars]
        breadth = 0.8 * chart.bars[0].breadth
        halved = [
            predicted_error(stats, b.row.name, stats.header.gains[b.row.name].width)
            for b in chart.bars
        ]
        above.bar(places, halved, breadth, color="C0")
        above.set(title=chart.title, yscale="log")
        below.bar(places, [bar.kept for bar in chart.bars], breadth, color="C1")
        below.set_xticks(
            [left + width / 2 for _, left, width in chart.stages],
            [label for label, *_ in chart.stages],
            rotation=60,
        )
        for panel in (above, below):
            panel.grid(alpha=0.25, axis="y")
    panels[0][0].set_ylabel("error of the output,\nsite at half its width")
    panels[1][0].set_ylabel(f"% of the width kept,\npool {POOL:g}")
    return figure


def _policies(stats: Statistics) -> Figure:
    """Predicted error of the output against the pool that is kept, a line a policy."""
    figure, panel = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    for policy in POLICIES:
        plans = [allocate(stats, Budget(pool=pool), policy=policy) for pool in _POOLS]
        kept, errors = [p.pool_kept for p in plans], [_predicted(stats, p) for p in plans]
        panel.semilogy(kept, errors, "o-", ms=4, label=policy)
    panel.set(xlabel="share of the pool kept", ylabel="predicted error of the output")
    panel.grid(alpha=0.25)
    panel.legend()
    return figure


def _predicted(stats: Statistics, plan: Plan) -> float:
    return sum(predicted_error(stats, name, width) for name, width in plan.widths.items())
