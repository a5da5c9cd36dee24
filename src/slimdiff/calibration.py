"""Watches a pipeline denoise and keeps what slimming needs, once for every budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline
from tqdm import tqdm

from . import families
from .decomposition import METHODS
from .denoiser import check_finite, denoiser, fingerprint, refuse_slim
from .environment import device_name, float64_device, peak_mib, sums_device, versions
from .errors import SlimdiffError
from .gains import measure_gains
from .recording import TokenSampling, empty_sums, recording
from .sampling import IndexedPrompt, Sampling, batches, sample_latents
from .sites import moment_mib, refuse_locked
from .statistics import Header, Source, Statistics, refuse_foreign
from .sums import moved
from .surgery import reader_weights
from .weighting import timestep_weighting

__all__ = ["calibrate", "check_statistics", "finish"]

_SAVE_EVERY = 60.0
_SAVE_SHARE = 20  # saving takes at most a twentieth of the time, however large the sums
_GAIN_EVERY = 16


def calibrate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    sampling: Sampling | None = None,
    tokens: int | None = 1024,
    start: int = 0,
    name: str = "",
    method: str = "exact",
    timestep_weights: str = "uniform",
    folder: str | Path | None = None,
) -> Statistics:
    """Sample ``prompts`` with the pipeline as it is and return the statistics of its denoiser.

    Prompt i is drawn with seed ``sampling.seed + start + i``; ``start`` lets parts of one prompt
    list be calibrated apart and merged. At most ``tokens`` tokens of a sequence are read a call
    (None: all). Every sixteenth prompt is kept out of the sums to measure the gains on.
    ``method`` names the closed forms, ``exact`` or ``paper``, and ``timestep_weights`` how much
    each step counts (:mod:`slimdiff.timesteps`). With ``folder`` the state is saved there about
    once a minute and at the end, and a calibration with the same settings that stopped there goes
    on where it was.

    Memory: one float64 matrix of (F+1)^2 a feed-forward and (Hd+1)^2 a reader of an attention;
    with ``folder`` only while sampling, after which sums are read back site by site. Time: the
    sampling itself, at most as much again for the gains.

    Raises SlimdiffError for an unknown denoiser, no prompts, or weights or activations that are
    not finite.
    """
    if not prompts:
        raise SlimdiffError(
            "No prompts to calibrate on: expected at least one. Give more prompts."
        )
    stats = _begin(pipe, list(enumerate(prompts, start)), sampling or Sampling(), tokens, name)
    stats = replace(stats, header=replace(stats.header, timestep_weights=timestep_weights))
    if folder is not None:
        stats = _resumed(stats, Path(folder))
    if stats.complete and stats.header.method == method:
        return stats
    stats = _gather(pipe, stats, None if folder is None else Path(folder))
    stats = finish(pipe, stats, method)
    if folder is not None:
        stats.save(folder)
    return stats


def finish(pipe: DiffusionPipeline, stats: Statistics, method: str = "exact") -> Statistics:
    """Fill in what follows from the sums and the weights: ordered bases, error curves, gains.

    The sums serve every ``method``; finishing again with another one replaces what followed.
    """
    check_statistics(pipe, stats)
    if method not in METHODS:
        raise SlimdiffError(f"Unknown method '{method}'; expected one of {', '.join(METHODS)}.")
    forms = METHODS[method]
    begin, header, model = time.perf_counter(), stats.header, denoiser(pipe)
    free = [site for site in header.sites if site.locked is None]
    place = float64_device(model.device)
    bases = {
        site.name: forms[site.kind].decompose(
            moved(stats.sums[site.name], place), reader_weights(model, site).to(place)
        )
        for site in tqdm(free, desc="decompose", unit="site", disable=None)
    }
    decomposed = time.perf_counter()
    gains = measure_gains(pipe, header, stats.sums, bases, forms)
    end = time.perf_counter()
    header = replace(
        header,
        method=method,
        gains=gains,
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
        dtype = str(model.dtype).removeprefix("torch.")
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
    tokens: int | None,
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
        str(model.dtype).removeprefix("torch."),
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
    return Statistics(header, empty_sums(sites, sums_device(model.device, moment_mib(sites))))


def _shared_out(
    prompts: Sequence[IndexedPrompt],
) -> tuple[tuple[IndexedPrompt, ...], tuple[IndexedPrompt, ...]]:
    """Prompts to sum and prompts to measure gains on, by index, so that splits agree."""
    summed = tuple(p for p in prompts if p[0] % _GAIN_EVERY != _GAIN_EVERY - 1)
    if not summed:
        return tuple(prompts), ()
    return summed, tuple(p for p in prompts if p not in summed)


def _prompts(header: Header) -> dict[str, object]:
    return {"prompts": header.prompts, "gain prompts": header.gain_prompts}


def _resumed(fresh: Statistics, folder: Path) -> Statistics:
    """What ``folder`` already holds of this calibration, or ``fresh``."""
    refuse_foreign(folder)
    if not Statistics.exists(folder):
        return fresh
    found = Statistics.load(folder)
    wanted, there = ({**s.header.settings(), **_prompts(s.header)} for s in (fresh, found))
    differ = [name for name, value in wanted.items() if there[name] != value]
    if differ:
        raise SlimdiffError(
            f"'{folder}' holds statistics with other {', '.join(differ)}. Choose another folder "
            "(--statistics), or remove this one."
        )
    if found.header.done == len(found.header.prompts):
        return found
    sums = {
        site: {k: v.to(fresh.sums[site][k].device) for k, v in tensors.items()}
        for site, tensors in found.sums.items()
    }
    return replace(found, sums=sums)


def _gather(pipe: DiffusionPipeline, stats: Statistics, folder: Path | None) -> Statistics:
    """Sample the prompts not yet summed; save at batch boundaries about once a minute."""
    header, model = stats.header, denoiser(pipe)
    if header.done == len(header.prompts):
        return stats
    sums = {site: dict(found) for site, found in stats.sums.items()}
    begin = saved = time.perf_counter()
    pause = _SAVE_EVERY
    todo = header.prompts[header.done :]
    weights = timestep_weighting(
        header.timestep_weights,
        pipe,
        header.sites,
        header.prompts,
        header.sampling,
        header.tokens,
    )
    with (
        recording(model, header.sites, sums, tokens=header.tokens, weights=weights),
        tqdm(total=len(todo), desc="calibrate", unit="prompt", disable=None) as bar,
    ):
        for batch in batches(todo, header.sampling.batch_size):
            sample_latents(pipe, batch, header.sampling)
            bar.update(len(batch))
            now = time.perf_counter()
            stats = replace(
                stats,
                header=replace(
                    stats.header,
                    done=stats.header.done + len(batch),
                    seconds=header.seconds + now - begin,
                    phases={"sampling": header.phases.get("sampling", 0.0) + now - begin},
                    peak_mib=max(header.peak_mib, peak_mib(pipe.device)),
                ),
            )
            if folder is not None and now - saved > pause:
                stats.save(folder)
                saved = time.perf_counter()
                pause = max(_SAVE_EVERY, _SAVE_SHARE * (saved - now))
    if folder is None:
        return stats
    stats.save(folder)
    return Statistics.load(folder)  # what follows reads the sums site by site
