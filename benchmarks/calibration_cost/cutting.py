"""What plan and apply take on a model of published shapes, statistics at hand."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.models import made_up
from slimdiff import Budget, Statistics, allocate, compress_
from slimdiff.cost import weight_bytes
from slimdiff.decomposition import EXACT, Basis
from slimdiff.denoiser import fingerprint
from slimdiff.environment import peak_mib
from slimdiff.recording import empty_sums
from slimdiff.sites import Site
from slimdiff.surgery import reader_weights

__all__ = ["cutting_cost"]

_RANK = 16


def cutting_cost(model: Any, share: float) -> dict[str, Any]:
    """Seconds to decompose, plan and apply ``share`` of the parameters, and the peak memory.

    Decomposition, which belongs to calibrating, is timed for one site of each shape.
    """
    stats = _filled(model)
    before = peak_mib(torch.device("cpu"))
    begin = time.perf_counter()
    plan = allocate(stats, Budget(params=share))
    planned = time.perf_counter()
    dense = weight_bytes(model) / 2**20
    sites = len(stats.header.sites)
    decomposed = _decomposed(model, stats)
    start = time.perf_counter()
    compress_(SimpleNamespace(unet=model), stats, plan)  # pyright: ignore
    return {
        "sites": sites,
        "plan_seconds": planned - begin,
        "apply_seconds": time.perf_counter() - start,
        "decompose_seconds": decomposed,
        "model_mib": dense,
        "statistics_mib": _mib(stats),
        "peak_mib_before_apply": before,
        "peak_mib": peak_mib(torch.device("cpu")),
    }


def _filled(model: Any) -> Statistics:
    """The made-up statistics with moments of full size: a diagonal and a little beside it."""
    stats = made_up(model)
    source = replace(stats.header.source, hash=fingerprint(model))
    stats = replace(stats, header=replace(stats.header, source=source))
    sums = empty_sums(stats.header.sites, torch.device("cpu"))
    for named in sums.values():
        for total in named.values():
            if total.dim() > 1:
                _fill_(total)
    bases = {
        site.name: Basis(_directions(site), stats.bases[site.name].errors)
        for site in stats.header.sites
    }
    return Statistics(stats.header, sums, bases)


def _fill_(total: Tensor) -> None:
    mixed = torch.randn(*total.shape[:-1], _RANK, dtype=total.dtype)
    total += mixed @ mixed.mT
    total.diagonal(dim1=-2, dim2=-1).add_(float(total.shape[-1]))


def _directions(site: Site) -> dict[str, Tensor]:
    if site.kind == "ffn":
        return {"order": torch.randperm(site.width)}
    eye = torch.eye(site.width, dtype=torch.float64).repeat(site.heads, 1, 1)
    return {"query": eye, "key": eye} if site.kind == "qk" else {"value": eye}


def _decomposed(model: Any, stats: Statistics) -> float:
    """Seconds for all sites: one of each shape is decomposed, the others counted as equal."""
    seconds: dict[tuple[str, int, int], float] = {}
    for site in stats.header.sites:
        shape = (site.kind, site.heads, site.width)
        if shape not in seconds:
            begin = time.perf_counter()
            EXACT[site.kind].decompose(stats.sums[site.name], reader_weights(model, site))
            seconds[shape] = time.perf_counter() - begin
    return sum(seconds[site.kind, site.heads, site.width] for site in stats.header.sites)


def _mib(stats: Statistics) -> float:
    return sum(t.nbytes for named in stats.sums.values() for t in named.values()) / 2**20
