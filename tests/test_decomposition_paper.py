"""The published forms against naive twins, and against ours on data where ours must win."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimdiff.decomposition import EXACT, PAPER

sizes = st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(0, 10_000))


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def augmented(x):
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return rows.T @ rows


@given(sizes)
def test_uncentred_query_key_is_the_best_rank_r_product_of_uncentred_moments(case):
    heads, width, seed = case
    q, k, m = (normal(seed + i, heads, 20, width) for i in range(3))
    moments = {"query": q.mT @ q, "key": k.mT @ k, "key_mean": m.mT @ m}
    basis = PAPER["qk"].decompose(moments, torch.empty(0))
    for r in range(1, width + 1):
        maps = PAPER["qk"].maps(basis, moments, r)
        product = (width / r) ** 0.5 * maps["query"] @ maps["key"].mT
        rest = torch.eye(width, dtype=torch.float64) - product
        keys = moments["key"] + moments["key_mean"]
        error = (moments["query"] @ rest @ keys @ rest.mT).diagonal(dim1=-2, dim2=-1).sum()
        whole = (moments["query"] @ keys).diagonal(dim1=-2, dim2=-1).sum()
        assert float(error / whole) == pytest.approx(float(basis.errors[r]), abs=1e-9)


@given(sizes)
def test_value_output_keeps_the_leading_directions_of_the_whitened_product(case):
    heads, width, seed = case
    v, w = normal(seed, heads, 30, width), normal(seed + 1, heads, width, width + 2)
    moments = {"value": v.mT @ v, "augmented": torch.eye(heads * width + 1)}
    basis = PAPER["vo"].decompose(moments, w)
    for r in (1, width):
        maps = PAPER["vo"].maps(basis, moments, r)
        assert not maps["bias"].any()
        for h in range(heads):
            rows = slice(h * r, h * r + r), slice(h * width, h * width + width)
            error = v[h] @ (w[h] - maps["value"][h] @ maps["output"][rows] @ w[h])
            singular = torch.linalg.svdvals(v[h] @ w[h])
            torch.testing.assert_close(error.square().sum(), singular[r:].square().sum())


@given(st.integers(3, 7), st.integers(0, 10_000))
def test_feed_forward_is_nystrom_on_the_leading_leverage_scores(width, seed):
    z, w = normal(seed, 40, width) + 1, normal(seed + 1, 1, width, 4)
    moments = {"augmented": augmented(z)}
    c = z.T @ z / 40
    ridge = c.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    scores = (c @ torch.linalg.inv(c + ridge)).diagonal()
    basis = PAPER["ffn"].decompose(moments, w)
    kept = scores.argsort(descending=True)[:2].sort().values
    maps = PAPER["ffn"].maps(basis, moments, 2)
    assert torch.equal(maps["up"], kept)
    naive = torch.linalg.pinv(c[kept][:, kept]) @ c[kept]
    torch.testing.assert_close(maps["down"], naive, rtol=1e-5, atol=1e-5)
    error = (z @ w[0] - z[:, kept] @ naive @ w[0]).square().sum() / (z @ w[0]).square().sum()
    assert float(error) == pytest.approx(float(basis.errors[2]), abs=1e-9)


def test_our_feed_forward_order_beats_leverage_scores_where_the_reader_matters():
    # Loud channels that nobody reads: leverage scores keep them, elimination does not.
    z = normal(0, 200, 6) * torch.tensor([10.0, 10, 10, 1, 1, 1], dtype=torch.float64)
    w = normal(1, 1, 6, 4) * torch.tensor([1e-3, 1e-3, 1e-3, 1, 1, 1])[None, :, None]
    moments = {"augmented": augmented(z)}
    ours = EXACT["ffn"].maps(EXACT["ffn"].decompose(moments, w), moments, 3)["up"]
    theirs = PAPER["ffn"].maps(PAPER["ffn"].decompose(moments, w), moments, 3)["up"]
    assert ours.tolist() == [3, 4, 5]
    assert theirs.tolist() == [0, 1, 2]
