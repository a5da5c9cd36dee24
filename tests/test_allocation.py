"""From statistics and a budget to a plan: ties, patterns, and figures that hold on a model."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from helpers import statistics, tiny_unet
from hypothesis import given
from hypothesis import strategies as st

from slimdiff import Budget, Plan, SlimdiffError, allocate, merge
from slimdiff.allocation import check_budget, least, predicted_error, prices_of
from slimdiff.families.blocks import shared_block_sites
from slimdiff.grid import Grid, tied
from slimdiff.policies import POLICIES
from slimdiff.sites import pool_parameters
from slimdiff.surgery import reshape_

STATS = statistics()
SITES = STATS.header.sites
WHOLE = STATS.header.source.parameters
POOL = pool_parameters(SITES)


PRICES = prices_of(STATS)


def least_parameters(grid: Grid) -> int:
    return int(least(PRICES["params"], SITES, grid))


def size_after(widths: dict[str, int]) -> int:
    """Parameters of a real model brought to these widths."""
    model, _ = tiny_unet()
    reshape_(model, shared_block_sites(model), widths)
    return sum(p.numel() for p in model.parameters())


@given(
    st.floats(0.4, 1.0),
    st.sampled_from([1, 3, 4, 8, 16, 1000]),
    st.sampled_from(sorted(POLICIES)),
)
def test_a_plan_keeps_what_it_says_on_the_grid_and_never_more_than_asked(share, multiple, policy):
    budget = Budget(pool=share)
    if least(PRICES["pool"], SITES, Grid(multiple)) > budget.ceilings(PRICES)["pool"]:
        return
    plan = allocate(STATS, budget, policy=policy, multiple=multiple)
    assert size_after(plan.widths) == WHOLE - plan.removed
    assert plan.pool_kept == pytest.approx(1 - (WHOLE - size_after(plan.widths)) / POOL)
    assert plan.pool_kept <= share + 1e-12
    for site in SITES:
        width = plan.widths[site.name]
        assert width == site.width or width % multiple == 0


def test_query_key_and_value_output_widths_are_tied():
    plan = allocate(STATS, Budget(pool=0.6))
    assert any(width < plan.full[name] for name, width in plan.widths.items())
    for site in SITES:
        if site.kind == "qk":
            assert plan.widths[site.name] == plan.widths[f"{site.module}.vo"]


def test_tied_groups_are_the_unlocked_sites_of_one_module_and_one_width():
    attn = [site for site in SITES if site.module == SITES[0].module]
    ffn = next(site for site in SITES if site.kind == "ffn")
    assert tied([*attn, ffn]) == [(attn[0].module, attn), (ffn.module, [ffn])]
    locked = [replace(attn[0], locked="a reason"), attn[1]]
    assert tied(locked) == [(attn[0].module, [attn[1]])]
    unequal = [attn[0], replace(attn[1], width=8)]
    assert [members for _, members in tied(unequal)] == [[unequal[0]], [unequal[1]]]


@pytest.mark.parametrize(
    ("only", "skip", "moves"),
    [
        (["*.ffn"], [], lambda s: s.kind == "ffn"),
        ([], ["*.ffn", "*attn2*"], lambda s: s.kind != "ffn" and "attn2" not in s.name),
        (["down_*"], ["*.qk"], lambda s: s.name.startswith("down_") and s.kind != "qk"),
        (["*.vo"], [], lambda s: s.kind == "vo"),
    ],
)
def test_patterns_choose_what_moves(only, skip, moves):
    grid = Grid(8, tuple(only), tuple(skip))
    least = Budget(params=least_parameters(grid))
    plan = allocate(STATS, least, only=only, skip=skip)
    for site in SITES:
        assert plan.widths[site.name] == (8 if moves(site) else site.width)
    assert size_after(plan.widths) == least.params


def test_widths_run_over_the_grid_up_to_the_whole():
    site = replace(SITES[0], width=20)
    assert [ws[site.name] for ws in Grid(8).widths([site])] == [8, 16, 20]
    assert [ws[site.name] for ws in Grid(10).widths([site])] == [10, 20]
    assert [ws[site.name] for ws in Grid(64).widths([site])] == [20]


@pytest.mark.parametrize("skip", [(), ("*.ffn",)])
def test_a_budget_out_of_reach_is_refused_with_the_least_figure_that_works(skip):
    grid = Grid(8, skip=skip)
    least = least_parameters(grid)
    narrowest = {
        s.name: s.width if any(s.name.endswith(p[1:]) for p in skip) else 8 for s in SITES
    }
    assert least == size_after(narrowest)
    with pytest.raises(SlimdiffError) as refused:
        check_budget(PRICES, SITES, Budget(params=least - 1), grid)
    text = str(refused.value)
    assert f"leaves {least - 1:,} of {WHOLE:,}" in text
    assert f"at least {least:,} stay" in text
    share, pool = re.search(r"params=(\S+), pool=(\S+)\) ", text).groups()
    assert float(share) == pytest.approx(least / WHOLE, abs=1e-4)
    assert float(pool) == pytest.approx(1 - (WHOLE - least) / POOL, abs=1e-4)
    check_budget(PRICES, SITES, Budget(params=least), grid)


def test_predicted_error_is_the_gain_on_the_curve():
    for site in SITES:
        gain, curve = STATS.header.gains[site.name], STATS.bases[site.name].errors
        assert predicted_error(STATS, site.name, gain.width) == pytest.approx(gain.error)
        assert predicted_error(STATS, site.name, site.width) == 0
        expected = gain.error * curve[4] / curve[gain.width]
        assert predicted_error(STATS, site.name, 4) == pytest.approx(float(expected))


@given(st.floats(0.45, 1.0))
def test_measured_predicts_no_more_error_than_uniform(share):
    by_policy = {p: allocate(STATS, Budget(pool=share), policy=p) for p in POLICIES}
    assert by_policy["measured"].predicted_error <= by_policy["uniform"].predicted_error + 1e-12


def test_the_same_statistics_give_the_same_plan_in_any_order_of_sites():
    turned = replace(STATS, header=replace(STATS.header, sites=SITES[::-1]))
    plan, again = (allocate(s, Budget(pool=0.6)) for s in (STATS, turned))
    assert dict(plan.widths) == dict(again.widths)


def test_a_plan_survives_its_file(tmp_path):
    plan = allocate(STATS, Budget(params="-10%"))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(SlimdiffError, match="Unknown policy 'best'; expected one of .*uniform"):
        allocate(STATS, Budget(pool=0.6), policy="best")
    with pytest.raises(SlimdiffError, match="multiple=0 is out of range"):
        allocate(STATS, Budget(pool=0.6), multiple=0)
    merged = merge([STATS, statistics(first=4)])
    with pytest.raises(SlimdiffError, match="incomplete or were merged: 8 of 8 .*, 0 gains"):
        allocate(merged, Budget(pool=0.6))
