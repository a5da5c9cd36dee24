"""Sites against the modules they describe."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from helpers import Alone, attention, feed_forward, normal, site_of, tiny_unet
from torch import nn

from slimdiff import SlimdiffError, families
from slimdiff.families.blocks import shared_block_sites
from slimdiff.sites import pool_parameters, reader_biases, refuse_locked
from slimdiff.surgery import reshape_

UNET, _ = tiny_unet()
SITES = shared_block_sites(UNET)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_attention_and_feed_forward_of_a_unet_gives_its_sites():
    expected = []
    for name, module in UNET.named_modules():
        if isinstance(module, Attention):
            expected += [f"{name}.qk", f"{name}.vo"]
        elif isinstance(module, FeedForward):
            expected.append(f"{name}.ffn")
    assert [site.name for site in SITES] == expected
    assert all(site.locked is None for site in SITES)
    assert families.find(UNET).sites(UNET) == SITES


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name[-30:])
def test_parts_are_slabs_of_real_linears(site):
    for part in site.parts:
        linear = UNET.get_submodule(part.linear)
        inner, across = linear.out_features, linear.in_features
        if part.reads:
            inner, across = across, inner
        assert part.across == across
        assert part.bias == (linear.bias is not None)
        assert 0 <= part.start < part.start + part.size <= inner
        assert part.size == site.heads * site.width
    assert site.parameters() == site.parameters(site.width)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name[-30:])
@pytest.mark.parametrize("width", [1, 8])
def test_parameters_of_a_site_are_what_a_cut_saves(site, width):
    model, _ = tiny_unet()
    reshape_(model, [site], {site.name: width})
    assert size(UNET) - size(model) == site.parameters() - site.parameters(width)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name[-30:])
def test_the_stream_is_what_the_output_is_added_to(site):
    block, _, leaf = site.module.rpartition(".")
    assert site.stream == f"{block}.{ {'attn1': 'norm1', 'attn2': 'norm2', 'ff': 'norm3'}[leaf] }"
    assert isinstance(UNET.get_submodule(site.stream), nn.LayerNorm)


def test_a_block_of_its_own_has_no_stream():
    assert site_of(attention(0), "qk").stream == ""


def test_the_pool_is_all_linears_of_unlocked_sites():
    names = {part.linear for site in SITES for part in site.parts}
    assert pool_parameters(SITES) == sum(size(UNET.get_submodule(name)) for name in names)
    locked = [replace(s, locked="a reason") if s.kind == "ffn" else s for s in SITES]
    names = {part.linear for site in locked if not site.locked for part in site.parts}
    assert pool_parameters(locked) == sum(size(UNET.get_submodule(name)) for name in names)


def test_the_bias_of_a_reader_shared_by_two_sites_counts_once():
    site = site_of(feed_forward(0), "ffn")
    assert reader_biases([site]) == 6
    assert reader_biases([site, replace(site, name="twin")]) == 6


@pytest.mark.parametrize(
    ("options", "qk", "vo"),
    [
        ({}, None, None),
        ({"bias": True, "out_bias": False}, None, None),
        ({"cross_attention_dim": 9}, None, None),
        ({"qk_norm": "layer_norm"}, "normalised", None),
        ({"scale_qk": False}, "attention scale 1 is not", None),
        ({"kv_heads": 1}, "of different widths", "of different widths"),
        ({"added_kv_proj_dim": 5}, "added key/value", "added key/value"),
    ],
)
def test_attentions_that_cannot_be_slimmed_are_locked_by_name(options, qk, vo):
    model = attention(0, **options)
    for kind, reason in (("qk", qk), ("vo", vo)):
        locked = site_of(model, kind).locked
        assert locked is None if reason is None else reason in locked


@pytest.mark.parametrize(
    "activation", ["geglu", "gelu", "gelu-approximate", "swiglu", "linear-silu"]
)
@torch.no_grad()
def test_known_activations_act_channel_by_channel(activation):
    model = feed_forward(0, width=8, activation=activation)
    site = site_of(model, "ffn")
    assert site.locked is None
    up, x = model.block.net[0].proj, normal(1, 3, 6)
    before = model.block.net[0](x)
    for part in site.parts:
        if not part.reads:
            up.weight[part.start + 2] += 1.0
    changed = (model.block.net[0](x) != before).any(0)
    assert changed.tolist() == [channel == 2 for channel in range(8)]


def test_unknown_activations_are_locked():
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(6, 8)

    model = feed_forward(0, width=8)
    model.block.net[0] = Mixing()
    assert "activation Mixing is not known" in site_of(model, "ffn").locked


def test_sites_of_a_slim_attention_have_its_own_widths():
    model = attention(0, heads=2, width=4)
    reshape_(model, shared_block_sites(model), {"block.qk": 3, "block.vo": 2})
    assert [(s.name, s.width, s.locked) for s in shared_block_sites(model)] == [
        ("block.qk", 3, None),
        ("block.vo", 2, None),
    ]


def test_families_are_found_by_class_and_base_class():
    class Mine(UNet2DConditionModel):
        pass

    assert families.find(Mine.__new__(Mine)).name == "unet"
    assert [f.name for f in families.families()] == sorted(f.name for f in families.families())


def test_an_unknown_denoiser_is_refused_with_what_is_supported():
    with pytest.raises(SlimdiffError, match="Alone is not supported; supported:.*UNet2DCondition"):
        families.find(Alone(nn.Identity()))


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_hid_dim": 12, "encoder_hid_dim_type": "text_image_proj"},
        {"encoder_hid_dim": 32, "only_cross_attention": True},
    ],
    ids=["kandinsky", "deepfloyd"],
)
def test_unets_with_added_keys_and_values_are_locked_as_a_whole_and_refused(options):
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=4,
        **options,
    )
    sites = families.find(model).sites(model)
    assert len(sites) == 8
    reason = "added key/value projections (Kandinsky, DeepFloyd) are not supported"
    assert {site.locked for site in sites} == {reason}
    with pytest.raises(SlimdiffError, match=r"Nothing can be cut: all 8 sites .* DeepFloyd"):
        refuse_locked(sites)
