"""What a denoiser costs: parameters, multiply-adds, bytes, time a step.

Multiply-adds are counted by ``torch.utils.flop_counter`` on the meta device (a CPU's fused
attention is invisible to it) and halved, one multiply-add being two operations. Norms,
activations and softmax are not counted. Times are medians of interleaved runs after a warm-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import families
from .denoiser import recorded_plan
from .gains import Call
from .prices import Linear
from .sites import Part, Site
from .surgery import reshape_
from .timing import in_turn, median_ratio

__all__ = ["StepTime", "mac_prices", "multiply_adds", "step_times", "weight_bytes"]


@dataclass(frozen=True)
class StepTime:
    """Median milliseconds of one denoiser call, and the median of the pairwise ratios."""

    dense_ms: float
    slim_ms: float
    ratio: float
    runs: int


def multiply_adds(model: Any, call: Call, widths: dict[str, int] | None = None) -> int:
    """Multiply-adds of one call of a model built like ``model``, cut to ``widths``.

    Without ``widths`` the model counts as it is, slim or dense.
    """
    if widths is None:
        widths = (recorded_plan(model) or {}).get("widths")
    return _counted(model, call, widths).get_total_flops() // 2


def mac_prices(model: Any, sites: Sequence[Site], call: Call, prompts: int = 1) -> Linear:
    """Multiply-adds of one call for one of ``prompts``, and what a unit of width costs by site.

    A site has its own Linears; the products of queries, keys and values cost by the wider of an
    attention's two sites, and cannot shrink if one of them is locked.
    """
    counted = _counted(model, call, None)
    counts = counted.get_flop_counts()
    top = type(model).__name__

    def count(module: str) -> int:
        return sum(counts.get(f"{top}.{module}", {}).values()) // 2

    def linears(site: Site) -> float:
        return sum(count(part.linear) * _share(model, part) for part in site.parts)

    def products(site: Site) -> float:
        inner = model.get_submodule(site.module).named_modules(prefix=site.module)
        return count(site.module) - sum(count(n) for n, m in inner if isinstance(m, nn.Linear))

    per_unit = {site.name: linears(site) / site.width / prompts for site in sites}
    widest = {
        site.module: products(site) / site.width / prompts
        for site in sites
        if all(s.locked is None for s in sites if s.module == site.module) and site.kind != "ffn"
    }
    return Linear(counted.get_total_flops() / 2 / prompts, per_unit, widest)


def _share(model: nn.Module, part: Part) -> float:
    """How much of its Linear a part is: others may be packed into the same one."""
    linear = model.get_submodule(part.linear)
    assert isinstance(linear, nn.Linear)
    return part.size / (linear.in_features if part.reads else linear.out_features)


def _counted(model: Any, call: Call, widths: Mapping[str, int] | None) -> FlopCounterMode:
    """Operations of one call of a model built like ``model``, counted on the meta device."""
    with torch.device("meta"):
        empty = type(model).from_config(model.config).eval()
    nn.Module.to(empty, dtype=model.dtype)  # diffusers' own warns of what is not there
    if widths:
        reshape_(empty, families.find(model).sites(empty), widths)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        empty(*_on_meta(call.args), **_on_meta(call.kwargs))
    return counter


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers that a checkpoint of ``model`` holds."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def step_times(dense: nn.Module, slim: nn.Module, call: Call) -> StepTime:
    """Time one denoiser call of both models in turn on the same inputs."""
    rounds = in_turn([lambda m=m: m(*call.args, **call.kwargs) for m in (dense, slim)])
    return StepTime(
        1e3 * median(a for a, _ in rounds),
        1e3 * median(b for _, b in rounds),
        median_ratio(rounds, 1, 0),
        len(rounds),
    )


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {k: _on_meta(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_meta(v) for v in value)
    return value
