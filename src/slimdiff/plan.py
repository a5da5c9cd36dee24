"""The decision, as data: a width for every site. Print it, save it, edit it, apply it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import SlimdiffError
from .files import read_json, write_json
from .sampling import Sampling
from .sites import Site

__all__ = ["Plan", "plan_from"]

FORMAT = 1
_KEPT = {"macs": "multiply-adds", "bytes": "bytes", "latency": "time a step"}
_MOST = 2**48
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Plan:
    """Widths to cut to and why.

    ``widths``: site -> width kept (per head); sites left out stay whole. ``full`` and
    ``per_unit``: dense width and parameters that one unit of width costs. ``predicted``: the
    share of the denoiser's output energy each site's cut is expected to cost. ``parameters`` and
    ``pool`` count the dense model. ``kept``: share of the dense cost that stays, by the names of
    :class:`slimdiff.Budget`; latency as measured on the whole denoiser, if it was. ``model_hash``
    and ``calibration`` say where it comes from.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    widths: Mapping[str, int]
    full: Mapping[str, int]
    per_unit: Mapping[str, int]
    predicted: Mapping[str, float]
    parameters: int
    pool: int
    budget: Mapping[str, float | int | str | None]
    policy: str
    multiple: int
    method: str
    denoiser: str
    model_hash: str
    kept: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def removed(self) -> int:
        """Parameters that the plan takes away."""
        return sum((self.full[s] - w) * self.per_unit[s] for s, w in self.widths.items())

    @property
    def params_kept(self) -> float:
        """Share of the denoiser's parameters that stays."""
        return 1 - self.removed / self.parameters

    @property
    def pool_kept(self) -> float:
        """Share of the slimmable parameters that stays."""
        return 1 - self.removed / max(1, self.pool)

    @property
    def predicted_error(self) -> float:
        """Expected relative squared error of the denoiser's output, sites taken as additive."""
        return sum(self.predicted.values())

    def rows(self) -> list[tuple[str, int, int, int, float]]:
        """Site, width before, width after, parameters after, share of the predicted error."""
        total = self.predicted_error or 1.0
        return [
            (s, self.full[s], w, w * self.per_unit[s], self.predicted.get(s, 0.0) / total)
            for s, w in self.widths.items()
        ]

    def __str__(self) -> str:
        longest = max([len(s) for s in self.widths], default=4)
        lines = [f"{'site':<{longest}}  {'width':>12}  {'parameters':>10}  error share"]
        for site, before, after, parameters, share in self.rows():
            lines.append(
                f"{site:<{longest}}  {before:>4} -> {after:>4}  {parameters:>10,}  {share:>10.1%}"
            )
        lines.append(
            f"{self.policy}: keeps {(self.parameters - self.removed) / 1e6:.2f} M of "
            f"{self.parameters / 1e6:.2f} M parameters ({self.params_kept:.1%}), "
            f"{self.pool_kept:.1%} of the pool{self._more()}; predicted error "
            f"{self.predicted_error:.2e}"
        )
        return "\n".join(lines)

    def _more(self) -> str:
        """What is kept beyond parameters, as far as it is known."""
        return "".join(
            f", {self.kept[name]:.1%} of the {text}"
            for name, text in _KEPT.items()
            if name in self.kept
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan. Raises SlimdiffError naming what is wrong."""
        return plan_from(read_json(Path(path), "plan"), str(path))

    def check(self, sites: Sequence[Site]) -> None:
        """Raise SlimdiffError unless every width fits its site."""
        known = {site.name: site for site in sites}
        for name, width in self.widths.items():
            site = known.get(name)
            if site is None:
                raise SlimdiffError(
                    f"The plan names site '{name}', which this denoiser lacks. Remove the entry, "
                    "or use the model the plan was made for."
                )
            if not 1 <= width <= site.width:
                raise SlimdiffError(
                    f"Site '{name}' keeps {width} of {site.width} channels; expected 1 to "
                    f"{site.width}. Mend 'widths' in the plan."
                )
            if site.locked and width != site.width:
                raise SlimdiffError(
                    f"Site '{name}' is locked ({site.locked}) but the plan cuts it to {width}; "
                    f"expected {site.width}. Remove the entry from 'widths'."
                )


def _check_calibration(calibration: Mapping[str, Any], where: str) -> None:
    """Raise SlimdiffError unless what loading and drawing read of ``calibration`` is sound."""
    if calibration.get("dtype", "float32") not in DTYPES:
        raise SlimdiffError(
            f"'{where}' has dtype {calibration['dtype']!r}; expected one of {', '.join(DTYPES)}."
        )
    try:
        TypeAdapter(Sampling).validate_python(calibration.get("sampling", {}))
    except ValidationError as error:
        raise SlimdiffError(
            f"'{where}' is not a valid plan at 'calibration.sampling': {error.errors()[0]['msg']}."
            " Mend or remake it."
        ) from None


def _check_sizes(plan: Plan, where: str) -> None:
    """Raise SlimdiffError for a count that no model has."""
    sizes = [("parameters", plan.parameters), ("pool", plan.pool + 1), ("multiple", plan.multiple)]
    sizes += [(f"full.{site}", n) for site, n in plan.full.items()]
    sizes += [(f"per_unit.{site}", n) for site, n in plan.per_unit.items()]
    sizes += [(f"widths.{site}", abs(n) + 1) for site, n in plan.widths.items()]
    for name, size in sizes:
        if not 1 <= size <= _MOST:
            raise SlimdiffError(
                f"'{where}' is not a valid plan at '{name}': {str(size)[:24]} is no such count. "
                "Mend or remake it."
            )


def plan_from(value: Any, where: str) -> Plan:
    """Validate a plan that was read from ``where``."""
    found = value.get("format") if isinstance(value, Mapping) else value
    if found != FORMAT or not isinstance(value, Mapping):
        raise SlimdiffError(
            f"'{where}' is not a plan of format {FORMAT} (found {str(found)[:40]!r}). "
            "Make it again with slimdiff plan."
        )
    try:
        plan = TypeAdapter(Plan).validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SlimdiffError(
            f"'{where}' is not a valid plan at '{place}': {first['msg']}. Mend or remake it."
        ) from None
    _check_calibration(plan.calibration, where)
    _check_sizes(plan, where)
    strangers = sorted(set(plan.widths) - (set(plan.full) & set(plan.per_unit)))
    if strangers:
        raise SlimdiffError(
            f"'{where}' names site '{strangers[0]}' in 'widths' but not in 'full' and 'per_unit'. "
            "Remove the entry, or remake the plan."
        )
    return plan
