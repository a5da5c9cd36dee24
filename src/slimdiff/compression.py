"""Applies a plan to a pipeline, site by site, in place. Contains no choice."""

from __future__ import annotations

from dataclasses import asdict

from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from .allocation import reprice
from .calibration import check_statistics
from .decomposition import METHODS
from .denoiser import CONFIG_KEY, METHOD, check_finite, denoiser, recorded_plan
from .environment import float64_device
from .errors import SlimdiffError
from .plan import Plan, plan_from
from .slim_maps import attach_, pack
from .statistics import Statistics
from .surgery import cut_site_

__all__ = ["compress_", "plan_of", "record_plan_"]


def compress_(pipe: DiffusionPipeline, stats: Statistics, plan: Plan) -> None:
    """Cut the pipeline's denoiser to ``plan``'s widths, in place.

    The denoiser carries the maps it was cut by (:mod:`slimdiff.slim_maps`), for adapters. The plan
    is recorded in its configuration, where saving and loading find it. Under
    ``quantization_config`` because that is diffusers' one hook for models whose Linears differ
    from what the configuration says. What a plan edited by hand predicts is worked out anew.

    Raises SlimdiffError, before anything is cut, if statistics or plan are of another model, and
    afterwards if a weight does not fit the model's dtype.
    """
    check_statistics(pipe, stats)
    plan.check(stats.header.sites)
    if plan.model_hash != stats.header.source.hash:
        raise SlimdiffError(
            f"The plan was made for another model (hash {plan.model_hash[:12]}, statistics "
            f"{stats.header.source.hash[:12]}). Make the plan from these statistics."
        )
    if plan.method != stats.header.method:
        raise SlimdiffError(
            f"The plan is for method '{plan.method}', the statistics were finished with "
            f"'{stats.header.method}'. Make the plan from these statistics."
        )
    model, forms = denoiser(pipe), METHODS[plan.method]
    place = float64_device(model.device)
    cuts = [s for s in stats.header.sites if plan.widths.get(s.name, s.width) < s.width]
    packed: dict[str, Tensor] = {}
    for site in tqdm(cuts, desc="compress", unit="site", disable=None):
        maps = forms[site.kind].maps_on(
            place, stats.bases[site.name], stats.sums[site.name], plan.widths[site.name]
        )
        cut_site_(model, site, maps)
        packed |= pack(site, maps, model.dtype)
    check_finite(model)
    attach_(model, packed)
    record_plan_(pipe, reprice(plan, stats))


def record_plan_(pipe: DiffusionPipeline, plan: Plan) -> None:
    """Write ``plan`` into the configuration of the denoiser that was cut by it."""
    config = {CONFIG_KEY: {"quant_method": METHOD, "plan": asdict(plan)}}
    denoiser(pipe).register_to_config(**config)


def plan_of(pipe: DiffusionPipeline) -> Plan | None:
    """The plan a pipeline was slimmed by, or None for a dense one."""
    value = recorded_plan(denoiser(pipe))
    return None if value is None else plan_from(value, "denoiser config")
