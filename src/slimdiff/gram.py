"""Gram matrices of rows, added to float64 sums where those lie.

A wide one is worth halving, since it is symmetric: it is made and added in stripes of rows, each
from the diagonal on. What lies below follows once, when nothing more is added (:func:`mirror_`).
Few rows wait for more, since adding to a wide sum takes as long as multiplying some dozens.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

__all__ = ["Moment", "mirror_"]

_NARROWEST, _MOST = 128, 16
_ENOUGH = 1024


class Moment:
    """A sum in the making: ``total``, of which the upper triangle is kept, and rows that wait.

    ``total`` is the moment of ``[x, 1]``, shape (F+1, F+1), or one per head, shape (H, d, d).
    """

    def __init__(self, total: Tensor) -> None:
        self.total = total
        self._waiting: Tensor | None = None
        self._count, self._scale = 0, 1.0

    def add(self, rows: Tensor, scale: float) -> bool:
        """Count ``rows``, shape (n, F) or (n, Hd), ``scale`` times; whether ``total`` changed."""
        flushed = False
        if scale != self._scale or self._count + len(rows) > _ENOUGH:
            flushed = self.flush()
            self._scale = scale
        if len(rows) >= _ENOUGH:
            _add_gram_(self.total, rows, scale)
            return True
        if self._waiting is None:
            self._waiting = rows.new_empty(_ENOUGH, rows.shape[1])
        self._waiting[self._count : self._count + len(rows)] = rows
        self._count += len(rows)
        return flushed

    def flush(self) -> bool:
        """Add what waits to ``total``; whether there was anything."""
        count, self._count = self._count, 0
        if not count or self._waiting is None:
            return False
        _add_gram_(self.total, self._waiting[:count], self._scale)
        return True


def mirror_(total: Tensor) -> None:
    """Copy the upper triangle of a matrix to the lower, in place."""
    for start, end in _stripes(len(total)):
        square = total[start:end, start:end]
        square.copy_(square.triu() + square.triu(1).mT)
        total[end:, start:end] = total[start:end, end:].mT


def _add_gram_(total: Tensor, rows: Tensor, scale: float) -> None:
    """Add ``scale`` times the moment of ``rows`` to the upper triangle of ``total``."""
    if total.dim() == 3:
        heads = rows.unflatten(1, total.shape[:2]).transpose(0, 1)
        _add_(total, heads.mT @ heads, scale)
        return
    for start, end in _stripes(rows.shape[1]):
        product = rows[:, start:end].mT @ rows[:, start:]
        _add_(total[start:end, start:-1], product, scale)
    _add_(total[:-1, -1], rows.sum(0), scale)
    total[-1, -1] += scale * len(rows)


def _add_(total: Tensor, product: Tensor, scale: float) -> None:
    total.add_(product.to(total.device), alpha=scale)


def _stripes(size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of ``_MOST`` stripes or fewer, none but the last under ``_NARROWEST`` wide."""
    step = max(_NARROWEST, -(-size // _MOST))
    for start in range(0, size, step):
        yield start, min(size, start + step)
