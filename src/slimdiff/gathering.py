"""The sampling of a calibration: sums that can be taken up where a process stopped.

Every so often, between two batches, the sums and how many prompts they hold are saved atomically.
A batch that ran out of memory may have added to some sums and not to others, so the last whole
state is taken up again and the batches are halved.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from .denoiser import denoiser
from .environment import peak_mib
from .errors import SlimdiffError
from .memory import OUT_OF_MEMORY, halved
from .recording import Sums, Weighting, recording
from .sampling import batches, sample_latents
from .statistics import Header, Statistics, refuse_foreign

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
    """Sum the prompts not yet summed, in place; with ``folder`` save every so many seconds."""
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
    return replace(found, sums=_placed(found.sums, fresh.sums))


def _prompts(header: Header) -> dict[str, object]:
    return {"prompts": header.prompts, "gain prompts": header.gain_prompts}


def _placed(
    sums: Mapping[str, Mapping[str, Tensor]], like: Mapping[str, Mapping[str, Tensor]]
) -> Sums:
    return {
        site: {k: v.to(like[site][k].device) for k, v in tensors.items()}
        for site, tensors in sums.items()
    }


def _taken_back(stats: Statistics, folder: Path | None) -> Statistics:
    """The state last saved in ``folder``; without one, sums of nothing."""
    if folder is not None and Statistics.exists(folder):
        return resumed(stats, folder)
    for tensors in stats.sums.values():
        for total in tensors.values():
            total.zero_()
    return replace(stats, header=replace(stats.header, done=0))


def _summed(
    pipe: DiffusionPipeline,
    stats: Statistics,
    folder: Path | None,
    weights: Weighting,
    save_every: float,
) -> Statistics:
    header = stats.header
    sums = {site: dict(found) for site, found in stats.sums.items()}
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
            sample_latents(pipe, batch, header.sampling)
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
