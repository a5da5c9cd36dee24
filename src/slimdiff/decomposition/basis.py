"""The values that pass between statistics, decomposition and surgery."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sums import moved

Moments = Mapping[str, Tensor]
"""Additive sums of one site: ``query``/``key`` (H, d, d) for qk; ``augmented`` (n+1, n+1) else,
one for each reader of a joint attention (:func:`of_reader`)."""

Maps = Mapping[str, Tensor]
"""Maps by role. Writers: (H, d, r), or (r,) channel indices. Readers: ``T`` (Hr, Hd) as
``output``/``down`` and the bias row ``t`` (Hd,) as ``bias``: ``W' = T W``, ``b' = b + t W``. A
second reader has a pair of its own, ``output.1`` and ``bias.1``."""


def of_reader(name: str, index: int) -> str:
    """The key under which reader number ``index`` keeps what the first one keeps as ``name``."""
    return f"{name}.{index}" if index else name


def reader_moments(moments: Moments) -> list[Tensor]:
    """The ``augmented`` sums of all readers, in their order."""
    found: list[Tensor] = []
    while (name := of_reader("augmented", len(found))) in moments:
        found.append(moments[name])
    return found


@dataclass(frozen=True)
class Basis:
    """An ordered basis of a site and what each width loses.

    ``tensors`` are the ordered directions (their meaning is the kind's own); ``errors`` has
    shape (width + 1,): entry r is the share of the site's output energy lost when r are kept.
    """

    tensors: Mapping[str, Tensor]
    errors: Tensor

    def named(self) -> dict[str, Tensor]:
        """All tensors by name, ``errors`` among them: the form in which a basis travels."""
        return {**self.tensors, "errors": self.errors}

    @classmethod
    def of(cls, named: Mapping[str, Tensor]) -> Basis:
        """The inverse of :meth:`named`."""
        return cls({k: v for k, v in named.items() if k != "errors"}, named["errors"])


@dataclass(frozen=True)
class Method:
    """How one kind of site is decomposed and mapped."""

    decompose: Callable[[Moments, Tensor], Basis]
    maps: Callable[[Basis, Moments, int], Maps]

    def maps_on(self, place: torch.device, basis: Basis, moments: Moments, width: int) -> Maps:
        """``maps``, worked out on ``place`` wherever basis and moments lie."""
        here = Basis(moved(basis.tensors, place), basis.errors)
        return self.maps(here, moved(moments, place), width)
