"""Measures what modules take at several widths, on this machine, on inputs of a real call.

One module of each shape is timed at up to nine widths, its own Linears resized; widths take
turns, so that a change in the machine's load falls on all of them. What was measured is kept in
the user's cache under the settings it depends on, shape by shape, and never measured twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm

from . import families
from .denoiser import denoiser, dtype_name, refuse_slim
from .environment import device_name, versions
from .gains import Call, one_call
from .grid import tied
from .latency import Curve, LatencyTable
from .sampling import Sampling
from .sites import Site
from .surgery import resized
from .timing import in_turn

__all__ = ["cache_folder", "latency_of", "measure_latency", "timed_call"]

_EIGHTHS = 8
_SHAPE_SECONDS = 6.0
_Inputs = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]


def measure_latency(
    pipe: DiffusionPipeline, sampling: Sampling | None = None, *, cache: Path | None = None
) -> LatencyTable:
    """Times of the denoiser's modules by width, at ``sampling``'s size and batch.

    Taken from ``cache`` (default: :func:`cache_folder`) if they were measured before with the
    same model class and configuration, device, dtype, shapes and versions; one that was
    interrupted goes on.

    Raises SlimdiffError if the denoiser is unknown or slim.
    """
    return latency_of(denoiser(pipe), timed_call(pipe, sampling or Sampling()), cache)


def latency_of(model: Any, call: Call, cache: Path | None = None) -> LatencyTable:
    """:func:`measure_latency` of a denoiser by itself, on the inputs of ``call``."""
    refuse_slim(model)
    settings = _settings(model, call)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    path = (cache or cache_folder()) / f"{key[:24]}.json"
    if path.is_file():
        table = LatencyTable.load(path)
        if table.complete:
            return table
    else:
        table = _begun(model, call, settings)
    return _measured(model, call, table, path)


def cache_folder() -> Path:
    """Where measured times are kept: ``$XDG_CACHE_HOME/slimdiff/latency``, by default ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "slimdiff" / "latency"


def timed_call(pipe: DiffusionPipeline, sampling: Sampling) -> Call:
    """The denoiser call that times are of: one batch of prompts, guided if the pipeline guides."""
    return one_call(pipe, [(i, "a picture") for i in range(sampling.batch_size)], sampling)


def _settings(model: Any, call: Call) -> dict[str, Any]:
    config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    described = json.dumps(config, sort_keys=True, default=str)
    return {
        "denoiser": type(model).__name__,
        "config": hashlib.sha256(described.encode()).hexdigest()[:16],
        "device": device_name(torch.device(model.device)),
        "dtype": dtype_name(model),
        "inputs": _shapes([*call.args, *call.kwargs.values()]),
        "versions": versions(),
    }


def _begun(model: Any, call: Call, settings: dict[str, Any]) -> LatencyTable:
    """A table without curves: the dense step and the shape of every site."""
    groups = tied(families.find(model).sites(model))
    inputs = _inputs(model, groups, call)
    shapes = {
        site.name: _shape(members, *inputs[module])
        for module, members in groups
        for site in members
    }
    rounds = in_turn([lambda: model(*call.args, **call.kwargs)], least=3, most=15, seconds=5.0)
    return LatencyTable(settings, min(row[0] for row in rounds), shapes)


def _measured(model: Any, call: Call, table: LatencyTable, path: Path) -> LatencyTable:
    """``table`` with the curves that it lacks, saved after each."""
    groups = tied(families.find(model).sites(model))
    first = {table.shapes[members[0].name]: (m, members) for m, members in reversed(groups)}
    missing = {shape: group for shape, group in first.items() if shape not in table.curves}
    inputs = _inputs(model, list(missing.values()), call)
    table.save(path)
    for shape, (module, members) in tqdm(missing.items(), desc="time", unit="shape", disable=None):
        curve = _curve(model, members, *inputs[module])
        table = replace(table, curves={**table.curves, shape: curve})
        table.save(path)
    return table


def _curve(
    model: nn.Module, members: Sequence[Site], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Curve:
    """Times of the sites' module: the fastest of the rounds, since load only ever adds."""
    module, full = members[0].module, members[0].width
    widths = _widths(full)
    cut = [
        resized(model, members, {site.name: width for site in members}).get_submodule(module)
        for width in widths
    ]
    rounds = in_turn(
        [lambda m=m: m(*args, **kwargs) for m in cut], least=4, most=20, seconds=_SHAPE_SECONDS
    )
    return Curve.of({width: min(row[i] for row in rounds) for i, width in enumerate(widths)})


def _widths(full: int) -> list[int]:
    """Widths to time: eighths, rounded up to multiples of 8, and the narrowest there is."""
    eighths = {min(full, -(-full * i // (8 * _EIGHTHS)) * 8) for i in range(1, _EIGHTHS + 1)}
    return sorted({8 if full > 8 else 1} | eighths | {full})


def _inputs(model: nn.Module, groups: Sequence[tuple[str, list[Site]]], call: Call) -> _Inputs:
    """Arguments of each group's module in one call of the denoiser, by module."""
    found: _Inputs = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[name] = (args, dict(kwargs))

        return hook

    handles = [
        model.get_submodule(module).register_forward_pre_hook(keep(module), with_kwargs=True)
        for module, _ in groups
    ]
    try:
        with torch.no_grad():
            model(*call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _shape(members: Sequence[Site], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What decides a module's time, in words: sites that agree in it share one curve."""
    first, kinds = members[0], "+".join(site.kind for site in members)
    weights = sum(site.parameters() for site in members)
    size = f"{first.heads}x{first.width}" if first.heads > 1 else str(first.width)
    return f"{kinds} {size} ({weights:,} parameters) on {_shapes([*args, *kwargs.values()])}"


def _shapes(values: Sequence[Any]) -> str:
    tensors = [value for value in values if isinstance(value, Tensor) and value.dim() > 1]
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)
