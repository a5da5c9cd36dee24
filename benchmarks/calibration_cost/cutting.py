"""What plan and apply take on a model of published shapes, statistics at hand."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from slimdiff.recording import empty_sums, moment_mib
from slimdiff.sites import Site
from slimdiff.statistics import Gain
from slimdiff.surgery import reader_weights

__all__ = ["cutting_cost"]

_CPU = torch.device("cpu")
_RANK = 16


def cutting_cost(build: Callable[[], Any], share: float) -> dict[str, Any]:
    """Seconds to plan and apply ``share`` of the parameters, and the peak memory of doing so.

    Statistics lie on disk, as calibration leaves them. Decomposition, which belongs to
    calibrating, is timed last, for one site of each shape.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = build()
        _filled(model).save(folder)
        dense = weight_bytes(model) / 2**20
        before = peak_mib(_CPU)
        stats = Statistics.load(folder)
        begin = time.perf_counter()
        plan = allocate(stats, Budget(params=share))
        planned = time.perf_counter()
        compress_(SimpleNamespace(unet=model), stats, plan)  # pyright: ignore
        applied = time.perf_counter()
        peak = peak_mib(_CPU)
        return {
            "dtype": stats.header.source.dtype,
            "sites": len(stats.header.sites),
            "plan_seconds": planned - begin,
            "apply_seconds": applied - planned,
            "model_mib": dense,
            "statistics_mib": moment_mib(stats.header.sites),
            "peak_mib_before": before,
            "peak_mib": peak,
            "peak_to_model": peak / dense,
            "decompose_seconds": _decomposed(build(), stats),
        }


def _filled(model: Any) -> Statistics:
    """The made-up statistics with moments of full size: a diagonal and a little beside it."""
    stats = made_up(model)
    source = replace(stats.header.source, hash=fingerprint(model))
    gains = {site.name: _gain(stats, site) for site in stats.header.sites}
    header = replace(stats.header, source=source, gains=gains)
    bases = {
        site.name: Basis(_directions(site), stats.bases[site.name].errors)
        for site in stats.header.sites
    }
    return Statistics(header, _MadeUpSums(header.sites), bases)


def _gain(stats: Statistics, site: Site) -> Gain:
    """The gain that gives the same prices, said at half the width as a measured one is."""
    half = site.width // 2
    error = stats.header.gains[site.name].error * float(stats.bases[site.name].errors[half])
    return Gain(half, error)


class _MadeUpSums(Mapping[str, Mapping[str, Tensor]]):
    """Site -> sums, made when asked for: together they would take more than the model."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = {site.name: site for site in sites}

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        named = empty_sums([self._sites[name]], _CPU)[name]
        for total in named.values():
            if total.dim() > 1:
                _fill_(total)
        return named

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _fill_(total: Tensor) -> None:
    mixed = torch.randn(*total.shape[:-1], _RANK, dtype=total.dtype)
    total += mixed @ mixed.mT
    total.diagonal(dim1=-2, dim2=-1).add_(float(total.shape[-1]))


def _directions(site: Site) -> dict[str, Tensor]:
    if site.kind == "ffn":
        return {"order": torch.randperm(site.width)}
    eye = torch.eye(site.width, dtype=torch.float64).repeat(site.heads, 1, 1)
    return {"query": eye, "key": eye.clone()} if site.kind == "qk" else {"value": eye}


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
