"""What a denoiser costs: parameters, multiply-adds, bytes, time a step.

Multiply-adds are counted by ``torch.utils.flop_counter`` on the meta device (a CPU's fused
attention is invisible to it) and halved, one multiply-add being two operations. Norms,
activations and softmax are not counted. Times are medians of interleaved runs after a warm-up.
"""

from __future__ import annotations

import statistics as stdlib_statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark.utils.timer import timer
from torch.utils.flop_counter import FlopCounterMode

from . import families
from .denoiser import recorded_plan
from .gains import Call
from .surgery import reshape_

__all__ = ["StepTime", "multiply_adds", "step_times", "weight_bytes"]

_WARM_UP = 2
_LONGEST = 20.0
_LEAST, _MOST = 5, 40


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
    with torch.device("meta"):
        empty = type(model).from_config(model.config).to(dtype=model.dtype).eval()
    if widths:
        reshape_(empty, families.find(model).sites(empty), widths)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        empty(*_on_meta(call.args), **_on_meta(call.kwargs))
    return counter.get_total_flops() // 2


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers that a checkpoint of ``model`` holds."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def step_times(dense: nn.Module, slim: nn.Module, call: Call) -> StepTime:
    """Time one denoiser call of both models in turn on the same inputs."""

    def run(model: nn.Module) -> Callable[[], float]:
        def once() -> float:
            start = timer()  # waits for the accelerator
            model(*call.args, **call.kwargs)
            return timer() - start

        return once

    run_dense, run_slim = run(dense), run(slim)
    pairs: list[tuple[float, float]] = []
    with torch.no_grad():
        for _ in range(_WARM_UP):
            run_dense()
            run_slim()
        begin = timer()
        while len(pairs) < _LEAST or (timer() - begin < _LONGEST and len(pairs) < _MOST):
            pairs.append((run_dense(), run_slim()))
    return StepTime(
        1e3 * stdlib_statistics.median(a for a, _ in pairs),
        1e3 * stdlib_statistics.median(b for _, b in pairs),
        stdlib_statistics.median(b / a for a, b in pairs),
        len(pairs),
    )


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {k: _on_meta(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_meta(v) for v in value)
    return value
