"""Closed forms, one file a kind of site. Tensors in, tensors out; no model is known here.

Each kind offers two functions:

- ``decompose(moments, readers) -> Basis``: an *ordered* basis and the error at every width, so
  that any width is a prefix of the order;
- ``maps(basis, moments, width) -> Maps``: the linear maps that take the dense weights to the
  slim ones at one width. They do not depend on the weights, so the same maps carry a LoRA over.

Applying the maps is :mod:`slimdiff.surgery`'s work.
"""

from __future__ import annotations

from ..errors import SlimdiffError
from . import ffn, paper, qk, vo
from .basis import Basis, Maps, Method, Moments, of_reader, reader_moments

__all__ = [
    "EXACT",
    "METHODS",
    "PAPER",
    "Basis",
    "Maps",
    "Method",
    "Moments",
    "forms_of",
    "of_reader",
    "reader_moments",
]

EXACT: dict[str, Method] = {
    "qk": Method(qk.decompose, qk.maps),
    "vo": Method(vo.decompose, vo.maps),
    "ffn": Method(ffn.decompose, ffn.maps),
}

PAPER: dict[str, Method] = {
    "qk": Method(paper.qk_decompose, paper.qk_maps),
    "vo": Method(paper.vo_decompose, paper.vo_maps),
    "ffn": Method(paper.ffn_decompose, paper.ffn_maps),
}

METHODS: dict[str, dict[str, Method]] = {"exact": EXACT, "paper": PAPER}


def forms_of(method: str) -> dict[str, Method]:
    """The closed forms of that name by kind of site. Raises SlimdiffError if there are none."""
    if method not in METHODS:
        raise SlimdiffError(f"Unknown method '{method}'; expected one of {', '.join(METHODS)}.")
    return METHODS[method]
