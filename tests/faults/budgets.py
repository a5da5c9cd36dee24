"""Budgets that cannot be met and plans that fit nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .fault import Damage, Fault

__all__ = ["BUDGETS"]


def _edited(change: Callable[[dict[str, Any]], None]) -> Damage:
    """The slim model's plan under the name plan.json, edited by hand."""

    def damage(root: Path, stack: ExitStack) -> None:
        plan = json.loads((root / "slim/slimdiff_plan.json").read_text())
        change(plan)
        (root / "plan.json").write_text(json.dumps(plan))

    return damage


def _too_wide(plan: dict[str, Any]) -> None:
    plan["widths"][next(iter(plan["widths"]))] = 9999


def _stranger(plan: dict[str, Any]) -> None:
    for part, value in (("widths", 8), ("full", 16), ("per_unit", 10)):
        plan[part]["attn.qk"] = value


_APPLY = "apply model stats plan.json -o new"

BUDGETS = (
    Fault("No budget at all", "plan stats -o p.json"),
    Fault("A budget that is no amount", "plan stats --pool abc -o p.json"),
    Fault("A share of the time above one", "plan stats --latency 1.5 -o p.json"),
    Fault("A budget out of reach", "slim model --params 0.01 -o new"),
    Fault("A pattern that matches no site", "plan stats --pool 0.8 --skip '*.fnn' -o p.json"),
    Fault("A sweep of one budget", "sweep stats --pool 0.9 -o sw"),
    Fault("A plan whose widths are no table", _APPLY, _edited(lambda p: p.update(widths=3))),
    Fault("A plan wider than the site", _APPLY, _edited(_too_wide)),
    Fault("A plan with a site that is not there", _APPLY, _edited(_stranger)),
    Fault(
        "A plan made for another model",
        _APPLY,
        _edited(lambda p: p.update(model_hash="0" * 64)),
        elide=r"(?<=statistics )\w+(?=\))",
    ),
    Fault("A plan for other closed forms", _APPLY, _edited(lambda p: p.update(method="paper"))),
)
