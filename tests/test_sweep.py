"""Sweeps and duels: the knee, points that are kept, what is refused, figures of both pipelines."""

from __future__ import annotations

import json

import pytest
from tiny import tiny_pipeline

import slimdiff
from slimdiff import Budget, SlimdiffError
from slimdiff import sweep as sweeps
from slimdiff.bench import bench
from slimdiff.denoiser import denoiser
from slimdiff.recipe import copy_pipeline
from slimdiff.sweep import Point, figure, knee, require_matplotlib, sweep

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def stats(pipe):
    return slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)


@pytest.mark.parametrize(
    ("costs", "errors", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1e-6, 2e-6, 4e-6, 1e-2], 2),
        ([0.6, 0.7, 0.8, 0.9], [1e-2, 1e-5, 1e-6, 1e-6], 1),
        ([0.9, 0.8, 0.7], [1e-6, 1e-5, 1e-4], None),
        ([0.9, 0.8], [1e-6, 1e-5], None),
        ([0.9, 0.9, 0.9], [1e-6, 1e-5, 1e-4], None),
    ],
)
def test_the_knee_is_where_error_begins_to_soar(costs, errors, expected):
    assert knee(costs, errors) == expected


def test_a_sweep_keeps_its_points_and_goes_on(pipe, stats, tmp_path, monkeypatch):
    budgets = [Budget(pool=share) for share in (0.9, 0.6)]
    prompts = [(9, "thing")]
    first = sweep(pipe, stats, budgets[:1], prompts, tmp_path, multiple=2)
    plan = slimdiff.Plan.load(tmp_path / "pool-0.9-plan.json")
    assert 0.8 < plan.pool_kept <= 0.9
    made, cut = [], sweeps.cut
    monkeypatch.setattr(sweeps, "cut", lambda *a, **k: made.append(a[2]) or cut(*a, **k))
    points = sweep(pipe, stats, budgets, prompts, tmp_path, multiple=2)
    assert made == budgets[1:]
    assert points[0] == first[0]
    assert points[1].params < points[0].params < 1
    assert points[1].error > points[0].error > 0
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert [p["name"] for p in saved["points"]] == ["pool-0.9", "pool-0.6"]
    with pytest.raises(SlimdiffError, match="other statistics, prompts or options.*--force"):
        sweep(pipe, stats, budgets, [(9, "another")], tmp_path, multiple=2)


def test_a_sweep_refuses_what_is_out_of_reach_before_it_cuts(pipe, stats, tmp_path):
    budgets = [Budget(pool=share) for share in (0.9, 0.01)]
    with pytest.raises(SlimdiffError, match="out of reach"):
        sweep(pipe, stats, budgets, [(9, "thing")], tmp_path, multiple=2)
    assert not list(tmp_path.rglob("*.json"))


def test_the_figure_is_drawn_and_missing_matplotlib_is_said(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    points = [Point("a", 0.9, 0.95, 1e-6), Point("b", 0.8, 0.9, 2e-6), Point("c", 0.7, 0.8, 1e-2)]
    figure(points, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None)
    with pytest.raises(SlimdiffError, match=r"needs matplotlib.*slimdiff\[bench\]"):
        require_matplotlib()


def test_a_duel_times_both_pipelines_on_the_same_work(pipe, stats):
    slim = copy_pipeline(pipe)
    slimdiff.compress_(slim, stats, slimdiff.allocate(stats, Budget(pool=0.6), multiple=2))
    found = bench(pipe, slim, sampling=SAMPLING, seconds=0.0)
    assert found.step.rounds == 5
    assert found.picture.rounds == 3
    assert 0 < found.step.dense < found.picture.dense
    assert found.step.dense_spread >= 0
    assert found.bytes[1] < found.bytes[0]
    assert found.bytes[0] == 4 * denoiser(pipe).num_parameters()
    assert found.inputs.startswith("4x4x8x8")
    assert json.loads(json.dumps(found.to_dict()))["step"]["ratio"] == found.step.ratio
