"""Timestep weights: means of 1, the published formula, and the scheduler's true response."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from slimdiff.timesteps import log_weights, nuclear_norm, sampler_weights, uniform_weights

SCHEDULERS = [
    DDIMScheduler(clip_sample=False, steps_offset=1),
    DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1),
    EulerDiscreteScheduler(),
    EulerAncestralDiscreteScheduler(),
    DPMSolverMultistepScheduler(),
    FlowMatchEulerDiscreteScheduler(),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("weights", [uniform_weights, log_weights, sampler_weights])
def test_weights_have_mean_one_and_a_key_a_timestep(scheduler, weights):
    before = scheduler.timesteps.clone()
    found = weights(scheduler, 6)
    assert torch.equal(scheduler.timesteps, before), "the user's scheduler was touched"
    scheduler.set_timesteps(6)
    assert list(found) == [float(t) for t in scheduler.timesteps]
    assert sum(found.values()) / len(found) == pytest.approx(1)
    assert all(weight >= 0 for weight in found.values())
    scheduler.set_timesteps(len(before))


def test_log_weights_follow_the_published_formula():
    found = list(log_weights(SCHEDULERS[0], 5).values())
    raw = [0.8 + 0.4 * math.log(5 - i + 1) / math.log(5) for i in range(1, 6)]
    assert found == pytest.approx([5 * r / sum(raw) for r in raw])
    assert found == sorted(found, reverse=True)


def test_sampler_weights_of_a_flow_are_the_squared_step_sizes():
    # Euler on a flow adds dt * prediction, so the response to step i is dt_i^2, whatever follows.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    found = list(sampler_weights(scheduler, 5).values())
    scheduler.set_timesteps(5)
    squares = scheduler.sigmas.diff().square().tolist()
    expected = [5 * s / sum(squares) for s in squares]
    assert found == pytest.approx(expected, rel=1e-3)


def test_nuclear_norm_sums_singular_values():
    generator = torch.Generator().manual_seed(0)
    root, weight = (torch.randn(4, n, generator=generator).double() for n in (4, 3))
    expected = torch.linalg.svdvals(root @ weight).sum()
    assert nuclear_norm(root, weight) == pytest.approx(float(expected))
