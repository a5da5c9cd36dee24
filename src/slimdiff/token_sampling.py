"""Which tokens of a sequence stand for all of them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .errors import SlimdiffError

__all__ = ["SHARE", "TokenSampling"]

SHARE = 0.25
"""Share of each sequence that calibration reads by default."""

_LEAST = 8
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class TokenSampling:
    """Which tokens of each sequence are read, drawn by ``seed``.

    ``tokens`` is how many at most, or, below 1, a share of the sequence (of 8 tokens at least);
    None reads all.
    """

    tokens: int | float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        tokens = self.tokens
        fits = 0 < tokens < 1 if isinstance(tokens, float) else tokens is None or tokens >= 1
        if not fits:
            raise SlimdiffError(
                f"tokens is {tokens}; expected a whole number from 1 on, a share of each sequence "
                "between 0 and 1, or None for all."
            )

    def count(self, length: int) -> int:
        """How many tokens of a sequence are read."""
        if self.tokens is None:
            return length
        if isinstance(self.tokens, int):
            return min(length, self.tokens)
        return min(length, max(_LEAST, math.ceil(self.tokens * length)))

    def pick(self, length: int, timestep: float, device: torch.device = _CPU) -> Tensor | None:
        """Sorted positions, shape (n,), on ``device``, or None for all. Not to be written to."""
        count = self.count(length)
        return None if count == length else _drawn(count, length, self.seed, timestep, device)


@lru_cache(maxsize=8)  # all sites of a call ask for the same few
def _drawn(count: int, length: int, seed: int, timestep: float, device: torch.device) -> Tensor:
    digest = hashlib.sha256(f"{seed} {timestep:.6f}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randperm(length, generator=generator)[:count].sort().values.to(device)
