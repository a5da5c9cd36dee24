"""Sums of few sites at a time, where those of all exceed memory: the prompts are drawn in passes.

Every site meets the tokens it would meet in one pass, so nothing is lost but time: n passes
sample n times. A pass keeps its sums in a folder within that of the statistics, named after its
sites; it is taken up again where it stopped like any calibration. Putting the passes together
takes their place on disk twice for a while.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline

from .errors import SlimdiffError
from .files import LEFTOVER
from .gathering import gather, resumed
from .recording import Weighting, moment_mib
from .sites import Site, free_sites
from .statistics import Statistics

__all__ = ["gather_in_passes", "remove_passes", "site_groups"]

_PREFIX = f"{LEFTOVER}-pass-"


def site_groups(sites: Sequence[Site], most_mib: float | None) -> list[tuple[Site, ...]]:
    """Runs of the unlocked sites whose sums take ``most_mib`` MiB at most; one run if None.

    Raises SlimdiffError if the sums of one site alone take more.
    """
    groups: list[list[Site]] = []
    most, room = math.inf if most_mib is None else most_mib, 0.0
    for site in free_sites(sites):
        size = moment_mib([site])
        if size > most:
            raise SlimdiffError(
                f"The sums of site '{site.name}' take {size:.4g} MiB; --max-moment-mib allows "
                f"{most:g}. Allow more, or do without it."
            )
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(site)
        room -= size
    return [tuple(group) for group in groups]


def gather_in_passes(
    pipe: DiffusionPipeline,
    stats: Statistics,
    folder: Path | None,
    weights: Weighting,
    save_every: float,
    most_mib: float | None,
) -> Statistics:
    """:func:`slimdiff.gathering.gather`, with at most ``most_mib`` MiB of sums in memory.

    Raises SlimdiffError if that takes several passes and there is no ``folder`` to keep them in.
    """
    groups = site_groups(stats.header.sites, most_mib)
    if len(groups) == 1:
        return gather(pipe, stats, folder, weights, save_every)
    if folder is None:
        raise SlimdiffError(
            f"{len(groups)} passes need a folder to keep their sums in; got none. Give "
            "folder= (or statistics=), or do without max_moment_mib."
        )
    header = replace(stats.header, gain_prompts=(), done=0, files={})
    parts = []
    for sites in groups:
        place = _place(folder, sites)
        part = resumed(Statistics(replace(header, sites=sites), {}), place)
        if part.header.done < len(part.header.prompts):
            gather(pipe, part, place, weights, save_every)
        parts.append(Statistics.load(place))
    stats = _joined(stats, parts)
    stats.save(folder)
    remove_passes(folder)
    return stats


def remove_passes(folder: Path) -> None:
    """Take away what passes kept, once the sums in ``folder`` are whole."""
    for place in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(place, ignore_errors=True)


def _place(folder: Path, sites: Sequence[Site]) -> Path:
    names = "\n".join(site.name for site in sites)
    return folder / f"{_PREFIX}{hashlib.sha256(names.encode()).hexdigest()[:12]}"


def _joined(stats: Statistics, parts: Sequence[Statistics]) -> Statistics:
    """``stats`` with the sums of all passes, which stay on disk."""
    seconds = sum(part.header.seconds for part in parts)
    header = replace(
        stats.header,
        done=len(stats.header.prompts),
        gains={},
        sampling=replace(
            stats.header.sampling,
            batch_size=min(part.header.sampling.batch_size for part in parts),
        ),
        seconds=stats.header.seconds + seconds,
        phases={"sampling": seconds},
        peak_mib=max(part.header.peak_mib for part in parts),
    )
    return Statistics(header, {k: v for part in parts for k, v in part.sums.items()})
