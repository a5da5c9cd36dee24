"""Recorded sums against plain sums, and hooks that leave no trace."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import (
    Alone,
    attention,
    augmented,
    energy,
    feed_forward,
    gram,
    normal,
    record,
    seeds,
    site_of,
    tiny_unet,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slimdiff import SlimdiffError
from slimdiff.families.blocks import shared_block_sites
from slimdiff.recording import TokenSampling, empty_sums, recording


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Relative in the Frobenius norm."""
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def keep_mask(seed: int, batch: int, length: int) -> Tensor:
    """True for keys that may be attended, shape (B, M); the first always may."""
    keep = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) > 0.4
    keep[:, 0] = True
    return keep


def naive_attention(attn, x: Tensor, context: Tensor, keep: Tensor) -> dict[str, Tensor]:
    """Sums over one sequence of queries, (N, D), and one of keys, (M, D), and its output."""
    queries, keys, means, values, outputs = [], [], [], [], []
    for q, k, v in zip(
        *(t.chunk(attn.heads, -1) for t in (attn.to_q(x), attn.to_k(context), attn.to_v(context))),
        strict=True,
    ):
        values.append(gram(v))
        k, v = k[keep], v[keep]
        queries.append(gram(q))
        keys.append(gram(k - k.mean(0)))
        means.append(len(k) * torch.outer(k.mean(0), k.mean(0)))
        outputs.append(torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v)
    y = torch.cat(outputs, -1)
    return {
        "query": torch.stack(queries),
        "key": torch.stack(keys),
        "key_mean": torch.stack(means),
        "value": torch.stack(values),
        "augmented": augmented(y),
        "output": attn.to_out[0](y),
    }


@given(
    seeds, st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from([None, "bias", "bool"])
)
@torch.no_grad()
def test_attention_sums_equal_a_naive_twin(seed, heads, bias, cross, mask):
    model = attention(seed, heads=heads, bias=bias, cross_attention_dim=6)
    x, context = normal(seed + 1, 2, 5, 6), normal(seed + 2, 2, 7, 6)
    call, context = {"x": x}, context if cross else x
    if cross:
        call["encoder_hidden_states"] = context
    keep = torch.ones(2, context.shape[1], dtype=torch.bool)
    if mask:
        keep = keep_mask(seed, *keep.shape)
        call["attention_mask"] = keep[:, None] if mask == "bool" else ~keep[:, None] * -1e4
    calls = [{**call, "timestep": 3.0}, {**call, "timestep": 7.0}]
    sums = record(model, calls, weights=lambda site, t: {3.0: 0.5, 7.0: 2.0}[t])
    twins = [naive_attention(model.block, x[b], context[b], keep[b]) for b in range(2)]
    spent = 2.5 * sum(energy(twin["output"]) for twin in twins)
    names = {"qk": ("query", "key", "key_mean"), "vo": ("augmented", "value")}
    for site, name in ((site, name) for site, found in names.items() for name in found):
        close(sums[f"block.{site}"][name], 2.5 * (twins[0][name] + twins[1][name]), 1e-10)
        expected = torch.tensor([spent, 0, 2.5 * 2 * 5], dtype=torch.float64)
        close(sums[f"block.{site}"]["energy"], expected)


@given(seeds, st.sampled_from(["geglu", "gelu"]), st.booleans())
@torch.no_grad()
def test_feed_forward_sums_equal_a_naive_twin(seed, activation, bias):
    model = feed_forward(seed, activation=activation, bias=bias)
    x = normal(seed + 1, 3, 5, 6)
    found = record(model, [{"x": x}])["block.ffn"]
    hidden = model.block.net[0](x).flatten(0, 1)
    close(found["augmented"], augmented(hidden))
    close(found["energy"], torch.tensor([energy(model.block(x)), 0, 15], dtype=torch.float64))


@torch.no_grad()
def test_sums_in_several_stripes_equal_a_naive_twin_and_are_symmetric():
    model, x = feed_forward(0, width=300), normal(1, 3, 50, 6)
    found = record(model, [{"x": x}, {"x": 2 * x}])["block.ffn"]["augmented"]
    hidden = [model.block.net[0](call).flatten(0, 1) for call in (x, 2 * x)]
    close(found, sum(augmented(rows) for rows in hidden))
    assert torch.equal(found, found.mT)


@torch.no_grad()
def test_a_call_that_counts_nothing_is_left_out():
    model, x = attention(0), normal(1, 2, 5, 6)
    calls = [{"x": x, "timestep": 1.0}, {"x": x / 0.0, "timestep": 2.0}]
    whole = record(model, calls[:1])
    with pytest.raises(SlimdiffError, match=r"The output of .* at timestep 2;"):
        record(model, calls, weights=lambda site, t: float(t == 1.0))
    found = record(model, [calls[0], {"x": 3 * x, "timestep": 2.0}], weights=lambda site, t: 2 - t)
    for name, total in whole["block.qk"].items():
        assert torch.equal(found["block.qk"][name], total)


@torch.no_grad()
def test_the_energy_of_the_residual_stream_is_what_the_norm_reads():
    model, inputs = tiny_unet()
    site = shared_block_sites(model)[0]
    seen: list[float] = []
    with model.get_submodule(site.stream).register_forward_pre_hook(
        lambda module, args: seen.append(energy(args[0]))
    ):
        sums = record(model, [inputs], [site])
    assert float(sums[site.name]["energy"][1]) == pytest.approx(sum(seen), rel=1e-12)


@torch.no_grad()
def test_attention_over_pictures_counts_pixels_as_tokens():
    model = attention(0, residual_connection=True)
    found = record(model, [{"x": normal(1, 2, 6, 3, 4)}])["block.qk"]["energy"]
    assert float(found[2]) == 2 * 3 * 4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("tokens", [None, 3])
def test_halves_of_a_batch_add_to_the_whole(dtype, tolerance, tokens):
    model = tiny_unet()[0].to(dtype)
    inputs = {
        "sample": normal(0, 4, 4, 8, 8).to(dtype),
        "encoder_hidden_states": normal(1, 4, 5, 12).to(dtype),
        "timestep": torch.tensor(500),
    }
    parts = [slice(0, 4), slice(0, 2), slice(2, 4)]
    calls = [{k: v[part] if v.dim() else v for k, v in inputs.items()} for part in parts]
    whole, first, second = (
        record(model, [call], tokens=TokenSampling(tokens, 1)) for call in calls
    )
    assert len(whole) == len(shared_block_sites(model))
    for site, total in whole.items():
        for name, value in total.items():
            assert value.dtype == torch.float64
            close(first[site][name] + second[site][name], value, tolerance)


@torch.no_grad()
def test_masked_keys_leave_no_trace():
    model = attention(0, cross_attention_dim=6)
    context, keep = normal(2, 2, 7, 6), keep_mask(0, 2, 7)
    call = {"x": normal(1, 2, 5, 6), "attention_mask": ~keep[:, None] * -1e4}
    changed = torch.where(keep[..., None], context, 1e3)
    found, other = (
        record(model, [{**call, "encoder_hidden_states": c}]) for c in (context, changed)
    )
    close(found["block.qk"]["key"], other["block.qk"]["key"])


@torch.no_grad()
def test_a_constant_added_to_all_keys_leaves_no_trace():
    model = attention(0, bias=True)
    before = record(model, [{"x": normal(1, 2, 5, 6)}])
    model.block.to_k.bias += 3.0
    after = record(model, [{"x": normal(1, 2, 5, 6)}])
    close(after["block.qk"]["key"], before["block.qk"]["key"], 1e-11)


@torch.no_grad()
def test_a_sequence_masked_as_a_whole_counts_as_unmasked_as_in_softmax():
    model, x = attention(0), normal(1, 2, 5, 6)
    mask = torch.zeros(2, 1, 5).double()
    mask[1] = -1e4
    found = record(model, [{"x": x, "attention_mask": mask}])
    close(found["block.qk"]["key"], record(model, [{"x": x}])["block.qk"]["key"])


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_come_off():
    model, inputs = tiny_unet()
    sites = shared_block_sites(model)
    sums = empty_sums(sites, torch.device("cpu"))
    with recording(model, sites, sums, tokens=TokenSampling()):
        assert hooks(model) > 0
        model(**inputs)
    assert hooks(model) == 0
    before = {name: s["energy"].clone() for name, s in sums.items()}
    model(**inputs)
    assert all(torch.equal(before[name], sums[name]["energy"]) for name in sums)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_hooks_come_off_after_an_exception():
    model, _ = tiny_unet()
    sites = shared_block_sites(model)
    sums = empty_sums(sites, torch.device("cpu"))
    with (
        pytest.raises(KeyboardInterrupt),
        recording(model, sites, sums, tokens=TokenSampling()),
    ):
        interrupt()
    assert hooks(model) == 0


def test_hooks_come_off_where_a_site_does_not_fit_the_model():
    model = attention(0)
    site = site_of(model, "qk")
    stranger = replace(site, parts=(*site.parts, replace(site.parts[0], linear="block.absent")))
    sums = empty_sums([site], torch.device("cpu"))
    with (
        pytest.raises(KeyError, match="absent"),
        recording(model, [stranger], sums, tokens=TokenSampling()),
    ):
        pass
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("kind", "linear"),
    [("qk", "to_q"), ("qk", "to_k"), ("vo", "to_v")],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_site_and_timestep(kind, linear, value):
    model = attention(0)
    with torch.no_grad():
        model.block.get_submodule(linear).weight[0, 0] = value
    site = site_of(model, kind)
    with pytest.raises(SlimdiffError, match=rf"'block\.{kind}'.*timestep 12\.5.*--dtype"):
        record(model, [{"x": normal(1, 1, 4, 6), "timestep": 12.5}], [site])
    assert hooks(model) == 0


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_picked_tokens_are_seeded_distinct_and_sorted(length, count, seed):
    sampling = TokenSampling(count, seed)
    picked = sampling.pick(length, 1.0)
    if length <= count:
        assert picked is None
        return
    assert len(set(picked.tolist())) == count
    assert picked.tolist() == sorted(picked.tolist())
    assert max(picked) < length
    assert torch.equal(picked, TokenSampling(count, seed).pick(length, 1.0))


def test_picked_tokens_depend_on_seed_and_timestep():
    base = TokenSampling(5, 0).pick(1000, 1.0)
    for other in (TokenSampling(5, 1).pick(1000, 1.0), TokenSampling(5, 0).pick(1000, 2.0)):
        assert not torch.equal(base, other)


def test_a_share_of_the_tokens_is_rounded_up_and_no_fewer_than_eight():
    sampling = TokenSampling(0.25)
    lengths = (7, 16, 64, 77, 4096)
    assert [sampling.count(n) for n in lengths] == [7, 8, 16, 20, 1024]
    assert sampling.pick(7, 1.0) is None
    assert len(sampling.pick(77, 1.0)) == 20


@pytest.mark.parametrize("tokens", [0, -4, 0.0, 1.0, 2.5, float("nan")])
def test_token_counts_that_say_nothing_are_refused(tokens):
    with pytest.raises(SlimdiffError, match=rf"tokens is {tokens}; expected a whole number"):
        TokenSampling(tokens)


@given(seeds, st.integers(1, 8))
@torch.no_grad()
def test_a_subset_of_tokens_is_scaled_up_to_all(seed, count):
    model, x = feed_forward(seed), normal(seed + 1, 2, 9, 6)
    sampling = TokenSampling(count, seed % 1000)
    found = record(model, [{"x": x}], tokens=sampling)["block.ffn"]["augmented"]
    hidden = model.block.net[0](x)[:, sampling.pick(9, 1.0)]
    close(found, augmented(hidden.flatten(0, 1)) * 9 / count)


@torch.no_grad()
def test_a_subset_of_tokens_is_unbiased():
    model, call = attention(0), {"x": normal(1, 2, 6, 6)}
    whole = record(model, [call])
    runs = [record(model, [call], tokens=TokenSampling(3, seed)) for seed in range(300)]
    for site, name in (("block.qk", "query"), ("block.qk", "key"), ("block.vo", "augmented")):
        mean = torch.stack([run[site][name] for run in runs]).mean(0)
        close(mean, whole[site][name], 0.06)


def test_locked_sites_are_left_alone():
    model = attention(0)
    site = replace(site_of(model, "qk"), locked="a reason")
    assert record(model, [{"x": normal(1, 1, 4, 6)}], [site]) == {}


def test_a_denoiser_called_without_timestep_is_refused():
    model = Alone(torch.nn.Identity())
    with (
        pytest.raises(SlimdiffError, match="without a timestep"),
        recording(model, [], {}, tokens=TokenSampling()),
    ):
        model(torch.zeros(1))
    assert hooks(model) == 0
