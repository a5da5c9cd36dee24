"""What a calibration is said to take, against what it does."""

from __future__ import annotations

import pytest
from tiny import tiny_pipeline

import slimdiff
from slimdiff import estimate as estimates
from slimdiff.decomposition import EXACT, Method
from slimdiff.sites import free_sites


@pytest.fixture
def clock(monkeypatch):
    """A clock that a closed form moves on by ten times the cube of its moment's width."""
    now = [0.0]

    def timed(form):
        def decompose(moments, readers):
            width = max(total.shape[-1] for total in moments.values())
            now[0] += 10.0 * width**3
            return form.decompose(moments, readers)

        return Method(decompose, form.maps)

    monkeypatch.setattr(estimates, "EXACT", {kind: timed(form) for kind, form in EXACT.items()})
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: now[0])
    return now


def test_closed_forms_are_scaled_by_the_cube_of_their_moments(clock):
    pipe = tiny_pipeline()
    sampling = slimdiff.Sampling(steps=2, batch_size=2)
    stats = slimdiff.calibrate(pipe, ["a thing", "another"], sampling=sampling)
    ffns = [site for site in free_sites(stats.header.sites) if site.kind == "ffn"]
    cubes = [10.0 * (site.heads * site.width + 1) ** 3 for site in ffns]
    assert len(set(cubes)) > 1  # else one site tells of all
    clock[0] = 0.0
    found = estimates._closed_forms_s(pipe.unet, ffns, stats.sums)
    assert found == pytest.approx(sum(cubes), rel=1e-3)
    assert clock[0] == min(cubes)  # one was run, the cheapest


def test_models_without_free_sites_take_no_closed_forms():
    pipe = tiny_pipeline()
    assert estimates._closed_forms_s(pipe.unet, [], {}) == 0.0
