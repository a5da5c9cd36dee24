"""What a calibration will take, before it runs: one short sampling run is timed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from . import families
from .denoiser import denoiser
from .environment import peak_mib
from .gains import Call, capture_calls
from .recording import TokenSampling, empty_sums, recording
from .sampling import IndexedPrompt, Sampling
from .sites import free_sites, moment_mib
from .token_sampling import SHARE

__all__ = ["Estimate", "estimate"]

_PROBE_STEPS = 2


@dataclass(frozen=True)
class Estimate:
    """Predicted wall time (s) of sampling and gains, and peak memory (MiB)."""

    sampling_s: float
    gains_s: float
    peak_mib: float
    statistics_mib: float
    call: Call

    def __str__(self) -> str:
        minutes = (self.sampling_s + self.gains_s) / 60
        return (
            f"about {minutes:.1f} min to calibrate ({self.sampling_s:.0f} s sampling, at most "
            f"{self.gains_s:.0f} s gains), peak memory about {self.peak_mib:.0f} MiB, statistics "
            f"{self.statistics_mib:.0f} MiB on disk"
        )


def estimate(
    pipe: DiffusionPipeline,
    prompt: str,
    count: int,
    sampling: Sampling,
    tokens: int | float | None = SHARE,
) -> Estimate:
    """Time ``_PROBE_STEPS`` steps of one batch, hooks on, and scale up to ``count`` prompts."""
    model = denoiser(pipe)
    sites = families.find(model).sites(model)
    batch: list[IndexedPrompt] = [(i, prompt) for i in range(min(count, sampling.batch_size))]
    probe = Sampling(**{**sampling.to_dict(), "steps": _PROBE_STEPS})
    sums = empty_sums(sites, model.device)
    with recording(model, sites, sums, tokens=TokenSampling(tokens, sampling.seed)):
        (call,) = capture_calls(pipe, batch, probe, 1)[:1]
        begin = time.perf_counter()
        capture_calls(pipe, batch, probe, 1)
        step = (time.perf_counter() - begin) / _PROBE_STEPS
    batches = -(-count // len(batch))
    seconds = step * sampling.steps * batches
    moments = moment_mib(sites)
    widest = max((s.heads * s.width for s in free_sites(sites)), default=0)
    # Decomposing the widest site holds about four float64 copies of its moment.
    peak = peak_mib(pipe.device) + moments + 4 * widest**2 * 8 / 2**20
    return Estimate(seconds, seconds, peak, moments, call)
