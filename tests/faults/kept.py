"""Statistics that are damaged, stale, or of something else."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from .fault import Fault, started
from .inputs import changed_weight

__all__ = ["KEPT"]

_HASH = r"(?<=hash )\w+"
_HEADER = "stats/statistics.json"


def _flipped(root: Path, stack: ExitStack) -> None:
    path = sorted((root / "stats").glob("sums-*"))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _edited(root: Path, stack: ExitStack) -> None:
    value = json.loads((root / _HEADER).read_text())
    value["gains"][next(iter(value["gains"]))]["error"] *= 2
    (root / _HEADER).write_text(json.dumps(value))


def _torn(root: Path, stack: ExitStack) -> None:
    (root / _HEADER).write_text((root / _HEADER).read_text()[:1000])


def _merged(root: Path, stack: ExitStack) -> None:
    assert started("merge part1 part2 -o merged", root).returncode == 0


_PLAN = "plan stats --pool 0.8 -o p.json"
_changed = changed_weight("unet", "conv_in.weight", 0.1)

KEPT = (
    Fault("No statistics there", "plan nowhere --pool 0.5 -o p.json"),
    Fault("One bit flipped", _PLAN, _flipped),
    Fault("Gains edited by hand", _PLAN, _edited),
    Fault("A file cut short", _PLAN, _torn, elide=r"(?<=got ).*(?=\. Make)"),
    Fault(
        "The model changed since it was calibrated",
        "apply model stats slim/slimdiff_plan.json -o new",
        _changed,
        elide=_HASH,
    ),
    Fault(
        "A comparison with another than the dense original",
        "compare model slim -o new",
        _changed,
        elide=_HASH,
    ),
    Fault("A comparison of a slim model with itself", "compare slim slim -o new"),
    Fault("Statistics of other settings", "slim model --statistics stats --seed 7 -o new"),
    Fault("Stale gains after a merge", "plan merged --pool 0.8 -o p.json", _merged),
    Fault("Parts that overlap", "merge part1 part1 -o merged"),
    Fault("A part that is none", "calibrate model --part 3/2 -o new"),
)
