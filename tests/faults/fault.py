"""One fault: how it comes about, the command that meets it, what is told and what is left."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from test_cli import run
from tiny import prompt_file, tiny_folder

__all__ = ["Damage", "Fault", "Told", "met", "prepared", "started"]

Damage = Callable[[Path, ExitStack], None]
"""What happens in the folder, or to the process until the stack unwinds, before the command."""

_DRAWING = "--device cpu --steps 2 --batch-size 2 --guidance 3"
_SMALL = {
    "calibrate": f"--prompts prompts.txt --num-prompts 4 {_DRAWING}",
    "slim": f"--prompts prompts.txt --num-prompts 4 --multiple 2 {_DRAWING}",
    "compare": f"--prompts prompts.txt {_DRAWING}",
    "evaluate": f"--prompts prompts.txt --metrics psnr {_DRAWING}",
    "generate": _DRAWING,
    "plan": "--multiple 2",
    "sweep": "--prompts prompts.txt --multiple 2",
}
"""Options that make a command small; those of a fault come after them and win."""


def _nothing(root: Path, stack: ExitStack) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """``what`` goes wrong, for the page; ``command`` as a user types it after ``slimdiff``.

    ``code`` is how it ends, ``leaves`` what is new or changed in the folder. ``elide`` matches
    what differs from run to run or is said by other libraries; the page leaves it out.
    """

    what: str
    command: str
    damage: Damage = _nothing
    code: int = 2
    leaves: frozenset[str] = frozenset()
    elide: str = ""


@dataclass(frozen=True)
class Told:
    """How a command ended: exit code, all it said, the message for the page.

    ``left`` are the names in the folder that are new or were changed.
    """

    code: int
    said: str
    message: str
    left: frozenset[str]


def prepared(root: Path) -> Path:
    """A folder with a tiny model, prompts, statistics of it, also in two parts, and a slim one."""
    tiny_folder(root / "model")
    prompt_file(root / "prompts.txt")
    for command in (
        "slim model --pool 0.6 --statistics stats -o slim",
        "calibrate model --part 1/2 -o part1",
        "calibrate model --part 2/2 -o part2",
    ):
        made = started(command, root)
        assert made.returncode == 0, made.stderr
    return root


def met(fault: Fault, root: Path) -> Told:
    """Let ``fault`` happen in ``root`` and run its command there."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(logging.root, "handlers", []))  # as outside of a test
        fault.damage(root, stack)
        before = _contents(root)
        ended = started(fault.command, root)
        after = _contents(root)
    said = ended.stderr + ended.stdout
    lines = said[max(0, said.find("Error:")) :].splitlines()
    message = re.sub(fault.elide or "$^", "…", "\n".join(line for line in lines if line))
    left = {name for name in before | after if before.get(name) != after.get(name)}
    return Told(ended.returncode, said, message, frozenset(left))


def _contents(root: Path) -> dict[str, frozenset[tuple[str, bytes]]]:
    """What every file holds, by the name in ``root`` that it lies under."""
    found: dict[str, set[tuple[str, bytes]]] = {path.name: set() for path in root.iterdir()}
    for path in root.rglob("*"):
        if path.is_file():
            place = path.relative_to(root)
            found[place.parts[0]].add((str(place), path.read_bytes()))
    return {name: frozenset(files) for name, files in found.items()}


def started(command: str, root: Path):
    """Run one command of slimdiff in ``root``, made small."""
    name, *rest = shlex.split(command)
    return run(name, *shlex.split(_SMALL.get(name, "")), *rest, cwd=root)
