"""Price lists against what models really cost at the same widths."""

from __future__ import annotations

import pytest
from helpers import tiny_unet
from hypothesis import given, settings
from hypothesis import strategies as st

from slimdiff import families
from slimdiff.allocation import kept_shares
from slimdiff.cost import mac_prices, multiply_adds, weight_bytes
from slimdiff.families.blocks import shared_block_sites
from slimdiff.gains import Call
from slimdiff.grid import tied
from slimdiff.prices import price_lists
from slimdiff.sites import free_sites
from slimdiff.surgery import reshape_


@settings(max_examples=4)
@given(st.data())
def test_a_unets_prices_are_what_it_costs_at_any_tied_widths(data):
    model, inputs = tiny_unet()
    sites = shared_block_sites(model)
    call = Call((), inputs, next(iter(inputs.values())))
    whole = model.num_parameters()
    prices = price_lists(whole, sites, "float64", mac_prices(model, sites, call))
    widths = {}
    for _, members in tied(sites):
        width = data.draw(st.integers(1, members[0].width))
        widths |= {site.name: width for site in members}
    kept = kept_shares(prices, sites, widths)
    macs = multiply_adds(model, call)
    assert prices["macs"].total == macs
    assert kept["macs"] * macs == pytest.approx(multiply_adds(model, call, widths))
    dense = weight_bytes(model)
    reshape_(model, sites, widths)
    assert kept["params"] * whole == pytest.approx(model.num_parameters())
    assert kept["bytes"] * dense == pytest.approx(weight_bytes(model))


@pytest.mark.parametrize("family", families.families(), ids=lambda family: family.name)
def test_multiply_adds_of_every_family_are_priced(family):
    model, inputs = family.tiny()
    sites = family.sites(model)
    call = Call((), inputs, next(iter(inputs.values())))
    widths = {site.name: max(1, site.width // 2) for site in free_sites(sites)}
    macs = mac_prices(model, sites, call, prompts=2)
    whole = {site.name: site.width for site in sites}
    kept = kept_shares({"macs": macs}, sites, whole | widths)["macs"]
    assert 2 * kept * macs.total == pytest.approx(multiply_adds(model, call, widths))
