"""Query-key: optimal, ordered, exact at full width, and as good as it says it is."""

from __future__ import annotations

import torch
from helpers import (
    attention,
    decomposed,
    energy,
    gram,
    normal,
    record,
    samples,
    seeds,
    site_of,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from slimdiff.decomposition import EXACT, qk
from slimdiff.surgery import cut_site_

NONE = torch.empty(0)
shapes = {"heads": st.integers(1, 3), "width": st.integers(1, 8)}


def heads_of(seed: int, heads: int, width: int, rank: int, scale: float = 1.0) -> Tensor:
    """Rows of queries or keys per head, shape (H, 40, d)."""
    return torch.stack(
        [
            normal(seed + 2 * h, 40, rank) @ normal(seed + 2 * h + 1, rank, width) * scale
            for h in range(heads)
        ]
    )


def decompose(q: Tensor, k: Tensor, **options: float) -> qk.Basis:
    return qk.decompose({"query": gram(q), "key": gram(k)}, NONE, **options)


def pair_loss(q: Tensor, k: Tensor, basis: qk.Basis, width: int) -> float:
    """Sum over heads and over all pairs of (q k - q P k)^2, by its definition."""
    a, b = (basis.tensors[name][..., :width] for name in ("query", "key"))
    return energy(q @ k.mT - (q @ a) @ (k @ b).mT)


@given(seeds, st.data(), *shapes.values(), st.integers(-4, 4))
def test_full_width_is_the_identity(seed, data, heads, width, exponent):
    ranks = [data.draw(st.integers(0, width), label="rank") for _ in "qk"]
    q, k = (
        heads_of(seed + i, heads, width, r, 10.0 ** (e * exponent))
        for i, (r, e) in enumerate(zip(ranks, (1, -1), strict=True))
    )
    moments = {"query": gram(q), "key": gram(k)}
    found = qk.maps(qk.decompose(moments, NONE), moments, width)
    w_q, w_k = normal(seed + 5, heads, 6, width), normal(seed + 6, heads, 6, width)
    dense = w_q @ w_k.mT
    slim = (w_q @ found["query"]) @ (w_k @ found["key"]).mT
    torch.testing.assert_close(slim, dense, rtol=0, atol=1e-10 * float(dense.abs().max()))


def test_heads_as_wide_as_those_of_stable_diffusion_on_two_threads():
    """Batched LU races there (pytorch issue 142815), which no closed form may depend on."""
    moments = {"query": gram(normal(0, 8, 300, 160)), "key": gram(normal(1, 8, 150, 160))}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        basis = qk.decompose(moments, NONE)
    finally:
        torch.set_num_threads(threads)
    product = basis.tensors["query"] @ basis.tensors["key"].mT
    torch.testing.assert_close(
        product, torch.eye(160).double().expand(8, -1, -1), rtol=0, atol=1e-9
    )


@given(seeds, st.data(), *shapes.values())
def test_every_width_loses_what_it_says_over_all_pairs(seed, data, heads, width):
    r = data.draw(st.integers(0, width))
    q, k = heads_of(seed, heads, width, width), heads_of(seed + 1, heads, width, width)
    basis = decompose(q, k, floor=0.0)
    total = energy(q @ k.mT)
    measured = pair_loss(q, k, basis, r) / total
    torch.testing.assert_close(measured, float(basis.errors[r]), rtol=1e-8, atol=1e-12)


@given(seeds, st.data(), *shapes.values())
def test_the_order_is_a_prefix(seed, data, heads, width):
    ranks = [data.draw(st.integers(1, width)) for _ in "qk"]
    q, k = (heads_of(seed + i, heads, width, r) for i, r in enumerate(ranks))
    basis = decompose(q, k)
    assert basis.errors[0] == 1
    assert basis.errors[width] == 0
    assert (basis.errors.diff() <= 0).all()
    for r in range(1, width + 1):
        found = qk.maps(basis, {}, r)
        torch.testing.assert_close(
            found["query"] / (r / width) ** 0.5, basis.tensors["query"][..., :r]
        )
        torch.testing.assert_close(found["key"], basis.tensors["key"][..., :r])


def alternating_least_squares(q: Tensor, k: Tensor, rank: int, seed: int) -> float:
    """Least loss over P = X Y^T of shape (d, d), found without any decomposition."""
    target, best = q @ k.mT, float("inf")
    for start in range(3):
        y = normal(seed + start, q.shape[1], rank)
        for _ in range(400):
            z = k @ y
            x = torch.linalg.lstsq(q, torch.linalg.lstsq(z, target.mT).solution.mT).solution
            v = q @ x
            y = torch.linalg.lstsq(k, torch.linalg.lstsq(v, target).solution.mT).solution
        best = min(best, energy(target - (q @ x) @ (k @ y).mT))
    return best


@settings(max_examples=6)
@given(seeds, st.integers(2, 5), st.data())
def test_equals_a_numerical_optimiser(seed, width, data):
    rank = data.draw(st.integers(1, width - 1))
    q, k = samples(seed, 12, width), samples(seed + 9, 10, width)
    basis = decompose(q[None], k[None])
    optimum = alternating_least_squares(q, k, rank, seed) / energy(q @ k.mT)
    found = pair_loss(q[None], k[None], basis, rank) / energy(q @ k.mT)
    assert found <= optimum * (1 + 1e-6) + 1e-12
    torch.testing.assert_close(float(basis.errors[rank]), optimum, rtol=1e-5, atol=1e-9)


def test_no_small_change_of_the_projection_does_better():
    q, k = heads_of(0, 1, 5, 5), heads_of(1, 1, 5, 5)
    basis = decompose(q, k)
    x, y = (basis.tensors[n][0, :, :2].clone().requires_grad_() for n in ("query", "key"))
    loss = (q[0] @ k[0].mT - (q[0] @ x) @ (k[0] @ y).mT).square().sum()
    for gradient, value in zip(torch.autograd.grad(loss, (x, y)), (x, y), strict=True):
        assert gradient.abs().max() * value.abs().max() < 1e-6 * energy(q @ k.mT)


@given(seeds, st.data(), *shapes.values())
def test_widths_down_to_the_rank_lose_nothing(seed, data, heads, width):
    rank = data.draw(st.integers(0, width))
    q, k = heads_of(seed, heads, width, rank), heads_of(seed + 1, heads, width, width)
    basis = decompose(q, k)
    assert all(torch.isfinite(t).all() for t in basis.tensors.values())
    assert pair_loss(q, k, basis, rank) <= 1e-6 * energy(q @ k.mT)


@given(seeds, st.integers(1, 6), st.sampled_from(["query", "key"]))
def test_a_head_without_logits_has_no_share_in_the_error(seed, width, dead):
    q, k = heads_of(seed, 2, width, width), heads_of(seed + 1, 2, width, width)
    {"query": q, "key": k}[dead][1] = 0
    alone = decompose(q[:1], k[:1])
    torch.testing.assert_close(decompose(q, k).errors, alone.errors, rtol=1e-9, atol=1e-9)


@given(seeds, st.integers(1, 6), st.integers(-6, 6))
def test_sums_serve_as_well_as_means(seed, width, exponent):
    q, k = heads_of(seed, 2, width, width), heads_of(seed + 1, 2, width, width)
    mean = decompose(q, k)
    total = qk.decompose({"query": gram(q) * 10.0**exponent, "key": gram(k) * 1e3}, NONE)
    torch.testing.assert_close(mean.errors, total.errors, rtol=1e-8, atol=1e-10)


def test_scale_is_folded_for_softmax_at_the_new_width():
    q, k = heads_of(0, 1, 6, 6), heads_of(1, 1, 6, 6)
    basis = decompose(q, k)
    found = qk.maps(basis, {}, 3)
    slim = (q @ found["query"]) @ (k @ found["key"]).mT * 3**-0.5
    a, b = (basis.tensors[n][..., :3] for n in ("query", "key"))
    torch.testing.assert_close(slim, (q @ a) @ (k @ b).mT * 6**-0.5)


def padding(seed: int, batch: int, length: int) -> Tensor:
    """A mask as diffusers' UNet passes it on: 0 or -10000, shape (B, 1, M); no row is empty."""
    keep = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) > 0.4
    keep[:, 0] = True
    return (1 - keep.double())[:, None] * -10000.0


def logits(model, call) -> list[Tensor]:
    """Per sequence (H, N, d) queries and (H, M, d) keys, centred over the unmasked, scaled."""
    attn, x = model.block, call["x"]
    context = call.get("encoder_hidden_states", x)
    mask, found = call.get("attention_mask"), []
    for b in range(len(x)):
        keep = slice(None) if mask is None else mask[b, 0] == 0
        q = attn.to_q(x[b]).unflatten(-1, (attn.heads, -1)).transpose(0, 1) * attn.scale
        k = attn.to_k(context[b][keep]).unflatten(-1, (attn.heads, -1)).transpose(0, 1)
        found.append((q, k - k.mean(1, keepdim=True)))
    return [torch.cat(side, 1) for side in zip(*found, strict=True)]


@given(seeds, st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3), st.integers(1, 4))
@torch.no_grad()
def test_predicted_equals_measured_on_a_real_attention(seed, bias, cross, mask, heads, r):
    width = 4
    model = attention(seed, heads=heads, width=width, bias=bias, cross_attention_dim=6)
    call = {"x": normal(seed + 90, 3, 7, 6)}
    if cross:
        call["encoder_hidden_states"] = normal(seed + 91, 3, 8, 6)
    if mask:
        call["attention_mask"] = padding(seed, 3, 8 if cross else 7)
    site, sums = site_of(model, "qk"), record(model, [call])
    basis = EXACT["qk"].decompose(sums[site.name], NONE, floor=0.0)
    assume(basis.errors[width - 1] > 1e-12)
    q, k = logits(model, call)
    dense = q @ k.mT
    cut_site_(model, site, qk.maps(basis, sums[site.name], r))
    q, k = logits(model, call)
    measured = energy(dense - q @ k.mT) / energy(dense)
    torch.testing.assert_close(measured, float(basis.errors[r]), rtol=1e-8, atol=1e-12)


@torch.no_grad()
def test_a_real_attention_stays_itself_at_full_width_on_few_tokens():
    model = attention(0, heads=2, width=6, bias=True)
    call = {"x": normal(1, 1, 3, 6)}
    dense = model(**call)
    site, sums = site_of(model, "qk"), record(model, [call])
    assert torch.linalg.matrix_rank(sums[site.name]["key"]).max() < 6
    basis = decomposed(model, site, sums)
    cut_site_(model, site, qk.maps(basis, sums[site.name], 6))
    torch.testing.assert_close(model(**call), dense, rtol=0, atol=1e-10)
    other = normal(2, 4, 9, 6)
    torch.testing.assert_close(
        model(other), attention(0, heads=2, width=6, bias=True)(other), rtol=0, atol=1e-10
    )
