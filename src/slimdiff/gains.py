"""From a site's own error to the error of the denoiser's output.

Each site alone is cut to half its width, dense inputs stored from real sampling are run through,
and the error of the denoiser's output is measured::

    error = sum |e_cut - e_dense|^2 / sum |e_dense|^2

This one figure scales the site's analytic curve: output error at width r is taken as
``error * curve(r) / curve(width / 2)``. Where a pass a site would take longer than the sampling
did, a large model's sites are cut in groups of one kind, neighbours together, and share out the
error of their group by what each puts on the residual stream (:mod:`slimdiff.policies.ara`).
Ours; it replaces the propagation weights of ARA (Roy et al., SlimDiff, 2025, arXiv 2509.21498).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm

from .decomposition import Basis, Method
from .denoiser import denoiser, output_of, timestep_of
from .environment import float64, float64_device
from .errors import SlimdiffError
from .policies.ara import stream_share
from .sampling import IndexedPrompt, Sampling, batches, sample_latents
from .sites import Site, free_sites
from .statistics import Gain, Header
from .surgery import trial

__all__ = [
    "MOST_PROMPTS",
    "Call",
    "capture_calls",
    "gain_calls",
    "gain_groups",
    "gain_prompts",
    "grouped",
    "measure_gains",
    "one_call",
    "output_error",
]

_STEPS = 4
MOST_PROMPTS = 8
_LARGE = 200e6  # parameters; below that a pass a site is cheap in any case
_RUN_SHARE = 4  # of a large model's sampling goes into the run that calls are taken from, at most
_MAPS = 2  # evaluations that finding the maps of a large model's sites takes as long as


@dataclass(frozen=True)
class Call:
    """One recorded denoiser call: its arguments and the dense prediction."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def measure_gains(
    pipe: DiffusionPipeline,
    groups: Sequence[Sequence[Site]],
    sums: Mapping[str, Mapping[str, Tensor]],
    bases: Mapping[str, Basis],
    method: Mapping[str, Method],
    calls: Sequence[Call],
) -> dict[str, Gain]:
    """One gain for every site of ``groups``, at half its width; costs one pass of the calls each.

    Raises SlimdiffError naming the sites at which the output is not finite.
    """
    model = denoiser(pipe)
    place = float64_device(model.device)
    gains: dict[str, Gain] = {}
    for group in tqdm(groups, desc="gains", unit="pass", disable=None):
        widths = {site.name: max(1, site.width // 2) for site in group}
        with ExitStack() as cuts:
            for site in group:
                maps = method[site.kind].maps_on(
                    place, bases[site.name], sums[site.name], widths[site.name]
                )
                cuts.enter_context(trial(model, site, maps))
            error = output_error(model, calls)
        if not math.isfinite(error):
            raise SlimdiffError(
                f"With site {_told(widths)}, the denoiser's output holds NaN or infinity; "
                "expected finite numbers. Try --dtype float32 or bfloat16."
            )
        said = {
            site.name: stream_share(
                bases[site.name].errors, sums[site.name]["energy"], widths[site.name]
            )
            for site in group
        }
        whole = sum(said.values())
        for name, share in said.items():
            part = share / whole if whole > 0 else 1 / len(group)
            gains[name] = Gain(widths[name], error * part)
    return gains


def _told(widths: Mapping[str, int]) -> str:
    return " and ".join(f"'{site}' cut to width {width}" for site, width in widths.items())


def gain_groups(header: Header) -> list[list[Site]]:
    """The unlocked sites, in groups that are cut together and share what the cut does."""
    free = free_sites(header.sites)
    return grouped(free, _extent(header).passes)


def grouped(sites: Sequence[Site], count: int) -> list[list[Site]]:
    """``sites`` in at most ``count`` groups: each of one kind if they are enough, in order."""
    if count >= len(sites):
        return [[site] for site in sites]
    kinds = list(dict.fromkeys(site.kind for site in sites))
    if count < len(kinds):
        return _stretches(sites, count)
    found: list[list[Site]] = []
    for i, kind in enumerate(kinds):
        members = [site for site in sites if site.kind == kind]
        share = count // len(kinds) + (i < count % len(kinds))
        found += _stretches(members, min(share, len(members)))
    return found


def _stretches(sites: Sequence[Site], count: int) -> list[list[Site]]:
    """Neighbours together, in ``count`` stretches as equal as can be."""
    ends = [len(sites) * (i + 1) // count for i in range(count)]
    return [list(sites[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def gain_calls(pipe: DiffusionPipeline, header: Header) -> list[Call]:
    """Dense calls to measure gains on, at a few timesteps of ``gain_prompts``."""
    extent = _extent(header)
    sampling = replace(header.sampling.calibrating, steps=extent.run)
    return capture_calls(pipe, gain_prompts(header), sampling, extent.steps)


def gain_prompts(header: Header) -> Sequence[IndexedPrompt]:
    """Prompts that the sums have not seen, if there are any.

    So many that one pass a site evaluates the denoiser at most as often as calibration did,
    ``MOST_PROMPTS`` at most.
    """
    return (header.gain_prompts or header.prompts)[: _extent(header).prompts]


def one_call(
    pipe: DiffusionPipeline, prompts: Sequence[IndexedPrompt], sampling: Sampling
) -> Call:
    """One denoiser call for a batch of ``prompts``, taken from a run of two steps at most."""
    brief = replace(sampling, steps=min(2, sampling.steps))
    return capture_calls(pipe, prompts[: sampling.batch_size], brief, 1)[0]


@dataclass(frozen=True)
class _Extent:
    """How many prompts and steps the calls come from, and how often they may be repeated.

    ``run`` is the number of steps of the run that the calls are taken from.
    """

    prompts: int
    run: int
    steps: int
    passes: int


def _extent(header: Header) -> _Extent:
    """As much as the sampling allows, one evaluation of a prompt at a step being the unit.

    Small models get a pass a site however little was sampled.
    """
    sites = max(1, len(free_sites(header.sites)))
    all_steps = header.sampling.calibrating.steps
    sampled, steps = len(header.prompts) * all_steps, min(_STEPS, all_steps)
    if header.source.parameters <= _LARGE:
        prompts = max(1, min(MOST_PROMPTS, sampled // (sites * steps)))
        return _Extent(prompts, all_steps, steps, sites)
    run = min(all_steps, max(1, sampled // _RUN_SHARE))
    sampled = max(0, sampled - _MAPS)
    steps = min(steps, run, max(1, sampled // sites))
    prompts = max(1, min(MOST_PROMPTS, sampled // (sites * steps + run)))
    passes = max(1, (sampled - prompts * run) // (prompts * steps))
    return _Extent(prompts, run, steps, min(sites, passes))


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
    count = min(steps, len(order))
    wanted = {int((i + 0.5) * len(order) / count) for i in range(count)}
    return [call for index in sorted(wanted) for call in calls[index]]


def output_error(model: nn.Module, calls: Sequence[Call]) -> float:
    """Relative squared error of the model's outputs against the recorded ones."""
    error = energy = 0.0
    with torch.no_grad():
        for call in calls:
            out, wanted = output_of(model(*call.args, **call.kwargs)), float64(call.output)
            error += float((float64(out) - wanted).square().sum())
            energy += float(wanted.square().sum())
    return error / max(energy, 1e-300)
