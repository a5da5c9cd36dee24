"""What a calibration will take, before it runs: a short run and a few closed forms are timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from . import families
from .decomposition import EXACT
from .denoiser import denoiser
from .environment import peak_mib, sums_device
from .gains import Call, capture_calls
from .passes import site_groups
from .recording import TokenSampling, empty_sums, moment_mib, recording
from .sampling import IndexedPrompt, Sampling
from .sites import Site, free_sites
from .surgery import reader_weights
from .token_sampling import SHARE

__all__ = ["Estimate", "estimate"]

_PROBE_STEPS = 2


@dataclass(frozen=True)
class Estimate:
    """Predicted wall time (s) of sampling, in ``passes``, closed forms and gains; memory (MiB)."""

    sampling_s: float
    forms_s: float
    gains_s: float
    peak_mib: float
    statistics_mib: float
    call: Call
    passes: int

    def __str__(self) -> str:
        minutes = (self.sampling_s + self.forms_s + self.gains_s) / 60
        passes = f" in {self.passes} passes" if self.passes > 1 else ""
        return (
            f"about {minutes:.1f} min to calibrate ({self.sampling_s:.0f} s sampling{passes}, "
            f"{self.forms_s:.0f} s closed forms, at most {self.gains_s:.0f} s gains), peak memory "
            f"about {self.peak_mib:.0f} MiB, statistics {self.statistics_mib:.0f} MiB on disk"
        )


def estimate(
    pipe: DiffusionPipeline,
    prompt: str,
    count: int,
    sampling: Sampling,
    tokens: int | float | None = SHARE,
    max_moment_mib: float | None = None,
) -> Estimate:
    """Time ``_PROBE_STEPS`` steps of one batch, hooks on, and scale up to ``count`` prompts."""
    model = denoiser(pipe)
    sites = families.find(model).sites(model)
    batch: list[IndexedPrompt] = [(i, prompt) for i in range(min(count, sampling.batch_size))]
    probe = Sampling(**{**sampling.to_dict(), "steps": _PROBE_STEPS})
    groups = site_groups(sites, max_moment_mib)
    most = max(groups, key=moment_mib, default=())
    moments = moment_mib(most)
    sums = empty_sums(most, sums_device(model.device, moments))
    with recording(model, most, sums, tokens=TokenSampling(tokens, sampling.seed)):
        (call,) = capture_calls(pipe, batch, probe, 1)[:1]
        begin = time.perf_counter()
        capture_calls(pipe, batch, probe, 1)
        step = (time.perf_counter() - begin) / _PROBE_STEPS
    forms = _closed_forms_s(model, sites, sums)
    batches = -(-count // len(batch))
    seconds = step * sampling.calibrating.steps * batches
    widest = max((s.heads * s.width for s in free_sites(sites)), default=0)
    # Decomposing the widest site holds about four float64 copies of its moment.
    peak = peak_mib(pipe.device) + moments + 4 * widest**2 * 8 / 2**20
    passes, disk = len(groups), moment_mib(sites)
    return Estimate(seconds * passes, forms, seconds, peak, disk, call, passes)


def _closed_forms_s(
    model: nn.Module, sites: Sequence[Site], sums: Mapping[str, Mapping[str, Tensor]]
) -> float:
    """Seconds that the closed forms of ``sites`` take, by the cheapest of each kind in ``sums``.

    Their cost goes with the cube of the moments' width; small ones run below the machine's best,
    so large models take less than is said here.
    """
    free, seconds = free_sites(sites), 0.0
    cubes = _cubes(free)
    for kind, form in EXACT.items():
        alike = [site for site in free if site.kind == kind]
        there = [site for site in alike if site.name in sums]
        if not there:
            continue
        tried = min(there, key=lambda site: cubes[site.name])
        begin = time.perf_counter()
        found = sums[tried.name]
        place = next(iter(found.values())).device
        form.decompose(found, reader_weights(model, tried).to(place))
        elapsed = time.perf_counter() - begin
        seconds += elapsed * sum(cubes[site.name] for site in alike) / cubes[tried.name]
    return seconds


def _cubes(sites: Sequence[Site]) -> dict[str, int]:
    """By site, what its closed form costs, up to a factor of its kind's own."""
    sums = empty_sums(sites, torch.device("meta"))
    return {
        site.name: sum(total.numel() * total.shape[-1] for total in sums[site.name].values())
        for site in sites
    }
