"""What the processes of a team do apart for one calibration, and how each gets all of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from .decomposition import Basis
from .errors import SlimdiffError
from .files import LEFTOVER
from .gathering import gather, resumed
from .locking import exclusive
from .recording import Weighting
from .statistics import Gain, Statistics
from .sums import flatten, moved, unflatten
from .team import Team

__all__ = ["all_bases", "all_gains", "gather_shares", "refuse_disagreement", "remove_shares"]

_PREFIX = f"{LEFTOVER}-part-"


def refuse_disagreement(team: Team, stats: Statistics, folder: Path | None) -> None:
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


def gather_shares(
    pipe: DiffusionPipeline,
    stats: Statistics,
    folder: Path | None,
    weights: Weighting,
    save_every: float,
    team: Team,
) -> Statistics:
    """``stats`` with all prompts summed, each process of the team having taken its share."""
    header = stats.header
    share = tuple(team.share(header.prompts[header.done :]))
    own = replace(header, prompts=share, gain_prompts=(), done=0, files={})
    part = Statistics(own, {})
    place = None if folder is None else folder / f"{_PREFIX}{team.rank}-of-{team.size}"
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


def remove_shares(folder: Path) -> None:
    """Take away what each process kept until all were done."""
    for place in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(place, ignore_errors=True)


def all_bases(
    team: Team, bases: Mapping[str, Basis], order: Sequence[str], device: torch.device
) -> dict[str, Basis]:
    """The bases that all processes found, in the order of the sites."""
    if team.size == 1:
        return dict(bases)
    every = unflatten(team.gathered(flatten({n: basis.named() for n, basis in bases.items()})))
    return {site: Basis.of(moved(every[site], device)) for site in order}


def all_gains(team: Team, gains: Mapping[str, Gain], order: Sequence[str]) -> dict[str, Gain]:
    """The gains that all processes measured, in the order of the sites."""
    own = {
        site: torch.tensor([gain.width, gain.error], dtype=torch.float64)
        for site, gain in gains.items()
    }
    found = {site: pair.tolist() for site, pair in team.gathered(own).items()}
    return {site: Gain(int(found[site][0]), found[site][1]) for site in order}
