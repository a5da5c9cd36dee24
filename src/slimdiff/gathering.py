"""The sampling of a calibration: sums that can be taken up where a process stopped.

Every so often, between two batches, the sums and how many prompts they hold are saved atomically.
A batch that ran out of memory may have added to some sums and not to others, so the last whole
state is taken up again and the batches are halved.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline
from tqdm import tqdm

from .denoiser import denoiser
from .environment import peak_mib, sums_device
from .errors import SlimdiffError
from .memory import OUT_OF_MEMORY, halved
from .recording import Sums, Weighting, empty_sums, moment_mib, recording
from .sampling import batches, sample_latents
from .statistics import Header, Statistics, refuse_foreign
from .sums import moved

__all__ = ["SAVE_EVERY", "gather", "resumed"]

SAVE_EVERY = 60.0
"""Seconds between two saves."""

_SAVE_SHARE = 20  # saving takes at most a twentieth of the time, however large the sums


def gather(
    pipe: DiffusionPipeline,
    stats: Statistics,
    folder: Path | None,
    weights: Weighting,
    save_every: float = SAVE_EVERY,
) -> Statistics:
    """Sum the prompts not yet summed; with ``folder`` save every so many seconds.

    Sums that ``stats`` holds in memory are added to in place.
    """
    while True:
        try:
            return _summed(pipe, stats, folder, weights, save_every)
        except OUT_OF_MEMORY as error:
            size = min(stats.header.sampling.batch_size, len(stats.header.prompts))
            size = halved(size, error.with_traceback(None))
        stats = _taken_back(stats, folder)
        sampling = replace(stats.header.sampling, batch_size=size)
        stats = replace(stats, header=replace(stats.header, sampling=sampling))


def resumed(fresh: Statistics, folder: Path) -> Statistics:
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
    return replace(found, header=replace(found.header, sampling=fresh.header.sampling))


def _prompts(header: Header) -> dict[str, object]:
    return {"prompts": header.prompts, "gain prompts": header.gain_prompts}


def _in_memory(pipe: DiffusionPipeline, stats: Statistics) -> Sums:
    """The sums so far, zeros at first, where they can be added to."""
    sites = stats.header.sites
    place = sums_device(denoiser(pipe).device, moment_mib(sites))
    if not stats.sums:
        return empty_sums(sites, place)
    return {site: moved(found, place) for site, found in stats.sums.items()}


def _taken_back(stats: Statistics, folder: Path | None) -> Statistics:
    """The state last saved in ``folder``; without one, sums of nothing."""
    if folder is not None and Statistics.exists(folder):
        return resumed(stats, folder)
    return replace(stats, header=replace(stats.header, done=0), sums={})


def _summed(
    pipe: DiffusionPipeline,
    stats: Statistics,
    folder: Path | None,
    weights: Weighting,
    save_every: float,
) -> Statistics:
    header, sums = replace(stats.header, gains={}), _in_memory(pipe, stats)
    stats = Statistics(header, sums)  # what followed from fewer prompts is stale
    begin = saved = time.perf_counter()
    pause = save_every
    todo = header.prompts[header.done :]
    with (
        recording(
            denoiser(pipe), header.sites, sums, tokens=header.tokens, weights=weights
        ) as tally,
        tqdm(total=len(todo), desc="calibrate", unit="prompt", disable=None) as bar,
    ):
        for batch in batches(todo, header.sampling.batch_size):
            sample_latents(pipe, batch, header.sampling.calibrating)
            tally.complete()
            bar.update(len(batch))
            now = time.perf_counter()
            progress = replace(
                stats.header,
                done=stats.header.done + len(batch),
                seconds=header.seconds + now - begin,
                phases={"sampling": header.phases.get("sampling", 0.0) + now - begin},
                peak_mib=max(header.peak_mib, peak_mib(pipe.device)),
            )
            stats = replace(stats, header=progress)
            if folder is not None and now - saved >= pause:
                stats.save(folder)
                saved = time.perf_counter()
                pause = max(save_every, _SAVE_SHARE * (saved - now)) if save_every else 0.0
    if folder is not None:
        stats.save(folder)
    return stats
