"""Budgets: what is asked, in each way of saying it, and what is refused."""

from __future__ import annotations

import math

import pytest
from helpers import tiny_unet
from hypothesis import given
from hypothesis import strategies as st

from slimdiff import Budget, SlimdiffError
from slimdiff.families.blocks import shared_block_sites
from slimdiff.prices import Linear, price_lists
from slimdiff.sites import pool_parameters

SITES = shared_block_sites(tiny_unet()[0])
POOL = pool_parameters(SITES)

wholes = st.integers(POOL, 10**10)
shares = st.floats(0.001, 1.0)


def kept(whole: int, sites=SITES, **amounts) -> int:
    """Whole parameters that a denoiser of ``whole`` may keep."""
    ceilings = Budget(**amounts).ceilings(price_lists(whole, sites, "float32"))
    if "pool" in ceilings:
        ceilings["pool"] += whole - POOL
    return math.floor(min(ceilings.values()))


@given(wholes, shares)
def test_a_share_keeps_that_share_and_never_more(whole, share):
    found = kept(whole, params=share)
    assert share * whole - 1 <= found <= share * whole + 1e-6
    assert found == pytest.approx(kept(whole, params=f"{100 * share:.13f}%"), abs=2)
    assert found == kept(whole, params=f"{share:.20f}")


@pytest.mark.parametrize(("share", "expected"), [(0.29, 29), (0.9, 90), (1, 100), ("100%", 100)])
def test_shares_are_not_rounded_down_past_a_whole_number(share, expected):
    assert kept(100, [], params=share) == expected


@given(
    wholes,
    st.integers(2, 999),
    st.sampled_from([("", 1), ("k", 10**3), ("M", 10**6), ("B", 10**9)]),
)
def test_a_count_is_that_many_up_to_all(whole, count, unit):
    name, size = unit
    expected = min(whole, count * size)
    assert kept(whole, params=f"{count}{name}") == expected
    assert kept(whole, params=f" {count}.0{name.lower()} ") == expected
    assert kept(whole, params=count * size) == expected


@given(wholes, st.integers(1, 10**9))
def test_a_negative_number_takes_that_many_away(whole, count):
    assert kept(whole, params=-count) == whole - count
    assert kept(whole, params=f"-{count}") == whole - count


def test_published_figures_mean_what_they_say():
    whole = 859_520_964
    assert kept(whole, params="759.5M") == 759_500_000
    assert kept(whole, params="759.5e6") == 759_500_000
    assert kept(whole, params="-100M") == whole - 100_000_000
    assert kept(whole, params="-0.1g") == whole - 100_000_000


@given(wholes, st.integers(1, 99))
def test_a_negative_share_takes_that_share_away(whole, percent):
    expected = math.floor((100 - percent) * whole / 100)
    assert kept(whole, params=f"-{percent}%") == pytest.approx(expected, abs=1)
    assert kept(whole, params=-percent / 100) == kept(whole, params=f"-{percent}%")


@given(wholes, shares)
def test_pool_speaks_of_the_slimmable_parameters_only(whole, share):
    assert kept(whole, pool=share) == whole - POOL + kept(POOL, params=share)
    assert kept(whole, pool=-7) == whole - 7


@given(wholes, shares, shares)
def test_given_together_both_ceilings_hold(whole, params, pool):
    both = kept(whole, params=params, pool=pool)
    assert both == min(kept(whole, params=params), kept(whole, pool=pool))


@pytest.mark.parametrize("text", ["", "x", "--5M", "5 parsecs", "1,5M", "0.9.1", "M", "1e-", "½"])
@pytest.mark.parametrize("name", ["params", "pool", "macs", "bytes", "latency"])
def test_what_is_no_amount_is_refused_by_name(name, text):
    with pytest.raises(SlimdiffError, match=f"Budget {name}=.*is not an amount.*like 0.9 or 90%"):
        Budget(**{name: text})


@pytest.mark.parametrize(
    "amount", [0, 0.0, "0", "0%", "0M", "150%", "-100%", "1e999", float("nan"), float("-inf")]
)
def test_what_is_out_of_range_is_refused(amount):
    with pytest.raises(SlimdiffError, match="is out of range; expected a share above 0"):
        Budget(params=amount)


def test_an_empty_budget_is_refused():
    with pytest.raises(SlimdiffError, match=r"Empty budget.*--params.*--pool"):
        Budget()


def test_a_budget_prints_what_was_asked():
    assert str(Budget(params="-100M", pool=0.6)) == "params=-100M, pool=0.6"
    assert str(Budget(pool="60%")) == "pool=60%"


def test_each_amount_is_of_its_own_unit():
    macs, latency = Linear(5e9, {}), Linear(0.2, {})
    prices = price_lists(1000, [], "bfloat16", macs, latency)
    budget = Budget(params=0.5, macs="2G", bytes="1.5KB", latency=0.75)
    found = budget.ceilings(prices)
    assert found["params"] == pytest.approx(500)
    assert found["macs"] == 2e9
    assert found["bytes"] == 1500
    assert found["latency"] == pytest.approx(0.15)
    assert Budget(bytes=0.5).ceilings(prices)["bytes"] == pytest.approx(1000)
    assert Budget(bytes="1KiB").ceilings(prices)["bytes"] == 1024
    assert Budget(latency="-25%").ceilings(prices)["latency"] == pytest.approx(0.15)


def test_units_of_bytes_are_for_bytes_only():
    with pytest.raises(SlimdiffError, match="Budget params='5MiB' is not an amount"):
        Budget(params="5MiB")


@pytest.mark.parametrize("amount", [2, "120", -1, "1.5", "-3"])
def test_latency_is_a_share_only(amount):
    with pytest.raises(SlimdiffError, match="latency=.*expected a share.*reduction like -25%"):
        Budget(latency=amount)


@pytest.mark.parametrize(
    ("name", "remedy"), [("macs", "Run slimdiff calibrate"), ("latency", "measure_latency")]
)
def test_what_has_no_prices_cannot_be_planned(name, remedy):
    with pytest.raises(SlimdiffError, match=f"{name}=0.5 cannot be planned: .*{remedy}"):
        Budget(**{name: 0.5}).ceilings(price_lists(1000, [], "float32"))
