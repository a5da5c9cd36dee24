"""Gains: one pass a site, or as many as the sampling pays for."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
from helpers import statistics
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_pipeline

import slimdiff
from slimdiff import gains
from slimdiff.decomposition import EXACT
from slimdiff.denoiser import denoiser, timestep_of
from slimdiff.families.blocks import shared_block_sites
from slimdiff.gains import gain_calls, grouped, output_error
from slimdiff.sites import free_sites
from slimdiff.surgery import trial

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@given(st.integers(1, 40))
def test_groups_share_out_all_sites_in_order_and_are_no_more_than_asked(count):
    sites = shared_block_sites(tiny_pipeline_sites())
    found = grouped(sites, count)
    assert sorted(s.name for group in found for s in group) == sorted(s.name for s in sites)
    assert len(found) <= max(count, 1)
    assert all(found)
    if count >= 3:
        assert all(len({site.kind for site in group}) == 1 for group in found)
    order = {site.name: i for i, site in enumerate(sites)}
    for group in found:
        assert [s.name for s in group] == sorted((s.name for s in group), key=order.get)


def tiny_pipeline_sites():
    from slimdiff.families import unet

    return unet._tiny()[0]


def test_a_large_model_measures_groups_for_less_than_the_sampling_cost(pipe, monkeypatch):
    monkeypatch.setattr(gains, "_LARGE", 0)
    model, rows = denoiser(pipe), []
    handle = model.register_forward_pre_hook(
        lambda m, args, kwargs: rows.append(len(args[0] if args else kwargs["sample"])),
        with_kwargs=True,
    )
    stats = slimdiff.calibrate(pipe, ["a", "b", "c", "d"], sampling=SAMPLING)
    handle.remove()
    sampled = 2 * 4 * SAMPLING.steps  # both guidance branches of every prompt at every step
    assert sum(rows) - sampled < sampled  # the maps take time too
    assert stats.complete
    assert all(gain.error > 0 for gain in stats.header.gains.values())


@given(st.integers(1, 600), st.integers(1, 50))
def test_what_a_large_model_evaluates_for_gains_fits_into_the_sampling(prompts, steps):
    stats = statistics()
    header = replace(
        stats.header,
        source=replace(stats.header.source, parameters=10**9),
        sampling=replace(stats.header.sampling, steps=steps),
        prompts=tuple((i, "a") for i in range(prompts)),
    )
    extent, sampled = gains._extent(header), prompts * steps
    assert extent.steps <= extent.run <= max(1, sampled / 4)
    evaluated = extent.prompts * (extent.run + extent.passes * extent.steps)
    assert evaluated + gains._MAPS <= sampled or (extent.prompts, extent.passes) == (1, 1)


def test_the_gains_of_a_group_add_up_to_the_error_of_cutting_all_of_it(pipe, monkeypatch):
    monkeypatch.setattr(gains, "_LARGE", 0)
    stats = slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)
    header, model = stats.header, denoiser(pipe)
    free = free_sites(header.sites)
    calls = gain_calls(pipe, header)
    for group in grouped(free, gains._extent(header).passes):
        with ExitStack() as cuts:
            for site in group:
                maps = EXACT[site.kind].maps(
                    stats.bases[site.name], stats.sums[site.name], max(1, site.width // 2)
                )
                cuts.enter_context(trial(model, site, maps))
            joint = output_error(model, calls)
        total = sum(header.gains[site.name].error for site in group)
        assert total == pytest.approx(joint, rel=1e-6)


def test_a_small_model_gets_a_pass_a_site_however_little_was_sampled(pipe):
    stats = slimdiff.calibrate(pipe, ["a"], sampling=SAMPLING)
    extent = gains._extent(stats.header)
    assert (extent.prompts, extent.steps) == (1, 2)
    assert extent.passes == len(free_sites(stats.header.sites))


@pytest.mark.parametrize(("steps", "asked"), [(2, 4), (3, 4), (4, 4), (4, 2)])
def test_calls_are_of_as_many_steps_as_asked_or_all_there_are(pipe, steps, asked):
    sampling = replace(SAMPLING, steps=steps)
    calls = gains.capture_calls(pipe, [(0, "a")], sampling, asked)
    seen = [float(timestep_of(call.args, call.kwargs)) for call in calls]
    assert len(set(seen)) == min(steps, asked)
    assert seen == sorted(seen, reverse=True)
