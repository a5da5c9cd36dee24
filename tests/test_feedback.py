"""Readers refitted to the dense model's outputs."""

from __future__ import annotations

import pytest
import torch
from helpers import normal, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_pipeline

import slimdiff
from slimdiff.denoiser import denoiser
from slimdiff.feedback import refitted, repair_
from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import sample_latents
from slimdiff.shadow import shadowing

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
READERS = (".to_out.0", ".net.2")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def stats(pipe):
    return slimdiff.calibrate(pipe, [f"thing {i}" for i in range(4)], sampling=SAMPLING)


def slimmed(pipe, stats, pool):
    slim = copy_pipeline(pipe)
    slimdiff.compress_(
        slim, stats, slimdiff.allocate(stats, slimdiff.Budget(pool=pool), multiple=2)
    )
    return slim


def reader_error(pipe, slim, stats):
    """Squared error of all readers' outputs in the slim run against the dense run."""
    wanted, error, handles = {}, [0.0], []
    for name, module in denoiser(pipe).named_modules():
        if name.endswith(READERS):
            handles.append(
                module.register_forward_hook(
                    lambda m, a, out, name=name: wanted.__setitem__(name, out)
                )
            )
            twin = denoiser(slim).get_submodule(name)

            def add(m, a, out, name=name):
                error[0] += float((out - wanted[name]).double().square().sum())

            handles.append(twin.register_forward_hook(add))
    with shadowing(denoiser(pipe), denoiser(slim), lambda ours, theirs: None):
        for i in range(0, 4, 2):
            sample_latents(pipe, stats.header.prompts[i : i + 2], SAMPLING)
    for handle in handles:
        handle.remove()
    return error[0]


@settings(max_examples=25)
@given(seeds, st.integers(1, 5), st.integers(1, 3))
def test_refitted_is_least_squares_without_a_ridge(seed, inputs, outputs):
    x, y = normal(seed, 20, inputs), normal(seed + 1, 20, outputs)
    start = normal(seed + 2, inputs, outputs)
    found = refitted(x.mT @ x, x.mT @ y, start, 0.0)
    torch.testing.assert_close(found, torch.linalg.lstsq(x, y).solution)
    near = refitted(x.mT @ x, x.mT @ y, start, 1e9)
    torch.testing.assert_close(near, start, rtol=1e-6, atol=1e-6)


def test_an_uncut_model_needs_no_repair(pipe, stats):
    slim = slimmed(pipe, stats, 1.0)
    repair_(pipe, slim, stats, 2)
    for name, weight in denoiser(pipe).state_dict().items():
        # Moments are float32 products; what is left of C - G W is divided by the ridge.
        torch.testing.assert_close(denoiser(slim).state_dict()[name], weight, rtol=0, atol=1e-3)


def test_outputs_come_nearer_to_the_dense_ones(pipe, stats):
    slim = slimmed(pipe, stats, 0.4)
    before = reader_error(pipe, slim, stats)
    one = copy_pipeline(slim)
    repair_(pipe, one, stats, 1)
    repair_(pipe, slim, stats, 50)  # more rounds than readers: one at a time
    errors = [reader_error(pipe, p, stats) for p in (slim, one)]
    assert max(errors) < before
    assert slimdiff.compression.plan_of(slim).calibration["rounds"] == 50
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in denoiser(pipe).modules())


def test_what_cannot_be_repaired_is_refused(pipe, stats):
    with pytest.raises(slimdiff.SlimdiffError, match="rounds=0; expected 1 or more"):
        repair_(pipe, slimmed(pipe, stats, 0.9), stats, 0)
    with pytest.raises(slimdiff.SlimdiffError, match="not slim: its denoiser records no plan"):
        repair_(pipe, copy_pipeline(pipe), stats, 1)
