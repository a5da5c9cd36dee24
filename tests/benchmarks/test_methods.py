"""The benchmark's peers against naive twins, its accounting, and what it writes."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch
from benchmarks.methods.ablation import (
    FORMS,
    KINDS,
    STEPS,
    ablation_cells,
    kind_cells,
    paper_span,
)
from benchmarks.methods.bench import Bench, Cell
from benchmarks.methods.cells import better_policy, equal_rank_cells, main_cells, once, take_known
from benchmarks.methods.grid import method_grid
from benchmarks.methods.measure import errors, record
from benchmarks.methods.peers import PEERS, magnitude, obs, obs_measured, svd
from benchmarks.methods.peers.channels import keep_channels_
from benchmarks.methods.peers.moments import input_moments
from benchmarks.methods.peers.pool import Width, shared_out, spendable, used
from benchmarks.methods.prompts import calibration_prompts, held_out_prompts, picture_prompts
from benchmarks.methods.robustness import conditions
from benchmarks.methods.scores import bootstrap_ratio
from benchmarks.methods.settings import FULL, QUICK
from benchmarks.methods.tables import markdown
from diffusers import DDIMScheduler
from helpers import attention, feed_forward, gram, normal, samples, seeds, site_of, tiny_unet
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_pipeline

from slimdiff import Sampling, SlimdiffError
from slimdiff.decomposition import PAPER, paper
from slimdiff.families.blocks import shared_block_sites
from slimdiff.gains import Call
from slimdiff.linalg import damped
from slimdiff.recipe import copy_pipeline
from slimdiff.sites import pool_parameters

SHARES = st.floats(0.3, 1.0)


def moments_of(model, sites, seed=0):
    """Made-up second moments for every Linear of the pool."""
    names = dict.fromkeys(part.linear for site in sites for part in site.parts)
    widths = {name: model.get_submodule(name).in_features for name in names}
    return {n: gram(samples(seed + i, 3 * w, w)) for i, (n, w) in enumerate(widths.items())}


@functools.cache
def dense():
    """The tiny UNet, one call of it, its sites and made-up moments; shared, never edited."""
    model, inputs = tiny_unet()
    sites = shared_block_sites(model)
    return model, inputs, sites, moments_of(model, sites)


def slimmed(peer, share, seed=0):
    model, inputs, sites, moments = dense()
    slim = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    left = PEERS[peer].slim_(slim, sites, moments, share, generator)
    return model, slim, sites, inputs, left


# Accounting


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.builds(Width, st.integers(1, 40), st.integers(1, 50)),
        min_size=1,
        max_size=6,
    ),
    st.floats(0, 1),
)
def test_shared_out_is_one_share_up_to_rounding_and_never_over_the_limit(widths, share):
    whole = sum(int(w.full) * w.cost for w in widths.values())
    found = shared_out(widths, int(share * whole))
    assert used(widths, found) <= int(share * whole)
    exact = int(share * whole) / whole
    for name, width in widths.items():
        assert math.floor(exact * width.full + 1e-9) <= found[name]
        assert found[name] <= math.ceil(exact * width.full)


def test_equal_remainders_go_to_the_greatest_worth():
    widths = {name: Width(8, 10) for name in "abc"}
    found = shared_out(widths, 145, {"a": 1.0, "b": 3.0, "c": 2.0})
    assert found == {"a": 4, "b": 5, "c": 5}


@pytest.mark.parametrize("peer", PEERS)
@given(share=SHARES)
def test_peers_keep_no_more_than_was_asked(peer, share):
    model, slim, sites, _, left = slimmed(peer, share)
    whole = sum(p.numel() for p in model.parameters())
    assert [p.shape for p in slim.parameters()] == [p.shape for p in model.parameters()]
    assert left - (whole - pool_parameters(sites)) <= share * pool_parameters(sites) + 1e-6


@pytest.mark.parametrize("peer", PEERS)
def test_a_full_share_changes_nothing(peer):
    model, slim, _, inputs, left = slimmed(peer, 1.0)
    assert left == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(slim(**inputs).sample, model(**inputs).sample)


@pytest.mark.parametrize("peer", ["random", "magnitude", "obs"])
def test_parameters_left_are_those_that_are_not_zero(peer):
    model, slim, _, _, left = slimmed(peer, 0.6)
    # Random weights are never zero; biases that start at zero are counted apart.
    zeroed = sum(
        int(((a == 0) & (b != 0)).sum())
        for a, b in zip(slim.parameters(), model.parameters(), strict=True)
    )
    zeroed_biases = sum(
        int((slim.get_submodule(s.role("up")[0].linear).weight == 0).all(1).sum())
        for s in shared_block_sites(model)
        if s.kind == "ffn"
        and not bool(model.get_submodule(s.role("up")[0].linear).bias.detach().any())
    )
    assert sum(p.numel() for p in model.parameters()) - zeroed - zeroed_biases == left


def test_rank_parameters_of_factors_fit_and_biases_count():
    model, _ = tiny_unet()
    sites = shared_block_sites(model)
    found, kept = svd.ranks(model, sites, 0.6)
    linears = {name: model.get_submodule(name) for name in found}
    factors = sum(r * sum(linears[name].weight.shape) for name, r in found.items())
    writers = {p.linear for s in sites for p in s.parts if not p.reads and p.bias}
    biases = sum(linears[name].bias.numel() for name in writers)
    assert kept == factors + biases <= spendable(sites, 0.6)


# Channels


@pytest.mark.parametrize("kind", ["qk", "vo"])
def test_kept_channels_of_an_attention_are_a_narrower_attention(kind):
    model = attention(3, heads=2, width=4)
    site = site_of(model, kind)
    kept = torch.tensor([0, 3, 5, 6])
    wanted = copy.deepcopy(model)
    block = wanted.block
    if kind == "qk":
        narrow = [block.to_q, block.to_k]
        for linear in narrow:
            linear.weight = torch.nn.Parameter(linear.weight[kept])
        block.scale = 4**-0.5
        x = normal(1, 2, 5, 6)
        q, k, v = block.to_q(x), block.to_k(x), block.to_v(x)
        logits = torch.einsum("bnhd,bmhd->bhnm", q.unflatten(-1, (2, 2)), k.unflatten(-1, (2, 2)))
        heads = torch.einsum("bhnm,bmhd->bnhd", (logits / 2).softmax(-1), v.unflatten(-1, (2, 4)))
        expected = block.to_out[0](heads.flatten(2))
    else:
        gone = [j for j in range(8) if j not in kept]
        with torch.no_grad():
            block.to_out[0].weight[:, gone] = 0
        x = normal(1, 2, 5, 6)
        expected = wanted(x)
    keep_channels_(model, site, kept)
    torch.testing.assert_close(model(x), expected)


@given(seeds)
def test_magnitude_keeps_the_channels_of_largest_norm(seed):
    model = feed_forward(seed, width=8)
    site = site_of(model, "ffn")
    up, down = (p.detach() for p in (model.block.net[0].proj.weight, model.block.net[2].weight))
    norms = [
        float(up[j].abs().sum() + up[8 + j].abs().sum() + down[:, j].abs().sum()) for j in range(8)
    ]
    torch.testing.assert_close(
        magnitude.scores(model, site).flatten(), torch.tensor(norms, dtype=torch.float64)
    )
    share = 0.7
    keep = shared_out({"f": Width(8, site.parameters(1))}, spendable([site], share))["f"]
    magnitude.slim_(model, [site], {}, share, torch.Generator())
    there = down.any(0).nonzero().flatten().tolist()
    assert there == sorted(sorted(range(8), key=lambda j: -norms[j])[:keep])


def test_random_follows_its_generator():
    first, again, other = (slimmed("random", 0.5, seed)[1].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


# Optimal Brain Surgeon


@given(seeds, st.sampled_from([(1, 6), (2, 3), (3, 2)]), st.integers(1, 5))
def test_surgeons_update_is_least_squares_on_the_kept_inputs(seed, shape, keep):
    size, groups = shape
    keep = min(keep, groups)
    weight, x = normal(seed, 4, 6), samples(seed, 30, 6)
    hessian = gram(x) / 30
    found = obs.prune(weight, hessian, size, keep)
    inside = (found.kept[:, None] * size + torch.arange(size)).flatten()
    h = damped(hessian, obs.DAMPING)
    wanted = torch.zeros_like(weight)
    wanted[:, inside] = torch.linalg.solve(h[inside][:, inside], h[inside] @ weight.T).T
    torch.testing.assert_close(found.weight, wanted, rtol=1e-7, atol=1e-9)
    lost = weight - wanted
    torch.testing.assert_close(found.costs.sum(), (lost @ h * lost).sum(), rtol=1e-7, atol=1e-9)


@given(seeds, st.sampled_from([(1, 6), (2, 3)]))
def test_surgeon_first_removes_what_costs_least_after_the_update(seed, shape):
    size, groups = shape
    weight, hessian = normal(seed, 4, 6), gram(samples(seed, 30, 6))
    h = damped(hessian, obs.DAMPING)
    costs = []
    for g in range(groups):
        stay = torch.tensor([j for j in range(6) if j // size != g])
        refitted = torch.zeros_like(weight)
        refitted[:, stay] = torch.linalg.solve(h[stay][:, stay], h[stay] @ weight.T).T
        costs.append(float(((weight - refitted) @ h * (weight - refitted)).sum()))
    found = obs.prune(weight, hessian, size, groups - 1)
    gone = set(range(groups)) - set(found.kept.tolist())
    assert gone == {min(range(groups), key=lambda g: costs[g])}
    assert float(found.costs[0]) == pytest.approx(min(costs))


def test_surgeon_takes_whole_heads_from_all_projections():
    model, slim, sites, _, _ = slimmed("obs", 0.6)
    for site in (s for s in sites if s.kind in ("qk", "vo")):
        output = next(s for s in sites if s.module == site.module and s.kind == "vo")
        reader = slim.get_submodule(output.role("output")[0].linear).weight
        heads = reader.detach().unflatten(1, (site.heads, -1)).ne(0).any(0)
        assert torch.equal(heads.any(1), heads.all(1))
        for part in site.parts:
            if not part.reads:
                rows = slim.get_submodule(part.linear).weight.detach().any(1)
                assert torch.equal(rows.view(site.heads, -1).all(1), heads.any(1))
    assert any(bool((p == 0).any()) for p in slim.parameters())
    assert model is not slim


@given(SHARES)
def test_surgeon_with_prices_keeps_no_more_than_was_asked(share):
    model, _, sites, moments = dense()
    slim = copy.deepcopy(model)
    left = obs_measured.slim_(slim, sites, moments, share, dict.fromkeys(_units(sites), 1.0))
    whole = sum(p.numel() for p in model.parameters())
    assert left - (whole - pool_parameters(sites)) <= share * pool_parameters(sites) + 1e-6


def test_surgeon_with_prices_spares_what_is_dear():
    model, _, sites, moments = dense()
    for name in _units(sites):
        slim = copy.deepcopy(model)
        prices = {unit: 1e6 if unit == name else 1e-3 for unit in _units(sites)}
        obs_measured.slim_(slim, sites, moments, 0.7, prices)
        for part in (p for s in sites if s.name == name or s.module == name for p in s.parts):
            assert torch.equal(
                slim.get_submodule(part.linear).weight, model.get_submodule(part.linear).weight
            )


def test_prices_are_the_outputs_error_with_one_unit_pruned_to_half():
    model, inputs, sites, moments = dense()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(**inputs).sample
    prices = obs_measured.price(model, sites, moments, [Call((), inputs, wanted)])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(prices) == set(_units(sites))
    site = next(s for s in sites if s.kind == "ffn")
    cut = copy.deepcopy(model)
    (down,) = (cut.get_submodule(p.linear) for p in site.role("down"))
    pruned = obs.prune(down.weight, moments[site.role("down")[0].linear], 1, site.width // 2)
    with torch.no_grad():
        down.weight.copy_(pruned.weight)
        error = (cut(**inputs).sample - wanted).square().sum() / wanted.square().sum()
    assert prices[site.name] == pytest.approx(float(error), rel=1e-6)


@given(seeds)
def test_surgeons_curve_is_the_error_at_every_count(seed):
    weight, hessian = normal(seed, 4, 6), gram(samples(seed, 30, 6))
    costs = obs.prune(weight, hessian, 1, 1).costs
    curve = obs_measured.curve_of(costs)
    h = damped(hessian, obs.DAMPING)
    for keep in range(1, 7):
        lost = weight - obs.prune(weight, hessian, 1, keep).weight
        wanted = float((lost @ h * lost).sum())
        assert float(curve[keep - 1]) == pytest.approx(wanted, rel=1e-7, abs=1e-12)


def _units(sites):
    return [*obs.attentions(sites), *obs.neurons(sites)]


# SVD-LLM


@given(seeds, st.integers(1, 4))
def test_no_other_matrix_of_the_rank_beats_the_whitened_truncation(seed, rank):
    weight, moment = normal(seed, 5, 6), gram(samples(seed, 40, 6)) / 40
    best = svd.truncated(weight, moment, rank)

    def error(other):
        return float(((weight - other) @ moment * (weight - other)).sum())

    assert int(torch.linalg.matrix_rank(best)) == rank
    root = torch.linalg.cholesky(moment)
    tail = torch.linalg.svdvals(weight @ root)[rank:]
    assert error(best) == pytest.approx(float(tail.square().sum()), rel=1e-6)
    plain = torch.linalg.svd(weight)
    others = [(plain.U[:, :rank] * plain.S[:rank]) @ plain.Vh[:rank]]
    for i in range(10):
        left, right = normal(seed + i, 5, rank), normal(seed + i + 1, rank, 6)
        nudged = torch.linalg.svd(best + 0.01 * normal(seed + i, 5, 6))
        others += [left @ right, (nudged.U[:, :rank] * nudged.S[:rank]) @ nudged.Vh[:rank]]
    assert error(best) <= min(map(error, others)) * (1 + 1e-9)


@given(seeds)
def test_whitened_truncation_at_full_rank_is_the_identity(seed):
    weight, moment = normal(seed, 5, 6), gram(samples(seed, 40, 6))
    torch.testing.assert_close(svd.truncated(weight, moment, 5), weight)


def test_whitened_truncation_survives_inputs_of_low_rank():
    x = normal(0, 20, 2) @ normal(1, 2, 6)
    found = svd.truncated(normal(2, 5, 6), gram(x), 2)
    torch.testing.assert_close(x @ found.T, x @ normal(2, 5, 6).T, rtol=1e-4, atol=1e-4)


# Moments and errors


def test_input_moments_are_weighted_means_over_all_calls():
    pipe = tiny_pipeline()
    name = site_of(pipe.unet, "vo").role("output")[0].linear
    prompts, sampling = [(0, "a"), (1, "b")], Sampling(steps=3, guidance=2.0)
    seen: list[tuple[float, torch.Tensor]] = []
    step: list[float] = []
    handles = [
        pipe.unet.register_forward_pre_hook(lambda m, a: step.append(float(a[1]))),
        pipe.unet.get_submodule(name).register_forward_pre_hook(
            lambda m, a: seen.append((step[-1], a[0].double().flatten(0, -2)))
        ),
    ]
    plain = input_moments(pipe, [name], prompts, sampling)[name]
    for handle in handles:
        handle.remove()
    weights = {t: 1.0 + i for i, t in enumerate(dict.fromkeys(t for t, _ in seen))}
    weighted = input_moments(pipe, [name], prompts, sampling, weights)[name]
    assert len(weights) == 3
    for found, of in ((plain, dict.fromkeys(weights, 1.0)), (weighted, weights)):
        total = sum(of[t] * gram(x) for t, x in seen)
        torch.testing.assert_close(
            found, total / sum(of[t] * len(x) for t, x in seen), rtol=1e-4, atol=1e-6
        )
    assert not pipe.unet.get_submodule(name)._forward_pre_hooks


def test_errors_are_zero_for_the_dense_pipeline_and_one_for_silence():
    pipe = tiny_pipeline()
    reference = record(pipe, [(0, "a"), (1, "b"), (2, "c")], Sampling(steps=2, batch_size=2))
    assert len(reference.calls) == 4
    assert vars(errors(pipe, reference)) == {"noise_rel_mse": 0.0, "latent_rel_mse": 0.0}
    silent = copy_pipeline(pipe)
    torch.nn.init.zeros_(silent.unet.conv_out.weight)
    torch.nn.init.zeros_(silent.unet.conv_out.bias)
    found = errors(silent, reference)
    assert found.noise_rel_mse == pytest.approx(1.0)
    assert found.latent_rel_mse > 0


# What is run


def test_prompts_of_a_seed_are_never_compared_on():
    pool = [f"thing {i}" for i in range(200)]
    first, again, other = (calibration_prompts(pool, seed, 32) for seed in (1, 1, 2))
    held_out = held_out_prompts(pool, 10)
    drawn = picture_prompts(pool, first, 40)
    assert first == again
    assert {t for _, t in first} != {t for _, t in other}
    assert not {i for i, _ in first} & {i for i, _ in other}
    assert not {t for _, t in first} & {t for _, t in [*held_out, *drawn]}
    assert drawn[:10] == held_out
    with pytest.raises(SlimdiffError, match="Ask for fewer"):
        calibration_prompts(pool, 0, 1000)


def test_cells_have_names_of_their_own_and_magnitude_one_seed():
    cells = main_cells(FULL) + equal_rank_cells(FULL)
    assert len({cell.name for cell in cells}) == len(cells)
    assert {c.seed for c in cells if c.method == "magnitude"} == {0}
    assert len(main_cells(QUICK)) == 11
    measured = {c.method for c in cells if c.policy == "measured"}
    assert measured == {"exact", "paper", "obs"}


def test_ablation_goes_from_the_paper_to_ours():
    steps = ablation_cells(QUICK, "ara")
    assert steps[0][1] == [Cell("paper", "ara", 0.6, 0)]
    assert steps[-2][1] == [Cell("exact", "measured", 0.6, 0)]
    assert steps[-1] == ("+ rounds (1)", [Cell("exact", "measured", 0.6, 0, rounds=1)])
    changed = [PAPER, *(step.forms for step in STEPS)]
    for before, after in zip(changed, changed[1:], strict=False):
        assert any(before[kind] is not after[kind] for kind in before)
    assert steps[-1][1][0].name == "exact-measured-1-rounds-0.6-0"
    assert set(FORMS) == {cells[0].method for _, cells in steps[1:-2]} | {k.method for k in KINDS}


def test_kinds_are_ours_one_at_a_time_at_equal_ranks():
    first, *ones, last = (cells for _, cells in kind_cells(QUICK))
    assert first == equal_rank_cells(QUICK)
    assert last == [Cell("exact", "measured", 0.6, 0)]
    assert {cells[0].ranks for cells in ones} == {"exact"}
    for step, kind in zip(KINDS, ("qk", "vo", "ffn"), strict=True):
        assert {k for k in PAPER if step.forms[k] is not PAPER[k]} == {kind}


@given(seeds)
def test_orthonormal_paper_directions_span_what_the_paper_keeps(seed):
    v, w = normal(seed, 2, 30, 4), normal(seed + 1, 2, 4, 6)
    moments = {"value": v.mT @ v}
    q = paper_span(moments, w).tensors["value"]
    p = paper.vo_decompose(moments, w).tensors["value"]
    torch.testing.assert_close(q.mT @ q, torch.eye(4, dtype=q.dtype).expand(2, 4, 4))
    for r in range(1, 4):
        inside = q[..., :r] @ q[..., :r].mT @ p[..., :r]
        torch.testing.assert_close(inside, p[..., :r], rtol=1e-6, atol=1e-8)


def test_conditions_change_one_thing_each_and_calibration_comes_once():
    found = list(conditions(FULL, DDIMScheduler))
    assert len({c.name for c in found}) == len(found) == 7


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(QUICK, tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("pool", FULL.pools)
@pytest.mark.parametrize("peer", ["random", "magnitude"])
def test_peers_keep_the_emoji_pool_to_one_per_cent(bench, peer, pool):
    pipe, parameters = bench.slim(Cell(peer, "uniform", pool, 0))
    assert 0.99 * pool <= bench.pool_kept(parameters) <= pool
    assert pipe.unet is not bench.dense.unet


@pytest.mark.parametrize("peer", ["obs", "svd"])
def test_peers_with_moments_keep_the_emoji_pool_to_one_per_cent(bench, peer):
    linears = {p.linear for site in bench.sites for p in site.parts}
    widths = {name: bench.dense.unet.get_submodule(name).in_features for name in linears}
    bench._moments[peer, 0] = {n: torch.eye(w, dtype=torch.float64) for n, w in widths.items()}
    _, parameters = bench.slim(Cell(peer, "uniform", 0.6, 0))
    assert 0.594 <= bench.pool_kept(parameters) <= 0.6


def test_a_folder_of_other_settings_is_refused(bench):
    with pytest.raises(SlimdiffError, match="results with other held_out. Choose another --work"):
        Bench(replace(QUICK, held_out=3), bench.work)


def test_seeds_may_be_added_to_a_folder(bench):
    assert Bench(replace(QUICK, seeds=(0, 1)), bench.work).settings.seeds == (0, 1)


def test_known_cells_are_taken_and_those_of_other_settings_refused(bench):
    known = {
        "provenance": bench.provenance,
        "cells": {"first": {"noise_rel_mse": 1.0}},
        "equal_ranks": {"second": {"noise_rel_mse": 2.0}},
        "kinds": [],
        "ablation": [{"label": "paper", "cells": {"third": {"noise_rel_mse": 3.0}}}],
    }
    take_known(bench, known)
    for name, error in (("first", 1.0), ("second", 2.0), ("third", 3.0)):
        kept = once(bench.work / "cells" / f"{name}.json", lambda: {})
        assert kept == {"noise_rel_mse": error}
    known["provenance"] = {**bench.provenance, "fingerprint": "0"}
    with pytest.raises(SlimdiffError, match="'results.json' holds results with other model"):
        take_known(bench, known)
    known["provenance"] = {**bench.provenance, "defaults": {}}
    with pytest.raises(SlimdiffError, match="with other calibration_steps, tokens, gain_prompts"):
        take_known(bench, known)


def test_a_result_is_measured_once(tmp_path):
    runs = []

    def measure():
        runs.append(1)
        return {"noise_rel_mse": 0.5}

    path = tmp_path / "cells" / "a.json"
    assert once(path, measure) == once(path, measure) == {"noise_rel_mse": 0.5}
    assert len(runs) == 1


def test_the_papers_better_policy_is_never_ours():
    results = {
        name: {"row": f"paper {name}", "pool": 0.6, "noise_rel_mse": error}
        for name, error in (("uniform", 0.3), ("ara", 0.2), ("measured", 0.1))
    }
    assert better_policy(results, 0.6) == "ara"


# What is written


def test_bootstrap_ratio_is_paired():
    hits = [1, 0, 1, 1, 0, 1, 0, 0] * 8
    same = bootstrap_ratio(hits, hits)
    assert same == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    fewer = bootstrap_ratio([h * (i % 2) for i, h in enumerate(hits)], hits)
    assert fewer is not None
    assert fewer["low"] <= fewer["ratio"] <= fewer["high"] < 1
    assert bootstrap_ratio(hits, [0] * len(hits)) is None


def test_grid_has_a_row_a_method_and_a_column_a_prompt():
    drawn = {name: torch.zeros(3, 3, 64, 64, dtype=torch.uint8) for name in ("dense", "slim")}
    two = method_grid(drawn, ["a", "b", "c"], "title", columns=2)
    three = method_grid({**drawn, "third": drawn["slim"]}, ["a", "b", "c"], "title")
    assert three.width - two.width == three.height - two.height > 0


def test_tables_hold_every_method_and_every_step():
    results = {}
    for cell in main_cells(FULL):
        results[cell.name] = {
            **vars(cell),
            "row": cell.row,
            "noise_rel_mse": 1e-3 * (1 + cell.seed),
            "latent_rel_mse": 1e-2,
            "pool_kept": cell.pool,
            "predicted": 8e-4,
        }
    equal = {
        c.name: {**vars(c), "row": c.row, "noise_rel_mse": 4e-3} for c in equal_rank_cells(FULL)
    }
    scores = {"psnr_db": 40.0, "ssim": 0.9, "kid": 0.0, "clip": 20.0, "r_at_1": 0.5}
    text = markdown(
        {
            "provenance": {
                "model": "emoji",
                "parameters": 10,
                "pool": 5,
                "device": "cpu",
                "versions": {"torch": "2"},
            },
            "cells": results,
            "equal_ranks": equal,
            "kinds": [
                {"label": "theirs", "cells": {"a": {"noise_rel_mse": 2e-3}}},
                {"label": "one of ours", "cells": {"a": {"noise_rel_mse": 1.5e-3}}},
            ],
            "ablation": [
                {
                    "label": label,
                    "policy": "ara",
                    "cells": {"a": {"noise_rel_mse": 1e-3 / (i + 1)}},
                }
                for i, (label, _) in enumerate(ablation_cells(FULL, "ara"))
            ],
            "pictures": {"0.6": {"dense": scores, "ours": scores | {"r_at_1_to_dense": None}}},
            "robustness": {"Euler": {"noise_rel_mse": 1e-4, "latent_rel_mse": 1e-3}},
        },
        FULL,
    )
    for word in ("exact ara", "svd uniform", "+ centred keys", "no dense hit", "not computed"):
        assert word in text
    assert "2.00e-03 (1.00e-03 to 3.00e-03) x1 |" in text
    assert "| x2 |" in text
    assert "| one of ours | 1.50e-03 | x0.75 |" in text
    assert "| 2.50 (1.25 to 3.75) |" in text  # achieved to predicted
