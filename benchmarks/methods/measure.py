"""Errors of a slim pipeline against dense outputs and latents that were recorded once.

``noise_rel_mse`` = sum |e_slim - e_dense|^2 / sum |e_dense|^2 over prompts, steps and guidance
branches, both denoisers fed the dense latents; ``latent_rel_mse`` the same for the final latents,
each pipeline going its own way from the same noise (as in :mod:`slimdiff.fidelity`, which draws
the dense pipeline anew every time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from slimdiff.denoiser import denoiser, output_of
from slimdiff.gains import Call, output_error
from slimdiff.sampling import IndexedPrompt, Sampling, batches, sample_latents

__all__ = ["Errors", "Reference", "errors", "record"]


@dataclass(frozen=True)
class Reference:
    """What the dense pipeline did: every denoiser call, and the final latents of every batch."""

    prompts: tuple[IndexedPrompt, ...]
    sampling: Sampling
    calls: tuple[Call, ...]
    latents: tuple[Tensor, ...]


@dataclass(frozen=True)
class Errors:
    """Relative squared errors."""

    noise_rel_mse: float
    latent_rel_mse: float


def record(
    dense: DiffusionPipeline, prompts: Sequence[IndexedPrompt], sampling: Sampling
) -> Reference:
    """Draw ``prompts`` with the dense pipeline and keep all it answered."""
    calls: list[Call] = []

    def keep(module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        calls.append(Call(args, dict(kwargs), output_of(out).detach()))

    handle = denoiser(dense).register_forward_hook(keep, with_kwargs=True)
    try:
        latents = _latents(dense, prompts, sampling)
    finally:
        handle.remove()
    return Reference(tuple(prompts), sampling, tuple(calls), latents)


def errors(slim: DiffusionPipeline, reference: Reference) -> Errors:
    """Compare ``slim`` with what was recorded."""
    model = denoiser(slim)
    model.eval()
    noise = output_error(model, reference.calls)
    found = torch.cat(_latents(slim, reference.prompts, reference.sampling)).double()
    wanted = torch.cat(reference.latents).double()
    latent = (found - wanted).square().sum() / wanted.square().sum()
    return Errors(noise, float(latent))


def _latents(
    pipe: DiffusionPipeline, prompts: Sequence[IndexedPrompt], sampling: Sampling
) -> tuple[Tensor, ...]:
    groups = batches(prompts, sampling.batch_size)
    return tuple(sample_latents(pipe, batch, sampling) for batch in groups)
