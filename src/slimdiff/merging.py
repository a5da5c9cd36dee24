"""Adds statistics that were gathered apart: by other machines, at other times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .errors import SlimdiffError
from .statistics import Statistics
from .sums import Added

__all__ = ["merge"]


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Add statistics of one model over disjoint prompts. Bases and gains are stale afterwards.

    Raises SlimdiffError if models, sampling or sites differ, if a prompt index occurs twice, or if
    the parts weigh timesteps by what each of them saw (``sis``).
    """
    if not parts:
        raise SlimdiffError("Nothing to merge: expected at least one Statistics.")
    first = parts[0]
    if len(parts) > 1 and first.header.timestep_weights == "sis":
        raise SlimdiffError(
            "Statistics with timestep weights 'sis' cannot be merged: each part weighs steps by "
            "its own prompts. Calibrate in one go, or with uniform, log or sampler weights."
        )
    prompts: list[tuple[int, str]] = []
    gain_prompts: list[tuple[int, str]] = []
    for part in parts:
        differ = [k for k, v in part.header.settings().items() if v != first.header.settings()[k]]
        if differ:
            raise SlimdiffError(
                f"Statistics cannot be merged: their {', '.join(differ)} differ. Calibrate all "
                "parts with the same model and settings."
            )
        prompts += part.header.prompts[: part.header.done]
        gain_prompts += part.header.gain_prompts
    indices = [index for index, _ in prompts + gain_prompts]
    if len(set(indices)) != len(indices):
        raise SlimdiffError(
            "Statistics cannot be merged: some prompt indices occur twice. Split the prompts "
            "without overlap and give each part its own start index."
        )
    header = replace(
        first.header,
        prompts=tuple(sorted(prompts)),
        gain_prompts=tuple(sorted(gain_prompts)),
        done=len(prompts),
        gains={},
        phases={},
        seconds=sum(part.header.seconds for part in parts),
        peak_mib=max(part.header.peak_mib for part in parts),
        files={},
    )
    return Statistics(header, Added([part.sums for part in parts]))
