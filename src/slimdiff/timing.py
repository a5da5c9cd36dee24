"""Times that can be compared: runs in turn, warm, the accelerator waited for.

Runs that take turns meet the same load, so their ratio holds where their times drift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch.utils.benchmark.utils.timer import timer

__all__ = ["Rounds", "in_turn", "median_ratio"]

Rounds = list[tuple[float, ...]]
"""One row a round, in it the seconds of one call of every run."""

_TICK = 5e-3
"""Shortest stretch that is timed; shorter runs are called several times in a row."""


def in_turn(
    runs: Sequence[Callable[[], Any]],
    *,
    least: int = 5,
    most: int = 40,
    seconds: float = 20.0,
    warm_up: int = 1,
) -> Rounds:
    """Time every run once a round, for ``seconds``, but ``least`` to ``most`` rounds.

    The order turns from round to round, so that no run always follows the same one.
    """
    with torch.no_grad():
        for _ in range(warm_up):
            for run in runs:
                run()
        repeats = [max(1, round(_TICK / max(_seconds(run, 1), 1e-9))) for run in runs]
        rounds: Rounds = []
        begin = timer()
        while len(rounds) < least or (timer() - begin < seconds and len(rounds) < most):
            row = [0.0] * len(runs)
            order = range(len(runs)) if len(rounds) % 2 == 0 else reversed(range(len(runs)))
            for i in order:
                row[i] = _seconds(runs[i], repeats[i])
            rounds.append(tuple(row))
    return rounds


def median_ratio(rounds: Rounds, run: int, base: int) -> float:
    """Median over the rounds of one run's time to another's."""
    return median(row[run] / row[base] for row in rounds)


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    """Mean seconds of ``repeats`` calls in a row; ``timer`` waits for the accelerator."""
    start = timer()
    for _ in range(repeats):
        run()
    return (timer() - start) / repeats
