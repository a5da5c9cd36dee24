"""Which few rows stand in for all: two greedy choices among unit vectors.

Rows are unit vectors e_i. A set S is as good as its coverage, the mean over all rows of the cosine
to the nearest chosen one:

    coverage(S) = 1/n sum_i max_{j in S} <e_i, e_j>

- :func:`facility_location` adds the row that raises coverage most. Greedy comes within
  1 - 1/e of the best set, coverage counted from -1, where every cosine starts (Nemhauser, Wolsey,
  Fisher, "An analysis of approximations for maximizing submodular set functions", 1978). Gains
  only shrink as S grows, so old gains bound new ones and few are computed again (Minoux,
  "Accelerated greedy algorithms", 1978).
- :func:`k_center` adds the row that is farthest from S. The largest distance |e_i - e_j| of
  any row to S is at most twice the least possible (Gonzalez, "Clustering to minimize the
  maximum intercluster distance", 1985).

Both are greedy: the first N of a longer answer are the answer for N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import SlimdiffError

__all__ = ["METHODS", "Cover", "coverage", "facility_location", "k_center"]

# What two sums of the same numbers in another order differ by, and more; less is a tie.
_TIE = 1e-12
_BLOCK = 64


@dataclass(frozen=True)
class Cover:
    """Rows in the order they were chosen, and the coverage after each.

    ``order`` is (count,) int64, ``coverage`` (count,) float64.
    """

    order: Tensor
    coverage: Tensor


def coverage(embeddings: Tensor, chosen: Tensor) -> float:
    """Mean over the (n, D) unit rows of the largest cosine to the ``chosen`` ones, (k,) int64."""
    nearest = [(rows @ embeddings[chosen].T).amax(1) for rows in embeddings.split(_BLOCK)]
    return float(torch.cat(nearest).mean())


def facility_location(embeddings: Tensor, count: int) -> Cover:
    """Greedy for coverage: each row chosen is the one that adds most, ties to the first.

    ``embeddings``: (n, D) float64, unit rows. Takes memory for n x 64 cosines, never n x n.
    """
    nearest = _start(embeddings, count)
    bound = torch.cat([_gains(embeddings, nearest, j) for j in _blocks(embeddings)])
    chosen = _Chosen(embeddings, nearest)
    for _ in range(count):
        pick = _largest_gain(embeddings, nearest, bound)
        bound[pick] = -torch.inf
        chosen.add(pick)
    return chosen.cover()


def k_center(embeddings: Tensor, count: int) -> Cover:
    """Farthest first: each row chosen is the one least like those before, ties to the first.

    The first is the one most like all others. ``embeddings``: (n, D) float64, unit rows.
    """
    chosen = _Chosen(embeddings, _start(embeddings, count))
    free = embeddings.new_zeros(len(embeddings))
    score = embeddings @ embeddings.mean(0)
    for _ in range(count):
        pick = _first_largest(score + free)
        free[pick] = -torch.inf
        chosen.add(pick)
        score = -chosen.nearest
    return chosen.cover()


METHODS: dict[str, Callable[[Tensor, int], Cover]] = {
    "facility": facility_location,
    "k-center": k_center,
}


class _Chosen:
    """Rows chosen so far; ``nearest`` (n,) holds every row's cosine to the nearest of them."""

    def __init__(self, embeddings: Tensor, nearest: Tensor) -> None:
        self.embeddings, self.nearest = embeddings, nearest
        self._order: list[int] = []
        self._coverage: list[float] = []

    def add(self, row: int) -> None:
        cosines = self.embeddings @ self.embeddings[row]
        torch.maximum(self.nearest, cosines, out=self.nearest)
        self._order.append(row)
        self._coverage.append(float(self.nearest.mean()))

    def cover(self) -> Cover:
        return Cover(torch.tensor(self._order), torch.tensor(self._coverage, dtype=torch.float64))


def _start(embeddings: Tensor, count: int) -> Tensor:
    """Cosine of every row to the nearest of no rows: the least there is."""
    if not 1 <= count <= len(embeddings):
        raise SlimdiffError(
            f"{count} prompts of {len(embeddings)} were asked for; expected 1 to "
            f"{len(embeddings)}. Give a larger pool."
        )
    return embeddings.new_full((len(embeddings),), -1.0)


def _blocks(embeddings: Tensor) -> tuple[Tensor, ...]:
    return torch.arange(len(embeddings)).split(_BLOCK)


def _gains(embeddings: Tensor, nearest: Tensor, rows: Tensor) -> Tensor:
    """What each of ``rows`` (k,) would add to the coverage, (k,)."""
    cosines = embeddings @ embeddings[rows].T
    return (cosines - nearest[:, None]).clamp(min=0).mean(0)


def _largest_gain(embeddings: Tensor, nearest: Tensor, bound: Tensor) -> int:
    """The row of largest gain; ``bound`` holds gains that may be too large and is brought down.

    Every row whose bound reaches the largest fresh gain is computed afresh, so none is missed.
    """
    fresh = torch.full_like(bound, -torch.inf)
    while True:
        waiting = (fresh == -torch.inf) & (bound >= fresh.max() - _TIE) & (bound > -torch.inf)
        rows = waiting.nonzero()[:, 0]
        if not len(rows):
            return _first_largest(fresh)
        rows = rows[bound[rows].argsort(descending=True)[:_BLOCK]]
        fresh[rows] = bound[rows] = _gains(embeddings, nearest, rows)


def _first_largest(score: Tensor) -> int:
    return int((score >= score.max() - _TIE).nonzero()[0])
