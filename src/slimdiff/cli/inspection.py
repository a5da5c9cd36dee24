"""``slimdiff inspect``: what there is to cut, before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import families
from ..allocation import least
from ..classes import suited_pool
from ..cost import mac_prices
from ..denoiser import denoiser, dtype_name
from ..estimate import estimate
from ..grid import Grid
from ..prices import price_lists
from ..sites import free_sites, pool_parameters
from .calibrating import calibration_options, max_moment_option, prompt_options
from .display import out, site_table
from .drawing import sampling_from
from .opening import Opening, model_options

__all__ = ["inspect"]


@click.command()
@click.argument("model")
@prompt_options
@calibration_options
@model_options
@max_moment_option
def inspect(
    model: str,
    prompts: Path | None,
    num_prompts: int,
    max_moment_mib: float | None,
    drawing: dict[str, Any],
    opening: Opening,
) -> None:
    """List the sites of MODEL, what can be cut, and what calibration will take.

    Example: slimdiff inspect emoji
    """
    pipe = opening.open(model)
    network = denoiser(pipe)
    sites = families.find(network).sites(network)
    site_table(sites)
    (example, *_) = suited_pool(pipe, ["a picture"])
    sampling = sampling_from(model, drawing, {})
    guess = estimate(pipe, example, num_prompts, sampling, max_moment_mib=max_moment_mib)
    total, pool = network.num_parameters(), pool_parameters(sites)
    macs = mac_prices(network, sites, guess.call)
    free = free_sites(sites)
    share = macs.of(free, {site.name: site.width for site in free}) / macs.total
    prices = price_lists(total, sites, dtype_name(network))
    stays = least(prices["params"], sites, Grid(8))
    name = type(network).__name__
    for line in (
        f"{name}: {total:,} parameters, {macs.total / 1e9:.3f} G multiply-adds a call",
        f"slimmable: {pool / total:.1%} of the parameters, {share:.1%} of the multiply-adds",
        f"least reachable: {stays:,} parameters ({stays / total:.1%})",
        f"{num_prompts} prompts: {guess}",
    ):
        out.print(line, highlight=False, soft_wrap=True)
