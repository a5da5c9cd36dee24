"""Latency: curves and tables as values, measuring and its cache, plans that meet the clock."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers import statistics, tiny_unet
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_pipeline

import slimdiff
from slimdiff import Budget, SlimdiffError, allocate, deadline, profiling
from slimdiff.allocation import kept_shares
from slimdiff.deadline import Clock, plan_in_time, start_clock
from slimdiff.denoiser import denoiser
from slimdiff.families.blocks import shared_block_sites
from slimdiff.grid import Grid, tied
from slimdiff.latency import Curve, LatencyTable
from slimdiff.profiling import measure_latency
from slimdiff.surgery import reshape_, resized

STATS = statistics()
SITES = STATS.header.sites
SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)


def table(step: float = 1.0, correction: float = 1.0) -> LatencyTable:
    """Half of the time is the sites', each module's in proportion to its width."""
    groups = tied(SITES)
    each = step / 2 / len(groups)
    curves = {
        module: Curve.of({1: each / members[0].width, members[0].width: each})
        for module, members in groups
    }
    shapes = {s.name: module for module, members in groups for s in members}
    return LatencyTable({"device": "a clock"}, step, shapes, curves, correction)


class FakeClock(Clock):
    """Times a plan by a table of its own instead of running anything."""

    def share(self, widths):
        return kept_shares({"latency": self.model}, SITES, widths)["latency"]


def fake_clock(truth: LatencyTable, believed: LatencyTable) -> FakeClock:
    return FakeClock(truth, None, believed)


@given(st.dictionaries(st.integers(1, 64), st.floats(1e-6, 1.0), min_size=1), st.data())
def test_a_curve_never_falls_with_the_width_and_never_exceeds_what_was_measured(times, data):
    curve = Curve.of(times)
    first, second = sorted(data.draw(st.tuples(*[st.integers(1, max(times))] * 2)))
    assert curve.at(first) <= curve.at(second)
    assert all(curve.at(width) <= seconds for width, seconds in times.items())
    assert curve.at(max(times)) == times[max(times)]


def test_between_measured_widths_times_are_interpolated():
    curve = Curve.of({8: 1.0, 16: 3.0, 40: 4.0})
    assert [curve.at(w) for w in (4, 8, 12, 16, 28, 40)] == [1.0, 1.0, 2.0, 3.0, 3.5, 4.0]


def test_unequal_widths_cost_what_the_wider_one_does():
    qk, vo, *_ = SITES
    prices = table()
    wide = prices.of([qk, vo], {qk.name: 2, vo.name: 5})
    assert wide == prices.of([qk, vo], {qk.name: 5, vo.name: 5})


@given(st.floats(0.3, 0.95), st.floats(0.3, 0.95))
def test_a_corrected_table_expects_what_was_found(expected, found):
    half = {site.name: max(1, site.width // 2) for site in SITES}
    prices = table()
    before = kept_shares({"latency": prices}, SITES, half)["latency"]
    again = prices.corrected(before, 1 - (1 - before) * 0.6)
    after = kept_shares({"latency": again}, SITES, half)["latency"]
    assert after == pytest.approx(1 - (1 - before) * 0.6)
    assert 0.2 <= table().corrected(expected, found).correction <= 5


def test_a_table_survives_its_file_and_is_refused_if_damaged(tmp_path):
    path = tmp_path / "table.json"
    table(correction=0.7).save(path)
    assert LatencyTable.load(path) == table(correction=0.7)
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": "fast"}))
    with pytest.raises(SlimdiffError, match="not a latency table at 'step'.*measured anew"):
        LatencyTable.load(path)


@given(st.floats(0.6, 1.0), st.sampled_from(["uniform", "ara", "measured"]))
def test_a_plan_stays_within_the_table(share, policy):
    plan = allocate(STATS, Budget(latency=share), latency=table(), policy=policy, multiple=2)
    assert plan.kept["latency"] <= share * (1 + 1e-9)


def test_several_budgets_hold_together():
    budget = Budget(params=0.9, latency=0.8, bytes=0.85)
    plan = allocate(STATS, budget, latency=table(), multiple=2)
    assert plan.kept["latency"] <= 0.8
    assert plan.kept["bytes"] <= 0.85
    assert plan.params_kept <= 0.85


def test_a_table_out_of_reach_gives_the_least_share():
    with pytest.raises(SlimdiffError) as refused:
        allocate(STATS, Budget(latency=0.5), latency=table(), multiple=2)
    share = float(str(refused.value).split("(latency=")[1].split(")")[0])
    allocate(STATS, Budget(latency=share), latency=table(), multiple=2)
    assert "leaves 500.0 ms of 1000.0 ms a step" in str(refused.value)


@pytest.mark.parametrize("truth", [0.4, 0.7, 1.0, 1.3])
def test_plans_meet_the_clock_though_the_table_errs(truth):
    clock = fake_clock(table(correction=truth), table())
    asked = 1 - 0.3 * truth
    plan, corrected = plan_in_time(STATS, Budget(latency=asked), clock, multiple=1)
    assert 0.93 * asked <= plan.kept["latency"] <= asked
    assert plan.kept["latency"] == pytest.approx(clock.share(plan.widths))
    assert plan.budget["latency"] == asked
    assert corrected.table.correction == pytest.approx(truth, rel=0.3)


def test_the_clock_decides_what_is_out_of_reach():
    clock = fake_clock(table(correction=0.2), table())
    with pytest.raises(SlimdiffError, match=r"latency=0.6 is out of reach.*\(latency=0\.9"):
        plan_in_time(STATS, Budget(latency=0.6), clock, multiple=2)


def test_a_tighter_budget_beside_the_time_ends_the_search():
    clock = fake_clock(table(), table())
    plan, _ = plan_in_time(STATS, Budget(latency=0.95, pool=0.45), clock, multiple=2)
    assert plan.kept["latency"] < 0.9
    assert plan.pool_kept <= 0.45


def proportional(model, members, *inputs):
    """In place of a measurement: all sites together take some milliseconds."""
    seconds = 1e-7 * sum(site.parameters() for site in members)
    return Curve.of({1: seconds / members[0].width, members[0].width: seconds})


@pytest.fixture
def made_up(monkeypatch):
    """Times that are made up: ten milliseconds a step, modules in proportion to their widths."""
    monkeypatch.setattr(profiling, "in_turn", lambda runs, **kwargs: [(0.01,) * len(runs)])
    monkeypatch.setattr(profiling, "_curve", proportional)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(profiling, "_SHAPE_SECONDS", 0.0)


def test_times_are_measured_once_a_shape_and_kept(pipe, quick, tmp_path, monkeypatch):
    found = measure_latency(pipe, SAMPLING, cache=tmp_path)
    assert found.complete
    assert found.step > 0
    sites = shared_block_sites(denoiser(pipe))
    assert set(found.shapes) == {site.name for site in sites}
    assert len(found.curves) < len(tied(sites))
    for _, members in tied(sites):
        assert found.curves[found.shapes[members[0].name]].widths[-1] == members[0].width
    monkeypatch.setattr(profiling, "_curve", lambda *args: pytest.fail("measured again"))
    assert measure_latency(pipe, SAMPLING, cache=tmp_path) == found
    larger = replace(SAMPLING, batch_size=1)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measure_latency(pipe, larger, cache=tmp_path)


def test_measuring_goes_on_where_it_stopped(pipe, quick, tmp_path, monkeypatch):
    curve, shapes = profiling._curve, []

    def stopping(model, members, *inputs):
        shapes.append(members[0].name)
        if len(shapes) == 2:
            raise KeyboardInterrupt
        return curve(model, members, *inputs)

    monkeypatch.setattr(profiling, "_curve", stopping)
    with pytest.raises(KeyboardInterrupt):
        measure_latency(pipe, SAMPLING, cache=tmp_path)
    found = measure_latency(pipe, SAMPLING, cache=tmp_path)
    assert found.complete
    assert shapes[1] == shapes[2]
    assert len(set(shapes)) == len(found.curves) == len(shapes) - 1


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert profiling.cache_folder() == tmp_path / "slimdiff" / "latency"


def test_the_clock_starts_with_the_narrowest_denoiser(pipe, made_up, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Clock, "share", lambda self, widths: 0.9)
    grid = Grid(2, timed=True)
    clock = start_clock(pipe, SAMPLING, grid)
    sites = shared_block_sites(denoiser(pipe))
    widths = {s.name: grid.widths(m)[0][s.name] for _, m in tied(sites) for s in m}
    found = kept_shares({"latency": clock.table}, sites, widths)["latency"]
    assert 0.2 < clock.table.correction < 5
    assert found == pytest.approx(0.9)


def test_slim_meets_a_latency_budget_by_the_clock(pipe, made_up, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sites = shared_block_sites(denoiser(pipe))

    def share(self, widths):
        pool = sum(s.parameters() for s in sites)
        return 0.5 + 0.5 * sum(s.parameters(widths[s.name]) for s in sites) / pool

    monkeypatch.setattr(Clock, "share", share)
    budget, prompts = Budget(latency=0.85), [f"thing {i}" for i in range(12)]
    settings = {"num_prompts": 4, "sampling": SAMPLING, "multiple": 2}
    slim, _ = slimdiff.slim(pipe, prompts, budget, **settings)
    plan = slimdiff.compression.plan_of(slim)
    assert plan.kept["latency"] == pytest.approx(share(None, plan.widths))
    assert 0.75 < plan.kept["latency"] <= 0.85
    assert "of the time a step" in str(plan)
    with pytest.raises(SlimdiffError, match=r"latency=0.3 is out of reach.*at least"):
        slimdiff.slim(pipe, prompts, Budget(latency=0.3), **settings)


def test_a_time_belongs_to_its_widths(pipe):
    stats = slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)
    plan = allocate(stats, Budget(pool=0.6), multiple=2)
    timed = replace(plan, kept={**plan.kept, "latency": 0.9})
    assert slimdiff.allocation.reprice(timed, stats) == timed
    name = next(n for n, w in plan.widths.items() if w > 1)
    edited = replace(timed, widths={**plan.widths, name: plan.widths[name] - 1})
    again = slimdiff.allocation.reprice(edited, stats)
    assert "latency" not in again.kept
    assert again.kept["macs"] < plan.kept["macs"]


def test_a_resized_model_runs_and_shares_the_dense_tensors():
    model, inputs = tiny_unet()
    sites = shared_block_sites(model)
    widths = {site.name: site.width // 2 for site in sites}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    slim = resized(model, sites, widths)
    cut, _ = tiny_unet()
    reshape_(cut, sites, widths)
    assert [p.shape for p in slim.parameters()] == [p.shape for p in cut.parameters()]
    dense = {t.untyped_storage().data_ptr() for t in model.parameters()}
    assert {t.untyped_storage().data_ptr() for t in slim.parameters()} <= dense
    with torch.no_grad():
        assert torch.isfinite(slim(**inputs).sample).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_timed_grid_has_few_widths():
    site = replace(SITES[0], width=5120)
    assert len(Grid(8, timed=True).widths([site])) <= 16
    assert [w[site.name] for w in Grid(8, timed=True).widths([replace(site, width=40)])] == [
        8, 16, 24, 32, 40,
    ]  # fmt: skip
    assert deadline._AIM < deadline._HIGHEST < 1
