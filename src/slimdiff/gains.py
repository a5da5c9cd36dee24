"""From a site's own error to the error of the denoiser's output.

Each site alone is cut to half its width, dense inputs stored from real sampling are run through,
and the error of the denoiser's output is measured::

    error = sum |e_cut - e_dense|^2 / sum |e_dense|^2

This one figure scales the site's analytic curve: output error at width r is taken as
``error * curve(r) / curve(width / 2)``. Ours; it replaces the propagation weights of ARA (Roy et
al., SlimDiff, 2025, arXiv 2509.21498).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm

from .decomposition import Basis, Method
from .denoiser import denoiser, output_of, timestep_of
from .errors import SlimdiffError
from .recording import Sums
from .sampling import IndexedPrompt, Sampling, batches, sample_latents
from .statistics import Gain, Header
from .surgery import trial

__all__ = ["MOST_PROMPTS", "Call", "capture_calls", "gain_calls", "measure_gains", "output_error"]

_STEPS = 4
MOST_PROMPTS = 4


@dataclass(frozen=True)
class Call:
    """One recorded denoiser call: its arguments and the dense prediction."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def measure_gains(
    pipe: DiffusionPipeline,
    header: Header,
    sums: Sums,
    bases: Mapping[str, Basis],
    method: Mapping[str, Method],
) -> dict[str, Gain]:
    """One gain for every site in ``bases``, at half its width; costs one pass of the calls each.

    Raises SlimdiffError naming the site at which the output is not finite.
    """
    model, calls = denoiser(pipe), gain_calls(pipe, header)
    free = [site for site in header.sites if site.name in bases]
    gains: dict[str, Gain] = {}
    for site in tqdm(free, desc="gains", unit="site", disable=None):
        width = max(1, site.width // 2)
        maps = method[site.kind].maps(bases[site.name], sums[site.name], width)
        with trial(model, site, maps):
            error = output_error(model, calls)
        if not math.isfinite(error):
            raise SlimdiffError(
                f"With site '{site.name}' cut to width {width}, the denoiser's output holds NaN "
                "or infinity; expected finite numbers. Try --dtype float32 or bfloat16."
            )
        gains[site.name] = Gain(width, error)
    return gains


def gain_calls(pipe: DiffusionPipeline, header: Header) -> list[Call]:
    """Dense calls to measure gains on, from prompts that the sums have not seen if there are any.

    So many that one pass a site evaluates the denoiser at most as often as calibration did.
    """
    sites = sum(site.locked is None for site in header.sites)
    steps = min(_STEPS, header.sampling.steps)
    share = len(header.prompts) * header.sampling.steps // (max(1, sites) * steps)
    prompts = header.gain_prompts or header.prompts
    return capture_calls(pipe, prompts[: max(1, min(MOST_PROMPTS, share))], header.sampling, steps)


def capture_calls(
    pipe: DiffusionPipeline, prompts: Sequence[IndexedPrompt], sampling: Sampling, steps: int
) -> list[Call]:
    """Denoiser calls at ``steps`` timesteps, evenly spaced over one sampling run."""
    calls: dict[int, list[Call]] = {}
    order: dict[float, int] = {}

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        index = order.setdefault(timestep_of(args, kwargs), len(order))
        calls.setdefault(index, []).append(Call(args, dict(kwargs), output_of(out).detach()))

    handle = denoiser(pipe).register_forward_hook(keep, with_kwargs=True)
    try:
        for batch in batches(prompts, sampling.batch_size):
            sample_latents(pipe, batch, sampling)
    finally:
        handle.remove()
    wanted = {int((i + 0.5) * len(order) / steps) for i in range(min(steps, len(order)))}
    return [call for index in sorted(wanted) for call in calls[index]]


def output_error(model: nn.Module, calls: Sequence[Call]) -> float:
    """Relative squared error of the model's outputs against the recorded ones."""
    error = energy = 0.0
    with torch.no_grad():
        for call in calls:
            out = output_of(model(*call.args, **call.kwargs)).double()
            error += float((out - call.output.double()).square().sum())
            energy += float(call.output.double().square().sum())
    return error / max(energy, 1e-300)
