"""Value-output: exact at full width, optimal per head, and as good as it says it is."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    attention,
    augmented,
    decomposed,
    energy,
    normal,
    record,
    samples,
    seeds,
    site_of,
    spread,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slimdiff.decomposition import vo
from slimdiff.surgery import cut_site_

shapes = {"heads": st.integers(1, 3), "width": st.integers(1, 6), "outputs": st.integers(1, 8)}


def outputs_of(seed: int, heads: int, width: int, rank: int | None = None) -> Tensor:
    """Attention outputs of all heads, shape (60, Hd)."""
    return samples(seed, 60, heads * width, rank)


def slim_output(y: Tensor, readers: Tensor, maps: vo.Maps) -> Tensor:
    """What the cut module writes for dense head outputs ``y``, from its definition."""
    heads, width, _ = readers.shape
    kept = torch.cat(
        [y[:, h * width : (h + 1) * width] @ maps["value"][h] for h in range(heads)], 1
    )
    weight = readers.flatten(0, 1)
    return kept @ (maps["output"] @ weight) + maps["bias"] @ weight


@given(seeds, *shapes.values(), st.data())
def test_full_width_is_the_identity(seed, heads, width, outputs, data):
    y = outputs_of(seed, heads, width, data.draw(st.integers(0, heads * width), label="rank"))
    readers, moments = normal(seed + 5, heads, width, outputs), {"augmented": augmented(y)}
    found = vo.maps(vo.decompose(moments, readers), moments, width)
    other = 10 * normal(seed + 6, 20, heads * width)
    expected = other @ readers.flatten(0, 1)
    torch.testing.assert_close(
        slim_output(other, readers, found),
        expected,
        rtol=0,
        atol=1e-10 * float(expected.abs().max()),
    )


@given(seeds, *shapes.values(), st.data())
def test_every_width_loses_what_it_says(seed, heads, width, outputs, data):
    y, readers = outputs_of(seed, heads, width), normal(seed + 5, heads, width, outputs)
    moments = {"augmented": augmented(y)}
    basis = vo.decompose(moments, readers)
    r = data.draw(st.integers(1, width), label="kept")
    dense = y @ readers.flatten(0, 1)
    slim = slim_output(y, readers, vo.maps(basis, moments, r, damping=0.0))
    measured = energy(slim - dense) / spread(dense)
    assert measured == pytest.approx(float(basis.errors[r]), rel=1e-8, abs=1e-12)


@given(seeds, *shapes.values(), st.data())
def test_the_order_is_a_prefix(seed, heads, width, outputs, data):
    y = outputs_of(seed, heads, width, data.draw(st.integers(1, heads * width), label="rank"))
    readers, moments = normal(seed + 5, heads, width, outputs), {"augmented": augmented(y)}
    basis = vo.decompose(moments, readers)
    assert basis.errors[0] == 1
    assert basis.errors[width] == 0
    assert (basis.errors.diff() <= 0).all()
    q = basis.tensors["value"]
    torch.testing.assert_close(q.mT @ q, torch.eye(width).double().expand_as(q))
    for r in range(1, width + 1):
        assert torch.equal(vo.maps(basis, moments, r)["value"], q[..., :r])


def alternating_least_squares(y: Tensor, weight: Tensor, rank: int, seed: int) -> float:
    """Least error of any rank-r bottleneck (y - m) X Z for (y - m) W."""
    y = y - y.mean(0)
    target, best = y @ weight, float("inf")
    for start in range(3):
        x = normal(seed + start, y.shape[1], rank)
        for _ in range(300):
            z = torch.linalg.lstsq(y @ x, target).solution
            x = torch.linalg.lstsq(y, torch.linalg.lstsq(z.mT, target.mT).solution.mT).solution
        best = min(best, energy(target - y @ x @ z))
    return best


@settings(max_examples=6)
@given(seeds, st.integers(2, 5), st.integers(5, 7), st.data())
def test_each_head_equals_a_numerical_optimiser_before_the_refit(seed, width, outputs, data):
    rank = data.draw(st.integers(1, width - 1), label="kept")
    y, readers = outputs_of(seed, 2, width), normal(seed + 5, 2, width, outputs)
    basis = vo.decompose({"augmented": augmented(y)}, readers)
    for h in range(2):
        own = y[:, h * width : (h + 1) * width]
        optimum = alternating_least_squares(own, readers[h], rank, seed)
        own = own - own.mean(0)
        kept, target = own @ basis.tensors["value"][h, :, :rank], own @ readers[h]
        found = energy(target - kept @ torch.linalg.lstsq(kept, target).solution)
        assert found == pytest.approx(optimum, rel=1e-5, abs=1e-9 * energy(target))


@given(seeds, st.integers(2, 6), st.integers(1, 6), st.data())
def test_one_head_alone_loses_the_tail_of_the_best_bottleneck(seed, width, outputs, data):
    y, readers = outputs_of(seed, 1, width), normal(seed + 5, 1, width, outputs)
    errors = vo.decompose({"augmented": augmented(y)}, readers).errors
    centred = (y - y.mean(0)) @ readers[0]
    values = torch.linalg.svdvals(centred).square()
    for r in range(width + 1):
        expected = float(values[r:].sum() / values.sum())
        assert float(errors[r]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(seeds, st.integers(1, 3), st.integers(2, 6), st.data())
def test_widths_down_to_the_rank_of_each_head_lose_nothing(seed, heads, width, data):
    rank = data.draw(st.integers(1, width - 1), label="rank")
    y = torch.cat([samples(seed + 9 * h, 60, width, rank) for h in range(heads)], 1)
    readers, moments = normal(seed + 5, heads, width, 6), {"augmented": augmented(y)}
    basis = vo.decompose(moments, readers)
    found = vo.maps(basis, moments, rank)
    assert all(torch.isfinite(t).all() for t in found.values())
    dense = y @ readers.flatten(0, 1)
    assert energy(slim_output(y, readers, found) - dense) <= 1e-8 * spread(dense)
    assert float(basis.errors[rank]) <= 1e-8


@pytest.mark.parametrize("dead", ["head", "all"])
def test_dead_heads_give_finite_weights(dead):
    y = outputs_of(0, 2, 3)
    y[:, 3 if dead == "head" else 0 :] = 0
    readers, moments = normal(1, 2, 3, 4), {"augmented": augmented(y)}
    basis = vo.decompose(moments, readers)
    assert torch.isfinite(basis.errors).all()
    for r in (1, 2, 3):
        found = vo.maps(basis, moments, r)
        assert all(torch.isfinite(t).all() for t in found.values())
        assert max(float(t.abs().max()) for t in found.values()) < 1e3


@given(seeds, st.booleans(), st.booleans(), st.integers(1, 3), st.integers(1, 4))
@torch.no_grad()
def test_predicted_equals_measured_on_a_real_attention(seed, bias, out_bias, heads, r):
    model = attention(seed, heads=heads, width=4, bias=bias, out_bias=out_bias)
    call = {"x": normal(seed + 90, 5, 9, 6)}
    dense = model(**call).flatten(0, 1)
    site, sums = site_of(model, "vo"), record(model, [call])
    basis, moments = decomposed(model, site, sums), sums[site.name]
    cut_site_(model, site, vo.maps(basis, moments, r, damping=0.0))
    slim = model(**call).flatten(0, 1)
    expected = float(basis.errors[r])
    if not out_bias and r < 4:
        # Without a bias to absorb it, the mean of what was lost adds to the error.
        lost = slim - dense
        assert energy(lost - lost.mean(0)) / spread(dense) == pytest.approx(expected, rel=1e-8)
    else:
        assert energy(slim - dense) / spread(dense) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("out_bias", [True, False])
@torch.no_grad()
def test_a_real_attention_stays_itself_at_full_width_on_few_tokens(out_bias):
    model = attention(0, heads=2, width=6, bias=True, out_bias=out_bias)
    calls = {"x": normal(1, 1, 3, 6)}, {"x": normal(2, 4, 9, 6)}
    dense = [model(**call) for call in calls]
    site, sums = site_of(model, "vo"), record(model, calls[:1])
    cut_site_(model, site, vo.maps(decomposed(model, site, sums), sums[site.name], 6))
    for call, expected in zip(calls, dense, strict=True):
        torch.testing.assert_close(model(**call), expected, rtol=0, atol=1e-10)
