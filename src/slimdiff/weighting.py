"""Which steps of a sampling run count how much, by name.

The formulas are in :mod:`slimdiff.timesteps`; here they meet a pipeline. ``sis`` needs the moments
of each stretch of steps on its own: they are taken in a short first pass over a few prompts, one
stretch at a time, so that no step's full moments are ever kept together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .decomposition import reader_moments
from .denoiser import denoiser
from .environment import sums_device
from .errors import SlimdiffError
from .linalg import centre, cholesky, roots
from .passes import site_groups
from .recording import (
    TokenSampling,
    Weighting,
    empty_sums,
    moment_mib,
    recording,
    unweighted,
)
from .sampling import IndexedPrompt, Sampling, batches, sample_latents
from .sites import Site, free_sites
from .statistics import Header
from .surgery import reader_weights
from .timesteps import log_weights, nuclear_norm, sampler_weights, uniform_weights

__all__ = ["WEIGHTS", "nearest", "timestep_weighting"]

WEIGHTS = ("uniform", "log", "sampler", "sis")
_STRETCHES = 5
_PROMPTS = 4
_FLOOR = 1e-7


def timestep_weighting(
    pipe: DiffusionPipeline, header: Header, most_mib: float | None = None
) -> Weighting:
    """The weights that a calibration asks for, by its scheduler; ``sis`` samples a few prompts.

    At most ``most_mib`` MiB of moments are in memory (:mod:`slimdiff.passes`).
    Raises SlimdiffError for an unknown name, or a scheduler that does not tell its steps.
    """
    name, sampling = header.timestep_weights, header.sampling.calibrating
    if name not in WEIGHTS:
        raise SlimdiffError(
            f"Unknown timestep weights '{name}'; expected one of {', '.join(WEIGHTS)}."
        )
    if name == "uniform":
        return unweighted
    scheduler, steps = pipe.scheduler, sampling.steps  # pyright: ignore
    try:
        if name == "log":
            return _by_time(log_weights(scheduler, steps))
        if name == "sampler":
            return _by_time(sampler_weights(scheduler, steps))
        times = tuple(uniform_weights(scheduler, steps))
    except ValueError as error:
        raise SlimdiffError(
            f"Timestep weights '{name}' need the steps of {type(scheduler).__name__} before it "
            f"runs, which it does not tell ({error}). Use --timestep-weights uniform."
        ) from error
    prompts, weights = header.prompts[:_PROMPTS], {}
    for sites in site_groups(header.sites, most_mib):
        weights |= _influence(pipe, sites, prompts, sampling, header.tokens, times)
    return _by_site(weights)


def _by_time(weights: Mapping[float, float]) -> Weighting:
    return lambda site, timestep: weights[nearest(weights, timestep)]


def _by_site(weights: Mapping[str, Mapping[float, float]]) -> Weighting:
    return lambda site, timestep: weights[site][nearest(weights[site], timestep)]


def nearest(times: Iterable[float], timestep: float) -> float:
    """The scheduler's step that the denoiser knows as ``timestep``.

    Some denoisers are told thousandths, or the step rounded to half precision.
    """
    known = set(times)
    if timestep in known:
        return timestep
    told = 1000 * timestep if timestep <= 1 else timestep
    return min(known, key=lambda time: abs(time - told))


def _influence(
    pipe: DiffusionPipeline,
    sites: Sequence[Site],
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
    tokens: TokenSampling,
    times: Sequence[float],
) -> dict[str, dict[float, float]]:
    """Site -> timestep -> spectral influence, mean 1 over the steps ``times``."""
    count = min(_STRETCHES, len(times))
    found: dict[str, dict[float, float]] = {site.name: {} for site in free_sites(sites)}
    for k in range(count):
        stretch = times[k * len(times) // count : (k + 1) * len(times) // count]
        for site, value in _stretch_influence(
            pipe, sites, prompts, sampling, tokens, times, frozenset(stretch)
        ).items():
            found[site] |= dict.fromkeys(stretch, value)
    for weights in found.values():
        mean = sum(weights.values()) / len(weights)
        for timestep in weights:
            weights[timestep] = weights[timestep] / mean if mean > 0 else 1.0
    return found


def _stretch_influence(
    pipe: DiffusionPipeline,
    sites: Sequence[Site],
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
    tokens: TokenSampling,
    times: Sequence[float],
    stretch: frozenset[float],
) -> dict[str, float]:
    """Nuclear norm of each site's whitened weights under the moments of these steps alone."""
    model = denoiser(pipe)
    sums = empty_sums(sites, sums_device(model.device, moment_mib(sites)))

    def inside(site: str, timestep: float) -> float:
        return float(nearest(times, timestep) in stretch)

    with recording(model, sites, sums, tokens=tokens, weights=inside):
        for batch in batches(prompts, sampling.batch_size):
            sample_latents(pipe, batch, sampling)
    free = free_sites(sites)
    return {s.name: _nuclear(s, sums[s.name], reader_weights(model, s)) for s in free}


def _nuclear(site: Site, sums: Mapping[str, Tensor], readers: Tensor) -> float:
    if site.kind == "qk":
        query, _ = roots(sums["query"], _FLOOR)
        key, _ = roots(sums["key"], _FLOOR)
        return nuclear_norm(query, key) ** 0.5
    _, c = centre(torch.stack(reader_moments(sums)).sum(0))
    # L^T W has the singular values of C^{1/2} W when C = L L^T.
    return nuclear_norm(cholesky(c, 0.0).mT, readers.flatten(0, 1).to(c))
