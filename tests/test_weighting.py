"""Timestep weights on a pipeline, and the methods and policies that calibration serves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_pipeline

import slimdiff
from slimdiff import weighting
from slimdiff.calibration import finish
from slimdiff.recording import moment_mib
from slimdiff.sites import free_sites
from slimdiff.weighting import WEIGHTS, nearest

SAMPLING = slimdiff.Sampling(steps=3, guidance=3.0, batch_size=2)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def uniform(pipe):
    return slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weighting_calibrates_to_a_usable_plan(pipe, uniform, name):
    stats = slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING, timestep_weights=name)
    assert stats.header.timestep_weights == name
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.6), multiple=2)
    assert 0 < plan.pool_kept <= 0.6
    same = all(
        torch.equal(sums["augmented"], uniform.sums[site]["augmented"])
        for site, sums in stats.sums.items()
        if "augmented" in sums
    )
    assert same == (name == "uniform")


def test_an_unknown_weighting_and_method_are_refused_by_name(pipe, uniform):
    with pytest.raises(slimdiff.SlimdiffError, match="Unknown timestep weights 'x'; expected"):
        slimdiff.calibrate(pipe, ["a"], sampling=SAMPLING, timestep_weights="x")
    with pytest.raises(slimdiff.SlimdiffError, match="Unknown method 'x'; expected one of exact"):
        finish(pipe, uniform, "x")


def test_influence_is_measured_within_the_memory_allowed(pipe, uniform, monkeypatch):
    header = replace(uniform.header, timestep_weights="sis")
    most = max(moment_mib([site]) for site in free_sites(header.sites))
    held = []
    make = weighting.empty_sums
    monkeypatch.setattr(
        weighting,
        "empty_sums",
        lambda sites, place: held.append(moment_mib(sites)) or make(sites, place),
    )
    few, all_at_once = (weighting.timestep_weighting(pipe, header, m) for m in (most, None))
    assert max(held[:-3]) <= most < held[-1]
    for site in free_sites(header.sites):
        for time in (1.0, 333.0, 667.0):
            assert few(site.name, time) == pytest.approx(all_at_once(site.name, time))


def test_the_published_method_plans_and_compresses_from_the_same_sums(pipe, uniform):
    published = finish(pipe, uniform, "paper")
    budget = slimdiff.Budget(pool=0.6)
    for policy in ("uniform", "ara", "measured"):
        plan = slimdiff.allocate(published, budget, policy=policy, multiple=2)
        assert plan.method == "paper"
        assert plan.pool_kept <= 0.6
    slim = slimdiff.recipe.copy_pipeline(pipe)
    with pytest.raises(slimdiff.SlimdiffError, match="plan is for method 'paper'"):
        slimdiff.compress_(slim, uniform, plan)
    slimdiff.compress_(slim, published, plan)
    report = slimdiff.compare(pipe, slim, [(5, "c")], sampling=SAMPLING)
    assert 0 < report.fidelity.noise_rel_mse < 1


def test_a_step_is_found_under_the_name_that_the_denoiser_knows_it_by():
    times = [981.0, 500.5, 1.0]
    assert [nearest(times, t) for t in times] == times
    assert nearest(times, 0.981) == 981.0  # thousandths
    assert nearest(times, 500.0) == 500.5  # rounded to half precision
