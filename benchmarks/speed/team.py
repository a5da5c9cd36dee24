"""Prompts a second of one process and of two under torchrun, one CPU thread each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from slimdiff import Statistics
from slimdiff.errors import SlimdiffError

__all__ = ["throughput"]

_ONE = (sys.executable, "-m")
_TWO = (*_ONE, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def throughput(prompts: int, steps: int, rounds: int) -> dict[str, Any]:
    """Calibrate the emoji pipeline both ways in turn; ratios are medians over the rounds.

    *sampling* is the part that every prompt adds to; *whole* is the command, with the loading of
    the library, the closed forms and the gains.
    """
    pairs = [(_timed(_ONE, prompts, steps), _timed(_TWO, prompts, steps)) for _ in range(rounds)]
    return {
        "prompts": prompts,
        "steps": steps,
        "rounds": pairs,
        **{name: median(one[name] / two[name] for one, two in pairs) for name in pairs[0][0]},
    }


def _timed(launcher: tuple[str, ...], prompts: int, steps: int) -> dict[str, float]:
    counts = ("--num-prompts", str(prompts), "--steps", str(steps))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with TemporaryDirectory() as place:
        folder = Path(place) / "statistics"
        command = [*launcher, "slimdiff", "calibrate", "emoji", *counts, "-o", str(folder)]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        whole = time.perf_counter() - begin
        if done.returncode:
            raise SlimdiffError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        return {"sampling": Statistics.load(folder).header.phases["sampling"], "whole": whole}
