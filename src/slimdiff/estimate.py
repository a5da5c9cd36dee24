"""What a calibration will take, before it runs: one short sampling run is timed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from . import families
from .denoiser import denoiser
from .environment import peak_mib, sums_device
from .gains import Call, capture_calls
from .passes import site_groups
from .recording import TokenSampling, empty_sums, moment_mib, recording
from .sampling import IndexedPrompt, Sampling
from .sites import free_sites
from .token_sampling import SHARE

__all__ = ["Estimate", "estimate"]

_PROBE_STEPS = 2


@dataclass(frozen=True)
class Estimate:
    """Predicted wall time (s) of sampling, in ``passes``, and gains, and peak memory (MiB)."""

    sampling_s: float
    gains_s: float
    peak_mib: float
    statistics_mib: float
    call: Call
    passes: int

    def __str__(self) -> str:
        minutes = (self.sampling_s + self.gains_s) / 60
        passes = f" in {self.passes} passes" if self.passes > 1 else ""
        return (
            f"about {minutes:.1f} min to calibrate ({self.sampling_s:.0f} s sampling{passes}, "
            f"at most {self.gains_s:.0f} s gains), peak memory about {self.peak_mib:.0f} MiB, "
            f"statistics {self.statistics_mib:.0f} MiB on disk"
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
    batches = -(-count // len(batch))
    seconds = step * sampling.calibrating.steps * batches
    widest = max((s.heads * s.width for s in free_sites(sites)), default=0)
    # Decomposing the widest site holds about four float64 copies of its moment.
    peak = peak_mib(pipe.device) + moments + 4 * widest**2 * 8 / 2**20
    passes, disk = len(groups), moment_mib(sites)
    return Estimate(seconds * passes, seconds, peak, disk, call, passes)
