"""The values that pass between statistics, decomposition and surgery."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Moments = Mapping[str, Tensor]
"""Additive sums of one site: ``query``/``key`` (H, d, d) for qk; ``augmented`` (n+1, n+1) else."""

Maps = Mapping[str, Tensor]
"""Maps by role. Writers: (H, d, r), or (r,) channel indices. Readers: ``T`` (Hr, Hd) as
``output``/``down`` and the bias row ``t`` (Hd,) as ``bias``: ``W' = T W``, ``b' = b + t W``."""


@dataclass(frozen=True)
class Basis:
    """An ordered basis of a site and what each width loses.

    ``tensors`` are the ordered directions (their meaning is the kind's own); ``errors`` has
    shape (width + 1,): entry r is the share of the site's output energy lost when r are kept.
    """

    tensors: Mapping[str, Tensor]
    errors: Tensor


@dataclass(frozen=True)
class Method:
    """How one kind of site is decomposed and mapped."""

    decompose: Callable[[Moments, Tensor], Basis]
    maps: Callable[[Basis, Moments, int], Maps]
