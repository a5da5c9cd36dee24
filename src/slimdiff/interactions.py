"""What the additive prediction misses: how the sites' errors meet at the output.

With every site cut as planned the denoiser errs by ``e``, with site s alone by ``e_s``. To first
order ``e = sum_s e_s``, so that

    error(plan) = |e|^2 / |out|^2 = sum_s <e_s, e> / |out|^2,

and ``<e_s, e>`` is site s's fair share: its own error plus half of all it has in common with the
others. Gains are measured anew as these shares, at the widths of a first plan, and again where the
second one's prediction and its measurement part. Ours; the paper has no counterpart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm

from .calibration import check_statistics
from .decomposition import METHODS
from .denoiser import denoiser, output_of
from .environment import float64, float64_device
from .gains import Call
from .plan import Plan
from .statistics import Gain, Statistics
from .surgery import trial

__all__ = ["TOLERANCE", "apart", "with_shares"]

TOLERANCE = 1.5
"""How far prediction and achievement may part, as a ratio, before gains are measured once more."""

_LEAST_SHARE = 0.1


def apart(predicted: float, achieved: float) -> bool:
    """Whether two errors differ by more than ``TOLERANCE`` either way."""
    low, high = sorted((predicted, achieved))
    return high > TOLERANCE * low


def with_shares(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    stats: Statistics,
    plan: Plan,
    calls: Sequence[Call],
) -> Statistics:
    """``stats`` with the gains of all sites that ``plan`` cuts replaced by their shares.

    ``slim`` is ``dense`` cut to ``plan``; ``calls`` are dense ones. A share below a tenth of the
    site's own error, negative ones among them, counts as that tenth: errors that cancel here need
    not cancel at other widths. Costs one pass of the calls a cut site. The result serves budgets
    near ``plan``.
    """
    check_statistics(dense, stats)
    model, forms = denoiser(dense), METHODS[stats.header.method]
    place = float64_device(model.device)
    energy = max(sum(float(float64(call.output).square().sum()) for call in calls), 1e-300)
    total = _errors(denoiser(slim), calls)
    gains = dict(stats.header.gains)
    cut = [s for s in stats.header.sites if plan.widths.get(s.name, s.width) < s.width]
    for site in tqdm(cut, desc="interactions", unit="site", disable=None):
        width = plan.widths[site.name]
        maps = forms[site.kind].maps_on(
            place, stats.bases[site.name], stats.sums[site.name], width
        )
        with trial(model, site, maps):
            alone = _errors(model, calls)
        share = sum(_dot(a, b) for a, b in zip(alone, total, strict=True))
        least = _LEAST_SHARE * sum(_dot(a, a) for a in alone)
        gains[site.name] = Gain(width, max(share, least) / energy)
    return replace(stats, header=replace(stats.header, gains=gains))


def _errors(model: nn.Module, calls: Sequence[Call]) -> list[Tensor]:
    """What ``model`` answers less what was recorded, float64, one tensor a call."""

    def error(call: Call) -> Tensor:
        out: Any = output_of(model(*call.args, **call.kwargs))
        return float64(out) - float64(call.output)

    with torch.no_grad():
        return [error(call) for call in calls]


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())
