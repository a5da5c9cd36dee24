"""The page of faults: a row for each, with the message that came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import FAULTS, Fault, Told

__all__ = ["PAGE", "page", "row"]

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

_HEAD = """\
# When things break

{%
  include-markdown "../README.md"
  start="## When things break, and at scale"
  end="## Loading, LoRA and friends"
%}

## Faults tried

`tests/faults` lets each of these happen to a folder with a tiny model, runs the command and takes
down what is said; a test holds this page to it. Unless a row says otherwise the exit code is 2,
and nothing in the folder is new or changed. "…" stands for what differs from run to run, or is
another library's word.
"""


def page(rows: Callable[[Fault], str]) -> str:
    """The whole page, ``rows`` giving the line of each fault."""
    sections = [_HEAD]
    for title, faults in FAULTS.items():
        lines = [f"### {title}", "", "| what goes wrong | what is said |", "|---|---|"]
        sections.append("\n".join([*lines, *map(rows, faults), ""]))
    return "\n".join(sections)


def row(fault: Fault, told: Told) -> str:
    """One line of the table."""
    said = [f"`{line}`" for line in told.message.splitlines()]
    if told.code != 2 or told.left:
        left = " and ".join(f"`{name}`" for name in sorted(told.left))
        said.append(f"exit code {told.code}{f', {left} is kept' if left else ''}")
    return f"| {fault.what}<br>`slimdiff {fault.command}` | {'<br>'.join(said)} |"
