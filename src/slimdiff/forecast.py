"""The error that a plan foretells, measured on more prompts than its gains were.

Prompts differ in their errors by ten and more, and gains see a few of them: enough to rank sites,
too few to say what all of them together will cost. Once a plan is cut, its total is therefore
measured on an eighth of the calibration prompts, those that the sums have not seen first::

    total = sum |e_slim - e_dense|^2 / sum |e_dense|^2

and every site's predicted error is scaled so that they add up to it. Ours; the paper predicts no
error.
"""

from __future__ import annotations

from dataclasses import replace

from diffusers import DiffusionPipeline

from .denoiser import denoiser
from .gains import capture_calls, gain_prompts, output_error
from .plan import Plan
from .sampling import IndexedPrompt
from .statistics import Header

__all__ = ["forecast", "forecast_prompts"]

_SHARE = 8
_STEPS = 4


def forecast(
    pipe: DiffusionPipeline, slim_pipe: DiffusionPipeline, header: Header, plan: Plan
) -> Plan:
    """``plan``, which ``slim_pipe`` was cut by, its predictions adding up to the measured total.

    Samples ``forecast_prompts`` with ``pipe`` and evaluates ``slim_pipe`` at four of the steps.
    """
    if plan.predicted_error <= 0:
        return plan
    prompts = forecast_prompts(header)
    calls = capture_calls(pipe, prompts, header.sampling.calibrating, _STEPS)
    scale = output_error(denoiser(slim_pipe), calls) / plan.predicted_error
    return replace(plan, predicted={name: scale * e for name, e in plan.predicted.items()})


def forecast_prompts(header: Header) -> tuple[IndexedPrompt, ...]:
    """An eighth of all calibration prompts, at least those of the gains; unsummed ones first."""
    every = (*header.gain_prompts, *header.prompts)
    return every[: max(len(gain_prompts(header)), len(every) // _SHARE)]
