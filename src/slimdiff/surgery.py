"""Cuts Linears in place. Applies maps that were decided elsewhere; makes no choice itself.

A writer's slab ``S`` (rows) becomes ``blockdiag(P)^T S``, its bias alike; a reader's slab
(columns) becomes ``S T^T`` and its bias gains ``S t`` (:data:`slimdiff.decomposition.Maps`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .attention import fit_attention_, is_attention, put_back_, width_settings
from .decomposition import Maps, of_reader
from .environment import float64
from .sites import Part, Site

__all__ = [
    "cut_site_",
    "project_columns",
    "project_rows",
    "reader_weights",
    "reshape_",
    "resized",
    "trial",
]


def reader_weights(model: nn.Module, site: Site) -> Tensor:
    """What reads the site's inner width, float64, shape (H, width, D), readers side by side."""
    slabs = [
        _linear(model, part).weight.detach()[:, part.start : part.start + part.size].T
        for part in site.parts
        if part.reads
    ]
    if not slabs:
        return torch.empty(site.heads, site.width, 0, dtype=torch.float64)
    return float64(torch.cat(slabs, 1)).unflatten(0, (site.heads, site.width))


def cut_site_(model: nn.Module, site: Site, maps: Maps) -> None:
    """Replace the Linears of one site by smaller ones, in place."""
    for name in dict.fromkeys(part.linear for part in site.parts):
        parts = [part for part in site.parts if part.linear == name]
        old = _linear(model, parts[0])
        cut = _cut_columns if parts[0].reads else _cut_rows
        weight, bias = cut(old, parts, maps)
        _set_linear(model, name, _new_linear(old, weight, bias))
    _fit(model, site)


def reshape_(model: nn.Module, sites: Sequence[Site], widths: Mapping[str, int]) -> None:
    """Give the Linears the sizes that ``widths`` says, values undefined, in place.

    For loading: the weights that follow must come from a model cut to the same widths.
    """
    for site in sites:
        width = widths.get(site.name, site.width)
        if width == site.width:
            continue
        for part in site.parts:
            old = _linear(model, part)
            less = site.heads * (site.width - width)
            rows = old.out_features - (0 if part.reads else less)
            columns = old.in_features - (less if part.reads else 0)
            weight = old.weight.new_empty(rows, columns)
            bias = None if old.bias is None else old.bias.new_empty(rows)
            _set_linear(model, part.linear, _new_linear(old, weight, bias))
        _fit(model, site)


def resized(model: nn.Module, sites: Sequence[Site], widths: Mapping[str, int]) -> Any:
    """A model cut to ``widths`` whose cut weights are meaningless: to time, not to use.

    All tensors are ``model``'s own, the cut ones views of the dense, so it costs no memory.
    """
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    copied = copy.deepcopy(model, shared)
    reshape_(copied, sites, widths)
    for name in dict.fromkeys(part.linear for site in sites for part in site.parts):
        new, old = copied.get_submodule(name), model.get_submodule(name)
        for key, value in new.named_parameters():
            flat = old.get_parameter(key).detach().flatten()[: value.numel()]
            new.register_parameter(key, nn.Parameter(flat.view_as(value), requires_grad=False))
    return copied


@contextmanager
def trial(model: nn.Module, site: Site, maps: Maps) -> Iterator[None]:
    """Cut one site inside the ``with`` block only; everything is put back afterwards."""
    names = dict.fromkeys(part.linear for part in site.parts)
    linears = {name: model.get_submodule(name) for name in names}
    module = model.get_submodule(site.module)
    settings = width_settings(module) if is_attention(module) else {}
    try:
        cut_site_(model, site, maps)
        yield
    finally:
        for name, linear in linears.items():
            _set_linear(model, name, linear)
        put_back_(module, settings)


def project_rows(matrix: Tensor, parts: Sequence[Part], maps: Maps) -> Tensor:
    """The rows of ``matrix`` that ``parts`` name, each slab taken through its writer's map."""
    pieces, end = [], 0
    for part in sorted(parts, key=lambda part: part.start):
        slab = matrix[part.start : part.start + part.size]
        pieces += [matrix[end : part.start], _project_slab(slab, maps[part.role])]
        end = part.start + part.size
    return torch.cat([*pieces, matrix[end:]])


def project_columns(matrix: Tensor, part: Part, maps: Maps) -> tuple[Tensor, Tensor]:
    """The columns that ``part`` names taken through the reader's map, and the bias they leave.

    ``matrix``: (D, columns). Returns (D, fewer columns) and ``slab @ t``, (D,).
    """
    end = part.start + part.size
    slab = matrix[:, part.start : end]
    transfer = maps[of_reader(part.role, part.reader)].to(slab)
    row = maps[of_reader("bias", part.reader)].to(slab)
    return torch.cat([matrix[:, : part.start], slab @ transfer.T, matrix[:, end:]], 1), slab @ row


def _project_slab(slab: Tensor, projection: Tensor) -> Tensor:
    """(Hd, D) by a map (H, d, r) -> (Hr, D); by an index (r,) -> (r, D)."""
    projection = projection.to(slab.device)
    if projection.dim() == 1:
        return slab[projection]
    heads, width, _ = projection.shape
    return torch.einsum("hdr,hdi->hri", projection, slab.unflatten(0, (heads, width))).flatten(
        0, 1
    )


def _cut_rows(old: nn.Linear, parts: Sequence[Part], maps: Maps) -> tuple[Tensor, Tensor | None]:
    weight = float64(old.weight.detach())
    if old.bias is None:
        return project_rows(weight, parts, maps), None
    cut = project_rows(torch.cat([weight, float64(old.bias.detach())[:, None]], 1), parts, maps)
    return cut[:, :-1], cut[:, -1]


def _cut_columns(
    old: nn.Linear, parts: Sequence[Part], maps: Maps
) -> tuple[Tensor, Tensor | None]:
    (part,) = parts
    cut, shift = project_columns(float64(old.weight.detach()), part, maps)
    return cut, None if old.bias is None else float64(old.bias.detach()) + shift


def _new_linear(old: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear of the new size that holds the given values in ``old``'s dtype and device."""
    rows, columns = weight.shape
    new = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.to(old.weight), requires_grad=old.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.to(old.weight), requires_grad=old.weight.requires_grad)
    return new.train(old.training)


def _linear(model: nn.Module, part: Part) -> nn.Linear:
    linear = model.get_submodule(part.linear)
    assert isinstance(linear, nn.Linear), f"{part.linear} is {type(linear).__name__}"
    return linear


def _set_linear(model: nn.Module, name: str, linear: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, linear)


def _fit(model: nn.Module, site: Site) -> None:
    module = model.get_submodule(site.module)
    if is_attention(module):
        fit_attention_(module, rescale=site.kind == "qk")
