"""Step time against multiply-adds when every site keeps one common share of its width."""

from __future__ import annotations

from typing import Any

from benchmarks.models.figures import uniform_widths
from slimdiff import families
from slimdiff.cost import multiply_adds
from slimdiff.denoiser import dtype_name
from slimdiff.gains import Call
from slimdiff.prices import price_lists
from slimdiff.surgery import resized
from slimdiff.timing import in_turn, median_ratio

__all__ = ["uniform_step"]


def uniform_step(model: Any, call: Call, pool: float, rounds: int) -> dict[str, Any]:
    """Parameters, multiply-adds and time of a step with ``pool`` of the pool, to the dense."""
    sites, parameters = families.find(model).sites(model), model.num_parameters()
    prices = price_lists(parameters, sites, dtype_name(model))
    widths = uniform_widths(prices["pool"], sites, pool)
    slim = resized(model, sites, widths)
    times = in_turn(
        [lambda m=m: m(*call.args, **call.kwargs) for m in (model, slim)], least=rounds, seconds=0
    )
    time = median_ratio(times, 1, 0)
    macs = multiply_adds(model, call, widths) / multiply_adds(model, call)
    return {
        "time": time,
        "macs": macs,
        "time / macs": time / macs,
        "params": slim.num_parameters() / parameters,
        "spread": [min(r[1] / r[0] for r in times), max(r[1] / r[0] for r in times)],
        "seconds": sorted(row[0] for row in times)[len(times) // 2],
    }
