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

from .decomposition import Maps, of_reader
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
    slabs = _slabs(sites)
    for linear in [m[1] for name in state_dict if (m := _DOWN.fullmatch(name))]:
        owners = slabs.get(linear, [])
        cut = [(site, parts) for site, parts in owners if site.name in maps]
        if not cut or _is_slim(linear, owners, found, maps):
            continue
        _check_shapes(linear, owners, found)
        beyond, whole = 0.0, _energy(*_double(linear, found))
        for site, parts in cut:
            project = _project_reader_ if parts[0].reads else _project_writer_
            beyond += project(linear, parts, maps[site.name], found, biases)
        lost[linear] = beyond / max(whole, 1e-300)
        outside, energy = outside + beyond, energy + whole
    return Carried(found, biases, lost, outside / max(energy, 1e-300))


_Owners = list[tuple[Site, list[Part]]]


def _slabs(sites: Sequence[Site]) -> dict[str, _Owners]:
    """Linear -> the sites that own a slab of it, in their order, and those slabs."""
    found: dict[str, _Owners] = {}
    for site in sites:
        for linear in dict.fromkeys(part.linear for part in site.parts):
            parts = [part for part in site.parts if part.linear == linear]
            found.setdefault(linear, []).append((site, parts))
    return found


def _double(linear: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """``B`` and ``A`` of one adapter in float64."""
    return tensors[f"{linear}.lora_B.weight"].double(), tensors[f"{linear}.lora_A.weight"].double()


def _project_reader_(
    linear: str,
    parts: Sequence[Part],
    maps: Maps,
    tensors: dict[str, Tensor],
    biases: dict[str, Tensor],
) -> float:
    """Take one slab of ``A`` through the reader's map; returns the energy that is lost."""
    b, a = _double(linear, tensors)
    (part,) = parts
    down, own = f"{linear}.lora_A.weight", f"{linear}.lora_B.bias"
    new, shift = project_columns(a, part, maps)
    old = biases.get(linear, tensors.get(own, 0.0))
    biases[linear] = (b @ shift + old).to(tensors[f"{linear}.lora_B.weight"])
    tensors[down] = new.to(tensors[down])
    slab = a[:, part.start : part.start + part.size]
    return _energy(b, slab - _inside(slab, part, maps))


def _project_writer_(
    linear: str,
    parts: Sequence[Part],
    maps: Maps,
    tensors: dict[str, Tensor],
    biases: dict[str, Tensor],
) -> float:
    """Take ``B`` and its bias through the writers' maps; returns the energy that is lost."""
    b, a = _double(linear, tensors)
    beyond = _rows_beyond(b, a, parts, maps)
    for name in {f"{linear}.lora_B.weight", f"{linear}.lora_B.bias"} & tensors.keys():
        old = tensors[name]
        new = project_rows(old.double().view(len(b), -1), parts, maps)
        tensors[name] = new.view(-1, *old.shape[1:]).to(old)
    return beyond


def _is_slim(
    linear: str, owners: _Owners, tensors: Mapping[str, Tensor], maps: Mapping[str, Maps]
) -> bool:
    """Whether the adapter of ``linear`` has the slim shape already."""
    slabs = [(part, maps.get(site.name)) for site, parts in owners for part in parts]
    return _size(linear, owners, tensors) == sum(_slim_size(part, found) for part, found in slabs)


def _slim_size(part: Part, maps: Maps | None) -> int:
    if maps is None:
        return part.size
    projection = maps[of_reader(part.role, part.reader)]
    if part.reads or projection.dim() == 1:
        return projection.shape[0]
    return projection.shape[0] * projection.shape[2]


def _size(linear: str, owners: _Owners, tensors: Mapping[str, Tensor]) -> int:
    """Features of the adapter on the side where the slabs lie."""
    reads = owners[0][1][0].reads
    return tensors[f"{linear}.lora_{'A' if reads else 'B'}.weight"].shape[1 if reads else 0]


def _check_shapes(linear: str, owners: _Owners, tensors: Mapping[str, Tensor]) -> None:
    parts = [part for _, parts in owners for part in parts]
    size, across = sum(part.size for part in parts), parts[0].across
    wanted = (size, across) if parts[0].reads else (across, size)
    b, a = _double(linear, tensors)
    if (a.shape[1], b.shape[0]) != wanted:
        raise SlimdiffError(
            f"The adapter of '{linear}' maps {a.shape[1]} to {b.shape[0]} features; expected "
            f"{wanted[0]} to {wanted[1]}, as in the dense model. It is for another model."
        )


def _energy(b: Tensor, a: Tensor) -> float:
    """|B A|^2 without forming B A: tr(B^T B A A^T)."""
    return float(((b.mT @ b) * (a @ a.mT)).sum())


def _inside(slab: Tensor, part: Part, maps: Maps) -> Tensor:
    """``slab`` (rho, n) projected on the inputs that the reader's map ``T`` (r, n) can see."""
    transfer = maps[of_reader(part.role, part.reader)].to(slab)
    return slab @ torch.linalg.pinv(transfer) @ transfer


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
