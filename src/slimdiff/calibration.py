"""Watches a pipeline denoise and keeps what slimming needs, once for every budget."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from . import families
from .cost import mac_prices
from .decomposition import METHODS, Basis
from .denoiser import check_finite, denoiser, dtype_name, fingerprint, refuse_slim
from .environment import device_name, float64_device, peak_mib, versions
from .errors import SlimdiffError
from .files import LEFTOVER
from .gains import (
    MOST_PROMPTS,
    Call,
    gain_calls,
    gain_groups,
    gain_prompts,
    measure_gains,
)
from .gathering import SAVE_EVERY, gather, resumed
from .locking import exclusive
from .memory import OUT_OF_MEMORY, halved
from .passes import gather_in_passes, remove_passes, site_groups
from .recording import TokenSampling
from .sampling import IndexedPrompt, Sampling
from .sites import free_sites, refuse_locked
from .statistics import Gain, Header, Source, Statistics
from .sums import moved
from .surgery import reader_weights
from .team import Team
from .token_sampling import SHARE
from .weighting import timestep_weighting

__all__ = ["calibrate", "check_statistics", "finish"]

_GAIN_EVERY = 16
_PART = f"{LEFTOVER}-part-"


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
    back site by site. Where even
    that is too much, ``max_moment_mib`` has the prompts sampled several times, each time for as
    many sites as fit: the same sums (:mod:`slimdiff.passes`). Time: the sampling itself, at most
    as much again for the gains.

    Raises SlimdiffError for an unknown denoiser, no prompts, weights or activations that are not
    finite, a folder that another process is at work in, or several passes without a folder or in
    a process group.
    """
    if not prompts:
        raise SlimdiffError(
            "No prompts to calibrate on: expected at least one. Give more prompts."
        )
    if method not in METHODS:
        raise SlimdiffError(f"Unknown method '{method}'; expected one of {', '.join(METHODS)}.")
    stats = _begin(pipe, list(enumerate(prompts, start)), sampling or Sampling(), tokens, name)
    stats = replace(stats, header=replace(stats.header, timestep_weights=timestep_weights))
    place, team = None if folder is None else Path(folder), Team.current()
    if team.size > 1 and len(site_groups(stats.header.sites, max_moment_mib)) > 1:
        raise SlimdiffError(
            "--max-moment-mib works in one process only; this is one of "
            f"{team.size}. Calibrate parts apart (--part K/N) and merge them."
        )
    found = stats if place is None else resumed(stats, place)
    _refuse_disagreement(team, found, place)
    if found.complete and found.header.method == method:
        return found  # also from a folder that cannot be written to
    with exclusive(place) if place and team.leads else nullcontext():
        stats = found if place is None else resumed(stats, place)
        stats = _shared(pipe, stats, place, team, save_every, max_moment_mib)
        stats = finish(pipe, stats, method)
        if place is not None:
            if team.leads:
                stats.save(place)
            team.wait()
            if team.leads:
                _remove_scratch(place)
    return stats


def _refuse_disagreement(team: Team, stats: Statistics, folder: Path | None) -> None:
    """Raise SlimdiffError, in every process alike, if they would not go on from one state."""
    own = torch.tensor([stats.header.done, stats.complete])
    states = team.gathered({str(team.rank): own})
    done = {rank: state.tolist() for rank, state in states.items()}
    if len({tuple(state) for state in done.values()}) > 1:
        told = ", ".join(f"process {rank}: {n} prompts" for rank, (n, _) in sorted(done.items()))
        raise SlimdiffError(
            f"The processes find different statistics in '{folder}' ({told}); expected one folder "
            "that all of them see. Put it on a shared file system, or calibrate parts apart "
            "(--part K/N) and merge them."
        )


def _remove_scratch(folder: Path) -> None:
    """Take away what passes and processes kept on the way."""
    remove_passes(folder)
    for place in folder.glob(f"{_PART}*"):
        shutil.rmtree(place, ignore_errors=True)


def _shared(
    pipe: DiffusionPipeline,
    stats: Statistics,
    folder: Path | None,
    team: Team,
    save_every: float,
    most_mib: float | None,
) -> Statistics:
    """``stats`` with all prompts summed, each process of the team having taken its share."""
    header = stats.header
    if header.done == len(header.prompts):
        return stats
    weights = timestep_weighting(pipe, header, most_mib)
    if team.size == 1:
        stats = gather_in_passes(pipe, stats, folder, weights, save_every, most_mib)
        return stats if folder is None else Statistics.load(folder)  # sums are read when used
    share = tuple(team.share(header.prompts[header.done :]))
    own = replace(header, prompts=share, gain_prompts=(), done=0, files={})
    part = Statistics(own, {})
    place = None if folder is None else _part(folder, team)
    with exclusive(place) if place else nullcontext():
        if place is not None:
            part = resumed(part, place)
        part = gather(pipe, part, place, weights, save_every)
    team.add_up_(part.sums)
    for site, before in stats.sums.items():
        for name, total in part.sums[site].items():
            total += before[name].to(total.device)
    seconds = header.seconds + part.header.seconds
    peak = max(header.peak_mib, part.header.peak_mib)
    done = replace(header, done=len(header.prompts), seconds=seconds, peak_mib=peak)
    return Statistics(replace(done, phases=part.header.phases), part.sums)


def _part(folder: Path, team: Team) -> Path:
    """Where one process of a team keeps its share until all are done."""
    return folder / f"{_PART}{team.rank}-of-{team.size}"


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
    if method not in METHODS:
        raise SlimdiffError(f"Unknown method '{method}'; expected one of {', '.join(METHODS)}.")
    forms = METHODS[method]
    begin, header, model = time.perf_counter(), stats.header, denoiser(pipe)
    free, team = free_sites(header.sites), Team.current()
    place = float64_device(model.device)
    bases = {
        site.name: forms[site.kind].decompose(
            moved(stats.sums[site.name], place), reader_weights(model, site).to(place)
        )
        for site in tqdm(team.share(free), desc="decompose", unit="site", disable=None)
    }
    bases = _all_bases(team, bases, [site.name for site in free], place)
    decomposed = time.perf_counter()
    header, calls = _calls(pipe, header)
    groups = team.share(gain_groups(header))
    gains = measure_gains(pipe, groups, stats.sums, bases, forms, calls)
    gains = _all_gains(team, gains, [site.name for site in free])
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


def _begin(
    pipe: DiffusionPipeline,
    prompts: list[IndexedPrompt],
    sampling: Sampling,
    tokens: int | float | None,
    name: str,
) -> Statistics:
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


def _all_bases(
    team: Team, bases: Mapping[str, Basis], order: Sequence[str], device: torch.device
) -> dict[str, Basis]:
    """The bases that all processes found, in the order of the sites."""
    if team.size == 1:
        return dict(bases)
    own = {
        f"{site}/{name}": tensor
        for site, basis in bases.items()
        for name, tensor in {**basis.tensors, "errors": basis.errors}.items()
    }
    every: dict[str, dict[str, Tensor]] = {}
    for key, tensor in team.gathered(own).items():
        site, _, name = key.rpartition("/")
        every.setdefault(site, {})[name] = tensor.to(device)
    curves = {site: every[site].pop("errors") for site in order}
    return {site: Basis(every[site], curves[site]) for site in order}


def _all_gains(team: Team, gains: Mapping[str, Gain], order: Sequence[str]) -> dict[str, Gain]:
    """The gains that all processes measured, in the order of the sites."""
    own = {
        site: torch.tensor([gain.width, gain.error], dtype=torch.float64)
        for site, gain in gains.items()
    }
    found = {site: pair.tolist() for site, pair in team.gathered(own).items()}
    return {site: Gain(int(found[site][0]), found[site][1]) for site in order}
