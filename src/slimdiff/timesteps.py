"""How much each denoising step counts in the pooled moments: weights ``w_t`` of mean 1.

- ``uniform``: 1.
- ``log``: decreasing in the step's number i = 1..T, ``0.8 + 0.4 ln(T - i + 1) / ln T``
  (OBS-Diff, 2025, arXiv 2510.06751, with its scripts' 0.8 and 1.2).
- ``sampler``: how far an error in the prediction at step i moves the final latent: the squared
  response of the scheduler to a small perturbation of that one prediction, all other predictions
  held fixed. Ours; read off the scheduler itself.
- ``sis``: per site, the spectral influence of a step: the nuclear norm of ``C_t^{1/2} W`` as a
  share of the sum over steps. Our reading of the name in SlimDiff (Roy et al., 2025,
  arXiv 2509.21498), whose formula is not public.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["log_weights", "nuclear_norm", "sampler_weights", "uniform_weights"]

_NUDGE = 1e-3


def uniform_weights(scheduler: Any, steps: int) -> dict[float, float]:
    """Every timestep counts 1."""
    return dict.fromkeys(_timesteps(scheduler, steps), 1.0)


def log_weights(scheduler: Any, steps: int) -> dict[float, float]:
    """Decreasing with the number of the step, from noise to picture; mean 1."""
    times = _timesteps(scheduler, steps)
    top = math.log(max(2, len(times)))
    raw = [0.8 + 0.4 * math.log(len(times) - i) / top for i in range(len(times))]
    return _normalised(times, raw)


def sampler_weights(scheduler: Any, steps: int) -> dict[float, float]:
    """Squared response of the final latent to an error in the prediction of each step; mean 1.

    Runs the scheduler ``steps + 1`` times over a small latent with a fixed made-up prediction.
    """
    times = _timesteps(scheduler, steps)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, 8, 8)
    latent, prediction, nudge = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    base = _final(scheduler, steps, latent, prediction, None, nudge)
    raw = [
        float((_final(scheduler, steps, latent, prediction, i, nudge) - base).square().sum())
        for i in range(len(times))
    ]
    return _normalised(times, raw)


def nuclear_norm(root: Tensor, weight: Tensor) -> float:
    """``|C^{1/2} W|_*``, the sum of singular values; shapes (..., n, n) and (..., n, D)."""
    return float(torch.linalg.svdvals(root @ weight).sum())


def _timesteps(scheduler: Any, steps: int) -> list[float]:
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    return [float(t) for t in own.timesteps]


def _final(
    scheduler: Any, steps: int, latent: Tensor, prediction: Tensor, at: int | None, nudge: Tensor
) -> Tensor:
    """Final latent when the prediction of step ``at`` is nudged."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    extra = {}
    if "generator" in inspect.signature(own.step).parameters:
        extra["generator"] = torch.Generator().manual_seed(0)
    x = latent * float(getattr(own, "init_noise_sigma", 1.0))
    for i, t in enumerate(own.timesteps):
        if hasattr(own, "scale_model_input"):
            own.scale_model_input(x, t)  # some schedulers insist on it before a step
        out = prediction + _NUDGE * nudge if i == at else prediction
        x = own.step(out, t, x, **extra).prev_sample.double()
    return x


def _normalised(times: list[float], raw: list[float]) -> dict[float, float]:
    mean = sum(raw) / len(raw)
    return {t: w / mean if mean > 0 else 1.0 for t, w in zip(times, raw, strict=True)}
