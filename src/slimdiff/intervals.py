"""How sure a mean over prompts is: 95 % intervals by the bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Interval", "mean_interval", "ratio_interval"]

Interval = tuple[float, float]

_RESAMPLES = 2000


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """95 % interval of ``sum(above) / sum(below)``, prompts drawn again with replacement.

    None for fewer than two prompts. The draws are seeded: the same values give the same interval.
    """
    n = len(above)
    if n < 2:
        return None
    picks = np.random.default_rng(0).integers(0, n, (_RESAMPLES, n))
    sums = np.asarray(below, dtype=float)[picks].sum(1)
    ratios = np.asarray(above, dtype=float)[picks].sum(1) / np.maximum(sums, 1e-300)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of ``values``; None for fewer than two."""
    return ratio_interval(values, [1.0] * len(values))
