"""Watches a pipeline denoise and keeps what slimming needs, once for every budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline
from tqdm import tqdm

from . import families
from .cost import mac_prices
from .decomposition import forms_of
from .denoiser import check_finite, denoiser, dtype_name, fingerprint, refuse_slim
from .environment import device_name, float64_device, peak_mib, versions
from .errors import SlimdiffError
from .gains import (
    MOST_PROMPTS,
    Call,
    gain_calls,
    gain_groups,
    gain_prompts,
    measure_gains,
)
from .gathering import SAVE_EVERY, resumed
from .locking import exclusive
from .memory import OUT_OF_MEMORY, halved
from .passes import gather_in_passes, remove_passes, site_groups
from .recording import TokenSampling
from .sampling import IndexedPrompt, Sampling
from .shares import all_bases, all_gains, gather_shares, refuse_disagreement, remove_shares
from .sites import free_sites, refuse_locked
from .statistics import Header, Source, Statistics
from .sums import moved
from .surgery import reader_weights
from .team import Team
from .token_sampling import SHARE
from .weighting import timestep_weighting

__all__ = ["calibrate", "check_statistics", "finish"]

_GAIN_EVERY = 16


def calibrate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    sampling: Sampling | None = None,
    tokens: int | float | None = SHARE,
    start: int = 0,
    name: str = "",
    method: str = "exact",
    timestep_weights: str = "uniform",
    folder: str | Path | None = None,
    save_every: float = SAVE_EVERY,
    max_moment_mib: float | None = None,
) -> Statistics:
    """Sample ``prompts`` with the pipeline as it is and return the statistics of its denoiser.

    Prompt i is drawn with seed ``sampling.seed + start + i``; ``start`` lets parts of one prompt
    list be calibrated apart and merged. Of each sequence ``tokens`` are read, a share below 1 or
    so many at most (None: all). Every sixteenth prompt is kept out of the sums to measure the
    gains on. ``method`` names the closed forms, ``exact`` or ``paper``, and ``timestep_weights``
    how much each step counts (:mod:`slimdiff.timesteps`). With ``folder`` the state is saved
    there every ``save_every`` seconds and at the end, and a calibration with the same settings
    that stopped there goes on where it was. In a process group (:mod:`slimdiff.team`) the prompts
    are shared out, and every process returns the same statistics.

    Memory: one float64 matrix of (F+1)^2 a feed-forward and (Hd+1)^2 a reader of an attention;
    with ``folder`` only while sampling (in a process group to the end), after which sums are read
    back site by site. Where even that is too much, ``max_moment_mib`` has the prompts sampled
    several times, each time for as many sites as fit: the same sums (:mod:`slimdiff.passes`).
    Time: the sampling itself, at most as much again for the gains.

    Raises SlimdiffError for an unknown denoiser, no prompts, weights or activations that are not
    finite, a folder that another process is at work in, or several passes without a folder or in
    a process group.
    """
    if not prompts:
        raise SlimdiffError(
            "No prompts to calibrate on: expected at least one. Give more prompts."
        )
    forms_of(method)  # refuses an unknown one before anything is sampled
    stats = prepare(pipe, list(enumerate(prompts, start)), sampling or Sampling(), tokens, name)
    stats = replace(stats, header=replace(stats.header, timestep_weights=timestep_weights))
    place, team = None if folder is None else Path(folder), Team.current()
    if team.size > 1 and len(site_groups(stats.header.sites, max_moment_mib)) > 1:
        raise SlimdiffError(
            "--max-moment-mib works in one process only; this is one of "
            f"{team.size}. Calibrate parts apart (--part K/N) and merge them."
        )
    found = stats if place is None else resumed(stats, place)
    refuse_disagreement(team, found, place)
    if found.complete and found.header.method == method:
        return found  # also from a folder that cannot be written to
    with exclusive(place) if place and team.leads else nullcontext():
        stats = found if place is None else resumed(stats, place)
        stats = _summed(pipe, stats, place, team, save_every, max_moment_mib)
        stats = finish(pipe, stats, method)
        if place is not None:
            if team.leads:
                stats.save(place)
            team.wait()
            if team.leads:
                remove_passes(place)
                remove_shares(place)
    return stats


def _summed(
    pipe: DiffusionPipeline,
    stats: Statistics,
    folder: Path | None,
    team: Team,
    save_every: float,
    most_mib: float | None,
) -> Statistics:
    """``stats`` with all prompts summed."""
    header = stats.header
    if header.done == len(header.prompts):
        return stats
    weights = timestep_weighting(pipe, header, most_mib)
    if team.size > 1:
        return gather_shares(pipe, stats, folder, weights, save_every, team)
    stats = gather_in_passes(pipe, stats, folder, weights, save_every, most_mib)
    return stats if folder is None else Statistics.load(folder)  # sums are read when used


def finish(pipe: DiffusionPipeline, stats: Statistics, method: str = "exact") -> Statistics:
    """Fill in what follows from the sums and the weights: ordered bases, error curves, gains.

    The sums serve every ``method``; finishing again with another one replaces what followed. A
    team shares the work out and every process gets all.
    """
    check_statistics(pipe, stats)
    if stats.header.done < len(stats.header.prompts):
        raise SlimdiffError(
            f"Only {stats.header.done} of {len(stats.header.prompts)} prompts are summed; bases "
            "and gains need all. Run the same calibrate command again: it goes on there."
        )
    forms = forms_of(method)
    begin, header, model = time.perf_counter(), stats.header, denoiser(pipe)
    free, team = free_sites(header.sites), Team.current()
    place = float64_device(model.device)
    bases = {
        site.name: forms[site.kind].decompose(
            moved(stats.sums[site.name], place), reader_weights(model, site).to(place)
        )
        for site in tqdm(team.share(free), desc="decompose", unit="site", disable=None)
    }
    bases = all_bases(team, bases, [site.name for site in free], place)
    decomposed = time.perf_counter()
    header, calls = _calls(pipe, header)
    groups = team.share(gain_groups(header))
    gains = measure_gains(pipe, groups, stats.sums, bases, forms, calls)
    gains = all_gains(team, gains, [site.name for site in free])
    batch = min(header.sampling.batch_size, len(gain_prompts(header)))
    end = time.perf_counter()
    header = replace(
        header,
        method=method,
        gains=gains,
        macs=mac_prices(model, free, calls[0], batch),
        seconds=header.seconds + end - begin,
        phases={
            **header.phases,
            "decomposition": decomposed - begin,
            "gains": end - decomposed,
        },
        peak_mib=max(header.peak_mib, peak_mib(pipe.device)),
    )
    return Statistics(header, stats.sums, bases)


def check_statistics(pipe: DiffusionPipeline, stats: Statistics) -> None:
    """Raise SlimdiffError unless ``stats`` were gathered from exactly this denoiser."""
    source, model = stats.header.source, denoiser(pipe)
    found = fingerprint(model)
    if found != source.hash:
        dtype = dtype_name(model)
        raise SlimdiffError(
            f"The statistics are of another model: '{source.name}' ({source.denoiser}, "
            f"{source.parameters} parameters, {source.dtype}, hash {source.hash[:12]}), but this "
            f"is {type(model).__name__} ({model.num_parameters()} parameters, {dtype}, hash "
            f"{found[:12]}). Load the same model in the same dtype, or calibrate this one."
        )


def prepare(
    pipe: DiffusionPipeline,
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
    tokens: int | float | None = SHARE,
    name: str = "",
) -> Statistics:
    """Statistics of nothing yet, for :func:`slimdiff.gathering.gather`; see :func:`calibrate`."""
    model = denoiser(pipe)
    sites = tuple(families.find(model).sites(model))
    refuse_slim(model)
    refuse_locked(sites)
    check_finite(model)
    source = Source(
        name or str(getattr(pipe, "name_or_path", "") or type(pipe).__name__),
        type(pipe).__name__,
        type(model).__name__,
        fingerprint(model),
        dtype_name(model),
        model.num_parameters(),
    )
    summed, spared = _shared_out(prompts)
    header = Header(
        source,
        sampling,
        TokenSampling(tokens, sampling.seed),
        summed,
        sites,
        spared,
        device=device_name(model.device),
        versions=versions(),
    )
    return Statistics(header, {})


def _shared_out(
    prompts: Sequence[IndexedPrompt],
) -> tuple[tuple[IndexedPrompt, ...], tuple[IndexedPrompt, ...]]:
    """Prompts to sum and prompts to measure gains on, by index, so that splits agree."""
    summed = tuple(p for p in prompts if p[0] % _GAIN_EVERY != _GAIN_EVERY - 1)
    if not summed:
        return tuple(prompts), ()
    return summed, tuple(p for p in prompts if p not in summed)


def _calls(pipe: DiffusionPipeline, header: Header) -> tuple[Header, list[Call]]:
    """Calls to measure gains on, in batches halved until they fit into memory."""
    while True:
        try:
            return header, gain_calls(pipe, header)
        except OUT_OF_MEMORY as error:
            fitting = min(header.sampling.batch_size, MOST_PROMPTS)
            size = halved(fitting, error.with_traceback(None))
        header = replace(header, sampling=replace(header.sampling, batch_size=size))
