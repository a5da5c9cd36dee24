"""Which tokens of a sequence stand for all of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TokenSampling"]


@dataclass(frozen=True)
class TokenSampling:
    """At most ``tokens`` tokens of each sequence are read, drawn by ``seed``; None reads all."""

    tokens: int | None = None
    seed: int = 0

    def pick(self, length: int, site: str, timestep: float) -> Tensor | None:
        """Sorted token positions, shape (n,), or None for all."""
        if self.tokens is None or length <= self.tokens:
            return None
        key = f"{self.seed} {site} {timestep:.6f}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(length, generator=generator)[: self.tokens].sort().values
