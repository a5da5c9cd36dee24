"""Geometry of the page's charts: figures in, plain numbers for the template's SVG out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .figures import Curve, SiteRow

__all__ = ["KINDS", "Bars", "Curves", "Scale", "Strip", "bars", "curves", "log_scale", "strip"]

KINDS = {"qk": "query-key", "vo": "value-output", "ffn": "feed-forward"}
_FLOOR = 1e-9


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis: ``ticks`` are decades with their place in 0..1."""

    low: float
    high: float
    ticks: tuple[tuple[float, float], ...]

    def place(self, value: float) -> float:
        """Where ``value`` lies, 0 at ``low`` and 1 at ``high``; outside counts as the end."""
        span = math.log10(self.high / self.low)
        return min(1.0, max(0.0, math.log10(max(value, self.low) / self.low) / span))


def log_scale(values: Sequence[float], most: int = 6) -> Scale:
    """Whole decades around the positive ``values``, at most about ``most`` of them labelled."""
    positive = [v for v in values if v >= _FLOOR] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    high = max(high, low + 1)
    step = max(1, -(-(high - low) // most))
    ticks = tuple((10.0**e, (e - low) / (high - low)) for e in range(low, high + 1, step))
    return Scale(10.0**low, 10.0**high, ticks)


@dataclass(frozen=True)
class Bar:
    """One site: what is kept of its width, and its place on the axis, all in 0..100."""

    row: SiteRow
    left: float
    breadth: float
    kept: float


@dataclass(frozen=True)
class Bars:
    """The sites of one kind over depth; ``stages`` are (label, left, breadth) of their blocks."""

    kind: str
    title: str
    kept: float
    bars: tuple[Bar, ...]
    stages: tuple[tuple[str, float, float], ...]


def bars(rows: Sequence[SiteRow]) -> list[Bars]:
    """One chart a kind of site, in the order of the model."""
    return [_bars(kind, found) for kind, found in _by_kind(rows).items()]


@dataclass(frozen=True)
class Line:
    """One site's error curve as points (x, y) in 0..100, y downwards, and where it was cut."""

    row: SiteRow
    points: str
    cut: tuple[float, float]
    error: float
    depth: float


@dataclass(frozen=True)
class Curves:
    """The error curves of one kind of site on one logarithmic scale."""

    kind: str
    title: str
    scale: Scale
    lines: tuple[Line, ...]


def curves(rows: Sequence[SiteRow], found: dict[str, Curve]) -> list[Curves]:
    """One chart a kind of site that has curves; x is the share of the width kept."""
    known = [row for row in rows if row.name in found]
    every = [e for row in known for e in found[row.name].errors]
    scale = log_scale([max(e, 1e-7) for e in every if e > 0])
    return [
        Curves(
            kind,
            KINDS.get(kind, kind),
            scale,
            tuple(
                _line(row, found[row.name], scale, i / max(1, len(members) - 1))
                for i, row in enumerate(members)
            ),
        )
        for kind, members in _by_kind(known).items()
    ]


@dataclass(frozen=True)
class Strip:
    """All samples of one metric on a line, 0..100, with mean and interval."""

    low: float
    high: float
    places: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None


def strip(
    values: Sequence[float], mean: float, interval: tuple[float, float] | None
) -> Strip | None:
    """Where each value lies between the least and the greatest; None for fewer than two."""
    if len(values) < 2:
        return None
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / span)), 2)

    ends = (place(interval[0]), place(interval[1])) if interval else None
    return Strip(low, high, tuple(place(v) for v in values), place(mean), ends)


def _bars(kind: str, rows: Sequence[SiteRow]) -> Bars:
    slot = 100 / len(rows)
    found = tuple(
        Bar(row, i * slot, slot, 100 * row.width / row.full) for i, row in enumerate(rows)
    )
    stages: list[tuple[str, float, float]] = []
    for bar in found:
        label = _stage(bar.row.name)
        if stages and stages[-1][0] == label:
            stages[-1] = (label, stages[-1][1], stages[-1][2] + slot)
        else:
            stages.append((label, bar.left, slot))
    kept = sum(row.width for row in rows) / sum(row.full for row in rows)
    return Bars(kind, KINDS.get(kind, kind), kept, found, tuple(stages))


def _line(row: SiteRow, curve: Curve, scale: Scale, depth: float) -> Line:
    def at(width: int, error: float) -> tuple[float, float]:
        return round(100 * width / row.full, 2), round(100 * (1 - scale.place(error)), 2)

    pairs = list(zip(curve.widths, curve.errors, strict=False))
    points = [at(w, e) for w, e in pairs]
    error = dict(pairs).get(row.width, 0.0)
    text = " ".join(f"{x},{y}" for x, y in points)
    return Line(row, text, at(row.width, error), error, depth)


def _by_kind(rows: Sequence[SiteRow]) -> dict[str, list[SiteRow]]:
    """Sites by the last part of their name: the known kinds first, in their order."""
    found: dict[str, list[SiteRow]] = {kind: [] for kind in KINDS}
    for row in sorted(rows, key=_half):
        found.setdefault(row.name.rpartition(".")[2], []).append(row)
    return {kind: members for kind, members in found.items() if members}


def _half(row: SiteRow) -> int:
    """A U-Net names its middle last, but runs it between going down and going up."""
    return {"d": 0, "m": 1, "u": 2}.get(row.name[:1], 0) if "_block" in row.name else 0


def _stage(name: str) -> str:
    """What a person calls the part of the model: 'down 1', 'mid', '12'."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    word = re.sub(r"_?(transformer_)?blocks?$", "", first)
    return f"{word} {number}".strip() if number.isdigit() else word or first
