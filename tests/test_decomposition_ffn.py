"""Feed-forward: every removal the cheapest, exact at full width, as good as it says it is."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    augmented,
    decomposed,
    energy,
    feed_forward,
    normal,
    record,
    samples,
    seeds,
    site_of,
    spread,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slimdiff.decomposition import ffn
from slimdiff.linalg import centre
from slimdiff.surgery import cut_site_

widths, outputs = st.integers(1, 9), st.integers(1, 6)


def covariance(z: Tensor) -> Tensor:
    return centre(augmented(z))[1]


def refitted_loss(z: Tensor, weight: Tensor, kept: list[int]) -> float:
    """Least squared error of any affine reader of the kept channels, by its definition."""
    centred = z - z.mean(0)
    target = centred @ weight
    if not kept:
        return energy(target)
    return energy(target - centred[:, kept] @ torch.linalg.pinv(centred[:, kept]) @ target)


def slim_output(z: Tensor, weight: Tensor, maps: ffn.Maps) -> Tensor:
    """What the cut down projection writes for dense hidden channels ``z``, from its definition."""
    return z[:, maps["up"]] @ (maps["down"] @ weight) + maps["bias"] @ weight


@given(seeds, st.integers(2, 9), outputs)
def test_each_removal_is_the_cheapest_after_an_exact_refit(seed, width, outputs):
    z, weight = samples(seed, 60, width), normal(seed + 3, width, outputs)
    alive, total = list(range(width)), spread(z @ weight)
    for j in ffn.eliminate(covariance(z), weight, damping=0.0, block=4).tolist():
        costs = {i: refitted_loss(z, weight, [k for k in alive if k != i]) for i in alive}
        assert costs[j] <= min(costs.values()) + 1e-9 * total
        alive.remove(j)


@given(seeds, widths, outputs, st.integers(1, 9))
def test_the_block_size_does_not_matter(seed, width, outputs, block):
    c, weight = covariance(samples(seed, 60, width)), normal(seed + 3, width, outputs)
    order = ffn.eliminate(c, weight, block=block)
    assert torch.equal(order, ffn.eliminate(c, weight, block=1))
    assert sorted(order.tolist()) == list(range(width))


def test_the_default_blocks_are_as_good_as_one_by_one():
    c, weight = covariance(samples(0, 400, 150)), normal(3, 150, 6)
    assert torch.equal(ffn.eliminate(c, weight), ffn.eliminate(c, weight, block=1))


@given(seeds, st.integers(2, 6), outputs, st.integers(1, 64))
def test_of_twins_one_goes_and_the_other_stays(seed, pairs, outputs, block):
    z = samples(seed, 60, pairs)
    z, weight = torch.cat([z, z], 1), normal(seed + 3, 2 * pairs, outputs)
    first = ffn.eliminate(covariance(z), weight, block=block)[:pairs]
    assert sorted((first % pairs).tolist()) == list(range(pairs))
    moments = {"augmented": augmented(z)}
    basis = ffn.decompose(moments, weight[None])
    slim = slim_output(z, weight, ffn.maps(basis, moments, pairs, damping=0.0))
    assert energy(slim - z @ weight) <= 1e-10 * energy(z) * energy(weight)
    assert float(basis.errors[pairs]) * spread(z @ weight) <= 1e-8 * energy(z) * energy(weight)


@given(seeds, st.integers(2, 8), outputs, st.data())
def test_dead_and_constant_channels_go_first(seed, width, outputs, data):
    idle = data.draw(st.sets(st.integers(0, width - 1), min_size=1, max_size=width - 1))
    z, weight = samples(seed, 60, width), normal(seed + 3, width, outputs)
    for i in idle:
        z[:, i] = 0.0 if i % 2 else 2.5
    order = ffn.eliminate(covariance(z), weight)
    assert set(order[: len(idle)].tolist()) == idle
    moments = {"augmented": augmented(z)}
    basis = ffn.decompose(moments, weight[None])
    slim = slim_output(z, weight, ffn.maps(basis, moments, width - len(idle)))
    torch.testing.assert_close(slim, z @ weight, rtol=0, atol=1e-4)


@given(seeds, st.integers(2, 9), st.data())
def test_deficient_moments_give_finite_weights_and_lose_nothing_down_to_the_rank(
    seed, width, data
):
    rank = data.draw(st.integers(0, width - 1), label="rank")
    z, weight = samples(seed, 60, width, rank), normal(seed + 3, width, 4)
    moments = {"augmented": augmented(z)}
    basis = ffn.decompose(moments, weight[None])
    assert torch.isfinite(basis.errors).all()
    for r in range(1, width + 1):
        found = ffn.maps(basis, moments, r)
        assert all(torch.isfinite(t).all() for t in found.values())
        if r >= rank:
            lost = slim_output(z, weight, found) - z @ weight
            assert energy(lost) <= 1e-5 * energy(z @ weight)


@given(seeds, widths, outputs, st.data())
def test_full_width_is_the_identity(seed, width, outputs, data):
    z = samples(seed, 60, width, data.draw(st.integers(0, width), label="rank"))
    weight, moments = normal(seed + 3, width, outputs), {"augmented": augmented(z)}
    found = ffn.maps(ffn.decompose(moments, weight[None]), moments, width)
    other = 10 * normal(seed + 4, 20, width)
    expected = other @ weight
    torch.testing.assert_close(slim_output(other, weight, found), expected, rtol=0, atol=1e-10)


@given(seeds, widths, outputs, st.data())
def test_every_width_loses_what_it_says_and_no_less_than_it_could(seed, width, outputs, data):
    z, weight = samples(seed, 60, width), normal(seed + 3, width, outputs)
    moments, r = {"augmented": augmented(z)}, data.draw(st.integers(1, width), label="kept")
    basis = ffn.decompose(moments, weight[None])
    found = ffn.maps(basis, moments, r, damping=0.0)
    measured = energy(slim_output(z, weight, found) - z @ weight) / spread(z @ weight)
    assert measured == pytest.approx(float(basis.errors[r]), rel=1e-8, abs=1e-12)
    best = refitted_loss(z, weight, found["up"].tolist()) / spread(z @ weight)
    assert measured == pytest.approx(best, rel=1e-6, abs=1e-12)


@given(seeds, widths, outputs, st.data())
def test_the_order_is_a_prefix(seed, width, outputs, data):
    z = samples(seed, 60, width, data.draw(st.integers(1, width), label="rank"))
    weight, moments = normal(seed + 3, width, outputs), {"augmented": augmented(z)}
    basis = ffn.decompose(moments, weight[None])
    assert basis.errors[0] == 1
    assert basis.errors[width] == 0
    assert (basis.errors.diff() <= 0).all()
    for r in range(1, width + 1):
        found = ffn.maps(basis, moments, r)
        assert found["up"].tolist() == sorted(basis.tensors["order"][:r].tolist())
        assert torch.equal(found["up"], found["gate"])


@given(seeds, st.sampled_from(["geglu", "gelu", "gelu-approximate"]), st.integers(1, 8))
@torch.no_grad()
def test_predicted_equals_measured_on_a_real_feed_forward(seed, activation, r):
    model = feed_forward(seed, width=8, activation=activation)
    call = {"x": normal(seed + 90, 5, 9, 6)}
    dense = model(**call).flatten(0, 1)
    site, sums = site_of(model, "ffn"), record(model, [call])
    basis, moments = decomposed(model, site, sums), sums[site.name]
    cut_site_(model, site, ffn.maps(basis, moments, r, damping=0.0))
    slim = model(**call).flatten(0, 1)
    measured = energy(slim - dense) / spread(dense)
    assert measured == pytest.approx(float(basis.errors[r]), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("activation", ["geglu", "gelu", "gelu-approximate", "linear-silu"])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_real_feed_forward_stays_itself_at_full_width_on_few_tokens(activation, bias):
    model = feed_forward(0, width=12, activation=activation, bias=bias)
    calls = {"x": normal(1, 1, 4, 6)}, {"x": normal(2, 4, 9, 6)}
    dense = [model(**call) for call in calls]
    site, sums = site_of(model, "ffn"), record(model, calls[:1])
    cut_site_(model, site, ffn.maps(decomposed(model, site, sums), sums[site.name], 12))
    for call, expected in zip(calls, dense, strict=True):
        torch.testing.assert_close(model(**call), expected, rtol=0, atol=1e-10)
