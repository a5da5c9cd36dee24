"""Second moments of what enters Linears, for the peers that need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from slimdiff.denoiser import denoiser, timestep_of
from slimdiff.sampling import IndexedPrompt, Sampling, batches, sample_latents

__all__ = ["Moments", "input_moments"]

Moments = Mapping[str, Tensor]
"""Name of a Linear -> ``E[x x^T]`` of its inputs, uncentred, float64, shape (n, n)."""


def input_moments(
    pipe: DiffusionPipeline,
    linears: Sequence[str],
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
    weights: Mapping[float, float] | None = None,
) -> Moments:
    """Mean of ``w_t x x^T`` over all tokens, steps and guidance branches of one sampling.

    ``weights``: timestep -> ``w_t``; 1 for all by default.
    """
    model, step = denoiser(pipe), _Step()
    sums = {name: _Sum() for name in linears}
    handles = [model.register_forward_pre_hook(step, with_kwargs=True)]
    for name, total in sums.items():
        hook = _adder(total, step, weights)
        handles.append(model.get_submodule(name).register_forward_pre_hook(hook))
    try:
        for batch in batches(prompts, sampling.batch_size):
            sample_latents(pipe, batch, sampling)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.value / total.weight for name, total in sums.items()}


class _Step:
    """Follows the timestep of the running denoiser call."""

    timestep: float = 0.0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.timestep = timestep_of(args, kwargs)


class _Sum:
    """A running sum of outer products and of the weights of their rows."""

    def __init__(self) -> None:
        self.value = torch.zeros((), dtype=torch.float64)
        self.weight = 0.0


def _adder(
    total: _Sum, step: _Step, weights: Mapping[float, float] | None
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        weight = 1.0 if weights is None else weights[step.timestep]
        rows = args[0].detach().flatten(0, -2)
        # Products in the model's own precision, sums in float64, as slimdiff's own recorder.
        total.value = total.value + weight * (rows.mT @ rows).to(torch.float64)
        total.weight += weight * len(rows)

    return hook
