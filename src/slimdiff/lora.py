"""Adapters made for the dense model, taken into the slim basis.

A LoRA adds ``B A`` to a weight ``W``: A (rho, in), B (out, rho). Slimming is linear in the weight,
so the adapter of the slim weight is the slimmed adapter::

    writers (query, key, value, up, gate):   B' = P^T B
    readers (output, down):                  A' = A T^T,   and the bias gains  B (A t)

with the maps ``P``, ``T`` and ``t`` of :mod:`slimdiff.decomposition`. Loading the result on the
slim model equals slimming the model that the adapter was fused into, by the same maps. What the
adapter says outside the kept basis is lost; its share of |B A|^2 is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .decomposition import Maps
from .errors import SlimdiffError
from .sites import Part, Site
from .surgery import project_columns, project_rows

__all__ = ["Carried", "carry_over", "refuse_other_adapters"]

_OTHERS = {
    "lora_magnitude_vector": "DoRA",
    "dora_scale": "DoRA",
    ".lokr_": "LoKr",
    ".hada_": "LoHa",
    ".oft_": "OFT",
    ".diff": "full-weight",
}
_DOWN = re.compile(r"(.+)\.lora_A\.weight")


@dataclass(frozen=True)
class Carried:
    """A state dict in the slim basis, and what became of the adapter.

    ``biases``: Linear -> bias that its ``lora_B`` must have, (D,), unscaled. ``lost``: Linear ->
    share of its adapter's energy outside the kept basis; ``lost_share``: of the whole adapter's.
    """

    state_dict: dict[str, Tensor]
    biases: dict[str, Tensor]
    lost: dict[str, float]
    lost_share: float


def refuse_other_adapters(names: Iterable[str]) -> None:
    """Raise SlimdiffError for adapters that are not a sum ``W + B A``."""
    for name in names:
        for mark, kind in _OTHERS.items():
            if mark in name:
                raise SlimdiffError(
                    f"'{name}' belongs to a {kind} adapter; a slim model takes plain LoRA only. "
                    "Fuse it into the dense model, then slim that."
                )


def carry_over(
    state_dict: Mapping[str, Tensor], sites: Sequence[Site], maps: Mapping[str, Maps]
) -> Carried:
    """Take a LoRA in PEFT's naming, ``<linear>.lora_A.weight``, into the slim basis.

    Linears that were not cut keep their tensors. Raises SlimdiffError for other kinds of
    adapters, and for shapes that fit neither the dense model nor, already carried over, the slim.
    """
    refuse_other_adapters(state_dict)
    found, biases, lost = dict(state_dict), {}, {}
    outside = energy = 0.0
    modules = [m[1] for name in state_dict if (m := _DOWN.fullmatch(name))]
    for site in sites:
        if site.name not in maps:
            continue
        for linear in dict.fromkeys(part.linear for part in site.parts):
            parts = [part for part in site.parts if part.linear == linear]
            if linear not in modules or _is_slim(linear, parts, found, maps[site.name]):
                continue
            down, up = (found[f"{linear}.lora_{side}.weight"] for side in "AB")
            a, b, own = down.double(), up.double(), f"{linear}.lora_B.bias"
            _check_shapes(linear, parts, a, b)
            whole = _energy(b, a)
            if parts[0].reads:
                a_new, shift = project_columns(a, parts[0], maps[site.name])
                beyond = _energy(b, a - _inside(a, parts[0], maps[site.name]))
                found[f"{linear}.lora_A.weight"] = a_new.to(down)
                biases[linear] = (b @ shift + found.get(own, 0.0)).to(up)
            else:
                beyond = _rows_beyond(b, a, parts, maps[site.name])
                for name in {f"{linear}.lora_B.weight", own} & found.keys():
                    old = found[name]
                    new = project_rows(old.double().view(len(b), -1), parts, maps[site.name])
                    found[name] = new.view(-1, *old.shape[1:]).to(up)
            lost[linear] = beyond / max(whole, 1e-300)
            outside, energy = outside + beyond, energy + whole
    return Carried(found, biases, lost, outside / max(energy, 1e-300))


def _is_slim(
    linear: str, parts: Sequence[Part], tensors: Mapping[str, Tensor], maps: Maps
) -> bool:
    """Whether the adapter of ``linear`` has the slim shape already."""
    side = 1 if parts[0].reads else 0
    found = tensors[f"{linear}.lora_{'A' if side else 'B'}.weight"].shape[side]
    return found == sum(_slim_size(part, maps) for part in parts)


def _slim_size(part: Part, maps: Maps) -> int:
    projection = maps[part.role]
    if part.reads or projection.dim() == 1:
        return projection.shape[0]
    return projection.shape[0] * projection.shape[2]


def _check_shapes(linear: str, parts: Sequence[Part], a: Tensor, b: Tensor) -> None:
    size, across = sum(part.size for part in parts), parts[0].across
    wanted = (size, across) if parts[0].reads else (across, size)
    if (a.shape[1], b.shape[0]) != wanted:
        raise SlimdiffError(
            f"The adapter of '{linear}' maps {a.shape[1]} to {b.shape[0]} features; expected "
            f"{wanted[0]} to {wanted[1]}, as in the dense model. It is for another model."
        )


def _energy(b: Tensor, a: Tensor) -> float:
    """|B A|^2 without forming B A: tr(B^T B A A^T)."""
    return float(((b.mT @ b) * (a @ a.mT)).sum())


def _inside(a: Tensor, part: Part, maps: Maps) -> Tensor:
    """``a`` (rho, n) projected on the inputs that the reader's map ``T`` (r, n) can see."""
    transfer = maps[part.role].to(a)
    return a @ torch.linalg.pinv(transfer) @ transfer


def _rows_beyond(b: Tensor, a: Tensor, parts: Sequence[Part], maps: Maps) -> float:
    """Energy of the rows of ``B A`` outside the span that the writers' maps keep."""
    total = 0.0
    for part in parts:
        slab, projection = b[part.start : part.start + part.size], maps[part.role].to(b.device)
        if projection.dim() == 1:
            gone = torch.ones(part.size, dtype=torch.bool, device=b.device)
            gone[projection] = False
            total += _energy(slab[gone], a)
            continue
        heads, width, _ = projection.shape
        basis = projection.to(b)
        rows = slab.unflatten(0, (heads, width))
        seen = basis @ torch.linalg.pinv(basis) @ rows
        total += _energy((rows - seen).flatten(0, 1), a)
    return total
