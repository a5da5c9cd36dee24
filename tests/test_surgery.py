"""Cuts against cuts written out by hand, and trials that leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from helpers import attention, decomposed, feed_forward, normal, record, seeds, site_of, tiny_unet
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import slimdiff.attention as attention_module
from slimdiff.attention import SlimAttnProcessor
from slimdiff.decomposition import EXACT
from slimdiff.families.blocks import shared_block_sites
from slimdiff.sites import Part, Site
from slimdiff.surgery import cut_site_, reader_weights, reshape_, trial

UNET_SITES = shared_block_sites(tiny_unet()[0])


def random_maps(site, width: int, seed: int = 0) -> dict[str, Tensor]:
    """Maps of the right shapes that no decomposition would give."""
    h, d = site.heads, site.width
    if site.kind == "qk":
        return {"query": normal(seed, h, d, width), "key": normal(seed + 1, h, d, width)}
    reader = {"bias": normal(seed + 2, h * d)}
    if site.kind == "vo":
        return reader | {
            "value": normal(seed, h, d, width),
            "output": normal(seed + 1, h * width, h * d),
        }
    order = torch.randperm(d, generator=torch.Generator().manual_seed(seed))
    kept = order[:width].sort().values
    return reader | {"up": kept, "gate": kept, "down": normal(seed + 1, width, d)}


def cut(model, kind: str, width: int):
    """Cut the first site of one kind by random maps; returns the model."""
    site = site_of(model, kind)
    cut_site_(model, site, random_maps(site, width))
    return model


def by_head(weight: Tensor, maps: Tensor) -> Tensor:
    """Rows of each head mapped by that head's matrix, written as a loop."""
    slabs = weight.chunk(len(maps))
    return torch.cat([p.T @ slab for p, slab in zip(maps, slabs, strict=True)])


@given(seeds, st.booleans(), st.integers(1, 3), st.integers(1, 4))
@torch.no_grad()
def test_attention_weights_are_those_of_the_maps(seed, bias, heads, r):
    model = attention(seed, heads=heads, width=4, bias=bias)
    old = copy.deepcopy(model.block)
    maps = {}
    for kind in ("qk", "vo"):
        site = site_of(model, kind)
        maps[kind] = random_maps(site, r, seed)
        cut_site_(model, site, maps[kind])
    new = model.block
    for name, kind, role in (
        ("to_q", "qk", "query"),
        ("to_k", "qk", "key"),
        ("to_v", "vo", "value"),
    ):
        before, after = old.get_submodule(name), new.get_submodule(name)
        torch.testing.assert_close(after.weight, by_head(before.weight, maps[kind][role]))
        assert (after.bias is None) == (not bias)
        if bias:
            torch.testing.assert_close(after.bias, by_head(before.bias, maps[kind][role]))
    out, new_out = old.to_out[0], new.to_out[0]
    torch.testing.assert_close(new_out.weight, out.weight @ maps["vo"]["output"].T)
    torch.testing.assert_close(new_out.bias, out.bias + out.weight @ maps["vo"]["bias"])


@given(seeds, st.sampled_from(["geglu", "gelu"]), st.booleans(), st.integers(1, 8))
@torch.no_grad()
def test_feed_forward_weights_are_those_of_the_maps(seed, activation, bias, r):
    model = feed_forward(seed, width=8, activation=activation, bias=bias)
    old, site = copy.deepcopy(model.block), site_of(model, "ffn")
    maps = random_maps(site, r, seed)
    cut_site_(model, site, maps)
    # GEGLU packs the values' rows before the gates' in one Linear.
    kept = torch.cat([maps["up"], 8 + maps["up"]]) if activation == "geglu" else maps["up"]
    up, down = model.block.net[0].proj, model.block.net[2]
    assert torch.equal(up.weight, old.net[0].proj.weight[kept])
    torch.testing.assert_close(down.weight, old.net[2].weight @ maps["down"].T)
    assert (up.bias is None) == (down.bias is None) == (not bias)
    if bias:
        assert torch.equal(up.bias, old.net[0].proj.bias[kept])
        expected = old.net[2].bias + old.net[2].weight @ maps["bias"]
        torch.testing.assert_close(down.bias, expected)
    assert (up.out_features, down.in_features) == (len(kept), r)


@torch.no_grad()
def test_what_shares_a_linear_with_a_site_is_left_alone():
    model = nn.ModuleDict({"up": nn.Linear(5, 9), "down": nn.Linear(8, 4)}).double()
    parts = (Part("up", "up", 2, 4, 5, True), Part("down", "down", 1, 4, 4, True))
    site = Site("packed.ffn", "ffn", "", "", 1, 4, parts)
    old, maps = copy.deepcopy(model), random_maps(site, 3)
    cut_site_(model, site, maps)
    rows = [0, 1, *(2 + maps["up"]).tolist(), 6, 7, 8]
    assert torch.equal(model["up"].weight, old["up"].weight[rows])
    assert torch.equal(model["up"].bias, old["up"].bias[rows])
    before, after = old["down"].weight, model["down"].weight
    assert torch.equal(after[:, :1], before[:, :1])
    torch.testing.assert_close(after[:, 1:4], before[:, 1:5] @ maps["down"].T)
    assert torch.equal(after[:, 4:], before[:, 5:])
    reshape_(old, [site], {site.name: 3})
    assert state_of(old) == state_of(model)


@torch.no_grad()
def test_a_gated_feed_forward_keeps_each_gate_with_its_value():
    model, x = feed_forward(0, width=8), normal(1, 2, 3, 6)
    hidden = model.block.net[0](x)
    site = site_of(model, "ffn")
    maps = random_maps(site, 3)
    cut_site_(model, site, maps)
    torch.testing.assert_close(model.block.net[0](x), hidden[..., maps["up"]])


def test_reader_weights_are_the_readers_columns_by_head():
    model = attention(0, heads=2, width=4)
    weight = model.block.to_out[0].weight
    found = reader_weights(model, site_of(model, "vo"))
    assert found.shape == (2, 4, 6)
    for h in range(2):
        assert torch.equal(found[h], weight[:, 4 * h : 4 * h + 4].T)
    assert reader_weights(model, site_of(model, "qk")).shape == (2, 4, 0)
    model = feed_forward(0, width=8)
    assert torch.equal(
        reader_weights(model, site_of(model, "ffn"))[0], model.block.net[2].weight.T
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_new_linears_keep_dtype_mode_and_whether_they_train(dtype, training):
    model = attention(0, bias=True).to(dtype).train(training).requires_grad_(training)
    for linear in (cut(model, "vo", 2).block.to_v, model.block.to_out[0]):
        assert linear.training == training
        for parameter in linear.parameters():
            assert parameter.dtype == dtype
            assert parameter.requires_grad == training


def state_of(model) -> dict[str, object]:
    """Shapes, and for attentions scale and processor class, by name."""
    found: dict[str, object] = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    for name, module in model.named_modules():
        if hasattr(module, "processor"):
            found[f"{name}!"] = (module.scale, type(module.processor))
    return found


@given(st.data())
def test_reshape_makes_room_for_what_cut_makes(data):
    (cut_model, inputs), (empty, _) = tiny_unet(), tiny_unet()
    widths = {
        site.name: data.draw(st.integers(1, site.width), label=site.name)
        for site in data.draw(st.lists(st.sampled_from(UNET_SITES), unique_by=lambda s: s.name))
    }
    for site in UNET_SITES:
        if widths.get(site.name, site.width) < site.width:
            cut_site_(cut_model, site, random_maps(site, widths[site.name]))
    reshape_(empty, UNET_SITES, widths)
    assert state_of(empty) == state_of(cut_model)
    empty.load_state_dict(cut_model.state_dict(), strict=True)
    with torch.no_grad():
        # Weights that lie elsewhere in memory are summed in another order.
        torch.testing.assert_close(
            empty(**inputs).sample, cut_model(**inputs).sample, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("site", UNET_SITES[:5], ids=lambda site: site.name[-9:])
@torch.no_grad()
def test_a_trial_puts_the_same_objects_back(site):
    model, inputs = tiny_unet()
    dense, before = model(**inputs).sample, dict(model.named_modules())
    processors = dict(model.attn_processors)
    with trial(model, site, random_maps(site, 3)):
        assert not torch.allclose(model(**inputs).sample, dense)
    with pytest.raises(KeyboardInterrupt), trial(model, site, random_maps(site, 3)):
        raise KeyboardInterrupt
    after = dict(model.named_modules())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert all(model.attn_processors[name] is processors[name] for name in processors)
    assert torch.equal(model(**inputs).sample, dense)


def test_a_trial_with_maps_that_do_not_fit_puts_everything_back():
    model, _ = tiny_unet()
    before = state_of(model)
    (site,) = [s for s in UNET_SITES[:2] if s.kind == "vo"]
    maps = random_maps(site, 3)
    del maps["output"]
    with pytest.raises(KeyError, match="output"), trial(model, site, maps):
        pass
    assert state_of(model) == before


@pytest.mark.parametrize("site", UNET_SITES, ids=lambda site: site.name[-30:])
@torch.no_grad()
def test_a_full_width_cut_leaves_the_whole_unet_as_it_was(site):
    model, inputs = tiny_unet()
    few = {k: v[:1] if v.dim() else v for k, v in inputs.items()}
    few["sample"] = few["sample"][..., :4, :4]  # fewer tokens than channels
    sums = record(model, [few], [site])
    dense = model(**inputs).sample
    basis = decomposed(model, site, sums)
    old = [model.get_submodule(part.linear) for part in site.parts]
    cut_site_(model, site, EXACT[site.kind].maps(basis, sums[site.name], site.width))
    assert all(
        model.get_submodule(p.linear) is not o for p, o in zip(site.parts, old, strict=True)
    )
    torch.testing.assert_close(model(**inputs).sample, dense, rtol=0, atol=1e-10)


def outputs_by_processor(model, call, *processors) -> list[Tensor]:
    found = []
    for processor in processors:
        model.block.set_processor(processor)
        found.append(model(**call))
    return found


def masked_call(seed: int, cross: bool, mask: bool) -> dict[str, Tensor]:
    call = {"x": normal(seed, 2, 5, 6)}
    if cross:
        call["encoder_hidden_states"] = normal(seed + 1, 2, 7, 6)
    if mask:
        keep = torch.rand(2, 1, 7 if cross else 5, generator=torch.Generator().manual_seed(seed))
        call["attention_mask"] = (keep < 0.4).double() * -10000.0
    return call


@given(seeds, st.integers(1, 4), st.booleans(), st.booleans())
@torch.no_grad()
def test_all_processors_agree_after_a_tied_cut(seed, r, cross, mask):
    model = attention(seed, width=4, bias=True, cross_attention_dim=6)
    cut(cut(model, "qk", r), "vo", r)
    call = masked_call(seed, cross, mask)
    stock, fused, slim = outputs_by_processor(
        model, call, AttnProcessor(), AttnProcessor2_0(), SlimAttnProcessor()
    )
    torch.testing.assert_close(fused, stock, rtol=0, atol=1e-10)
    torch.testing.assert_close(slim, stock, rtol=0, atol=1e-10)


@given(seeds, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans())
@torch.no_grad()
def test_unequal_widths_equal_the_explicit_attention(seed, r_qk, r_vo, cross, mask):
    model = attention(seed, width=4, bias=True, cross_attention_dim=6)
    cut(cut(model, "qk", r_qk), "vo", r_vo)
    call = masked_call(seed, cross, mask)
    slim = model(**call)
    assert model.block.scale == r_qk**-0.5
    (explicit,) = outputs_by_processor(model, call, AttnProcessor())
    torch.testing.assert_close(slim, explicit, rtol=0, atol=1e-10)


def padded(weight: Tensor, heads: int, width: int) -> Tensor:
    """Zero rows added to each head up to ``width``."""
    slab = weight.unflatten(0, (heads, -1))
    room = slab.new_zeros(heads, width - slab.shape[1], *slab.shape[2:])
    return torch.cat([slab, room], 1).flatten(0, 1)


@given(seeds, st.integers(1, 4), st.integers(1, 4), st.booleans())
@torch.no_grad()
def test_a_slim_attention_equals_its_zero_padded_dense_twin(seed, r_qk, r_vo, mask):
    model = attention(seed, width=4, bias=True)
    dense = copy.deepcopy(model)
    cut(cut(model, "qk", r_qk), "vo", r_vo)
    for name in ("to_q", "to_k", "to_v"):
        for part in ("weight", "bias"):
            value = padded(getattr(model.block.get_submodule(name), part), 2, 4)
            getattr(dense.block.get_submodule(name), part).copy_(value)
    dense.block.to_out[0].weight.copy_(padded(model.block.to_out[0].weight.T, 2, 4).T)
    dense.block.to_out[0].bias.copy_(model.block.to_out[0].bias)
    dense.block.scale = r_qk**-0.5
    dense.block.set_processor(AttnProcessor())
    call = masked_call(seed, False, mask)
    torch.testing.assert_close(model(**call), dense(**call), rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_slim_processor_serves_pictures_norms_and_residuals():
    options = {"norm_num_groups": 2, "residual_connection": True, "rescale_output_factor": 2.0}
    model = attention(0, width=4, bias=True, **options)
    cut(model, "vo", 2)
    call = {"x": normal(0, 2, 6, 3, 4)}
    assert isinstance(model.block.processor, SlimAttnProcessor)
    slim = model(**call)
    (explicit,) = outputs_by_processor(model, call, AttnProcessor())
    torch.testing.assert_close(slim, explicit, rtol=0, atol=1e-10)


def test_equal_widths_keep_the_stock_processor():
    model = attention(0, width=4)
    stock = model.block.processor
    assert isinstance(stock, AttnProcessor2_0)
    cut(model, "qk", 2)
    assert isinstance(model.block.processor, SlimAttnProcessor)
    cut(model, "vo", 2)
    assert model.block.processor is stock


@torch.no_grad()
def test_a_scale_of_its_own_survives_a_value_output_cut():
    model, x = attention(0, width=4, scale_qk=False), normal(1, 2, 5, 6)
    site = site_of(model, "vo")
    assert site_of(model, "qk").locked is not None
    sums, dense = record(model, [{"x": x}], [site]), model(x)
    basis = decomposed(model, site, sums)
    cut_site_(model, site, EXACT["vo"].maps(basis, sums[site.name], 4))
    torch.testing.assert_close(model(x), dense, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("r_qk", "r_vo"), [(2, 4), (4, 2), (1, 3)])
def test_fused_attention_never_meets_unequal_widths(r_qk, r_vo, monkeypatch):
    # Kernels want one width; unequal ones fall to a path that is several times slower.
    met = []
    dispatched = attention_module.dispatch_attention_fn

    def watch(query, key, value, **options):
        met.append({tensor.shape[-1] for tensor in (query, key, value)})
        return dispatched(query, key, value, **options)

    monkeypatch.setattr(attention_module, "dispatch_attention_fn", watch)
    model = attention(3, width=4)
    for site in shared_block_sites(model):
        cut_site_(model, site, random_maps(site, {"qk": r_qk, "vo": r_vo}[site.kind]))
    out = model(normal(1, 2, 5, 6))
    assert met == [{max(r_qk, r_vo)}]
    assert bool(torch.isfinite(out).all())
