"""What a step takes at any widths, as data: measured times of modules, by width.

The time of a denoiser is taken as the dense one's less what its modules save alone::

    t(plan) = t_dense - correction * sum_g (t_g(whole) - t_g(r_g))

Modules of equal shape share one curve; between measured widths times are interpolated, and a
narrower width counts as no slower than a wider one. Where a whole slim denoiser was timed,
``correction`` takes up what the sum misses: caches, overlap, the load of the machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import SlimdiffError
from .files import read_json, write_json
from .sites import Site

__all__ = ["Curve", "LatencyTable"]

FORMAT = 1
_LEAST_CORRECTION, _MOST_CORRECTION = 0.2, 5.0


@dataclass(frozen=True)
class Curve:
    """Seconds of one module at some of its widths, ascending, the last one whole."""

    widths: tuple[int, ...]
    seconds: tuple[float, ...]

    @classmethod
    def of(cls, times: Mapping[int, float]) -> Curve:
        """The curve through measured times that never falls as the width grows.

        Where a width proves slower than a wider one, the wider one's time stands for both: no
        plan gains by the narrower.
        """
        widths = sorted(times)
        seconds = [min(times[w] for w in widths[i:]) for i in range(len(widths))]
        return cls(tuple(widths), tuple(seconds))

    def at(self, width: int) -> float:
        """Seconds at ``width``, on the line between its neighbours."""
        at = bisect_left(self.widths, width)
        if at == 0 or self.widths[at] == width:
            return self.seconds[at]
        (a, b), (low, high) = self.widths[at - 1 : at + 1], self.seconds[at - 1 : at + 1]
        return low + (high - low) * (width - a) / (b - a)


@dataclass(frozen=True)
class LatencyTable:
    """Measured times: a price list in seconds of one denoiser call.

    ``settings`` say on what: device, dtype, shapes of the call, versions. ``step`` is the dense
    call; ``curves`` holds one curve a shape and ``shapes`` names the shape of each site.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    settings: Mapping[str, Any]
    step: float
    shapes: Mapping[str, str]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    correction: float = 1.0
    format: int = FORMAT

    @property
    def total(self) -> float:
        """Seconds of the dense call."""
        return self.step

    @property
    def complete(self) -> bool:
        """Whether every shape was measured."""
        return set(self.shapes.values()) <= set(self.curves)

    def of(self, sites: Sequence[Site], widths: Mapping[str, int]) -> float:
        """Seconds of the module of ``sites``. Unequal widths are padded: the wider one counts."""
        curve = self.curves[self.shapes[sites[0].name]]
        whole = curve.seconds[-1]
        return whole - self.correction * (whole - curve.at(max(widths[s.name] for s in sites)))

    def corrected(self, expected: float, found: float) -> LatencyTable:
        """The table that would have expected what was ``found``, both shares of the dense step."""
        if expected >= 1:
            return self
        wanted = self.correction * (1 - found) / (1 - expected)
        return replace(self, correction=min(max(wanted, _LEAST_CORRECTION), _MOST_CORRECTION))

    def __str__(self) -> str:
        lines = [
            f"{self.settings.get('denoiser')} on {self.settings.get('device')}, "
            f"{self.settings.get('dtype')}: {1e3 * self.step:.1f} ms a call of "
            f"{self.settings.get('inputs')}; savings count x{self.correction:.2f}"
        ]
        for shape, curve in self.curves.items():
            count = len({s.rpartition(".")[0] for s, of in self.shapes.items() if of == shape})
            times = ", ".join(
                f"{w}: {1e3 * t:.2f}" for w, t in zip(curve.widths, curve.seconds, strict=True)
            )
            lines.append(f"{count:>3} x {shape}: {times} ms")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table. Raises SlimdiffError naming what is wrong."""
        value = read_json(Path(path), "latency table")
        try:
            table = TypeAdapter(cls).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise SlimdiffError(
                f"'{path}' is not a latency table at '{place}': {first['msg']}. Remove it; it is "
                "measured anew."
            ) from None
        if table.format != FORMAT:
            raise SlimdiffError(
                f"'{path}' has format {table.format}; expected {FORMAT}. Remove it; it is "
                "measured anew."
            )
        return table
