"""Runs the code of the pages: ``pytest docs``. What is not run says so in a comment above it.

A page is one session, in a folder of its own: Python blocks share their names, and shell blocks
hold commands of slimdiff, each of which must succeed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from typing import Any

import torch
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from slimdiff.cli import cli

torch.set_num_threads(1)


def run_commands(example: Example) -> None:
    """Run each line in this process; errors of slimdiff fail the block."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        name, *arguments = shlex.split(line, comments=True) or [""]
        if name != "slimdiff":
            raise ValueError(f"'{line}' is no command of slimdiff; skip the block, saying why")
        cli.main(arguments, "slimdiff", standalone_mode=False)


def enter(names: dict[str, Any]) -> None:
    names["_left"], names["_folder"] = os.getcwd(), tempfile.mkdtemp()
    os.chdir(names["_folder"])


def leave(names: dict[str, Any]) -> None:
    os.chdir(names["_left"])
    shutil.rmtree(names["_folder"])


pytest_collect_file = Sybil(
    [PythonCodeBlockParser(), CodeBlockParser("shell", run_commands), SkipParser()],
    patterns=["*.md"],
    setup=enter,
    teardown=leave,
).pytest()
