"""Slim processors against the stock ones, and statistics of joint streams against a naive twin."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from helpers import gram, normal

from slimdiff.attention import (
    SlimJointAttnProcessor,
    SlimWanAttnProcessor,
    fit_attention_,
    is_attention,
)
from slimdiff.decomposition import EXACT, PAPER, reader_moments
from slimdiff.denoiser import output_of
from slimdiff.families import flux, sd3, wan
from slimdiff.recording import TokenSampling, empty_sums, recording
from slimdiff.surgery import cut_site_, reader_weights

MODELS = {
    "sd3": (sd3._sites, sd3._tiny, SlimJointAttnProcessor),
    "sd3.5": (sd3._sites, sd3._tiny_35, SlimJointAttnProcessor),
    "flux": (flux._sites, flux._tiny, SlimJointAttnProcessor),
    "wan": (wan._sites, wan._tiny, SlimWanAttnProcessor),
    "wan-i2v": (wan._sites, wan._tiny_i2v, SlimWanAttnProcessor),
}


@pytest.fixture(params=MODELS)
def found(request):
    sites, tiny, slim = MODELS[request.param]
    model, inputs = tiny()
    for i, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * normal(i, *parameter.shape).float()
    return model, inputs, sites(model), slim


def attentions(model):
    return [m for m in model.modules() if is_attention(m)]


@torch.no_grad()
def test_slim_processors_answer_as_the_stock_ones(found):
    model, inputs, _, slim = found
    expected = output_of(model(**inputs))
    for attn in attentions(model):
        attn.set_processor(slim())
    torch.testing.assert_close(output_of(model(**inputs)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_unequal_widths_get_the_processor_of_their_layout(found):
    model, inputs, sites, slim = found
    for site in sites:
        if site.kind == "vo":
            half = site.width // 2
            eye = torch.eye(site.width, dtype=torch.float64)[:, :half]
            inner = site.heads * site.width
            maps = {
                "value": eye.expand(site.heads, -1, -1),
                "output": torch.block_diag(*[eye.T] * site.heads),
                "bias": torch.zeros(inner, dtype=torch.float64),
            }
            maps |= {"output.1": maps["output"], "bias.1": maps["bias"]}
            cut_site_(model, site, maps)
    assert all(isinstance(attn.processor, slim) for attn in attentions(model))
    assert bool(torch.isfinite(output_of(model(**inputs))).all())


@torch.no_grad()
def test_equal_widths_bring_the_stock_processor_back():
    model, _ = sd3._tiny()
    attn = attentions(model)[0]
    stock = attn.processor
    whole = {name: getattr(attn, name) for name in ("to_v", "add_v_proj")}
    for name, linear in whole.items():
        setattr(attn, name, torch.nn.Linear(linear.in_features, 8))
    fit_attention_(attn, rescale=False)
    assert isinstance(attn.processor, SlimJointAttnProcessor)
    for name, linear in whole.items():
        setattr(attn, name, linear)
    fit_attention_(attn, rescale=False)
    assert attn.processor is stock


@torch.no_grad()
@pytest.mark.parametrize("width", [4, 6])
def test_the_stock_flux_processor_never_answers_wrongly_on_a_slim_model(width):
    """It splits heads by a fixed width, which narrower values can fit by accident."""
    model, inputs = flux._tiny()
    sites = flux._sites(model)
    sums = empty_sums(sites, torch.device("cpu"))
    with recording(model, sites, sums, tokens=TokenSampling()):
        model(**inputs)
    for site in sites:
        if site.kind == "vo":
            basis = EXACT["vo"].decompose(sums[site.name], reader_weights(model, site))
            cut_site_(model, site, EXACT["vo"].maps(basis, sums[site.name], width))
    model(**inputs)
    for attn in attentions(model):
        attn.set_processor(FluxAttnProcessor())
    with pytest.raises(RuntimeError):
        model(**inputs)


def joint_call(seed):
    """A joint attention in float64, one call's streams, and its sums."""
    model, _ = sd3._tiny()
    attn = model.double().transformer_blocks[0].attn
    for i, parameter in enumerate(attn.parameters()):
        parameter.data = normal(seed + i, *parameter.shape)
    wrapped = torch.nn.Module()
    wrapped.block = attn
    wrapped.forward = lambda x, c, timestep: attn(x, encoder_hidden_states=c)
    sites = sd3._sites(wrapped)
    image, text = normal(seed + 50, 2, 7, 16), normal(seed + 51, 2, 5, 16)
    sums = empty_sums(sites, torch.device("cpu"))
    with recording(wrapped, sites, sums, tokens=TokenSampling()), torch.no_grad():
        wrapped(image, text, timestep=1.0)
    return attn, sites, sums, image, text


@torch.no_grad()
def test_joint_streams_share_query_key_moments_centred_over_both():
    attn, (qk, _), sums, image, text = joint_call(3)
    query = torch.cat([attn.to_q(image), attn.add_q_proj(text)], 1)
    key = torch.cat([attn.to_k(image), attn.add_k_proj(text)], 1)
    key = key - key.mean(1, keepdim=True)
    for h in range(2):
        part = slice(8 * h, 8 * h + 8)
        for name, x in (("query", query), ("key", key)):
            expected = gram(x[..., part].flatten(0, 1))
            torch.testing.assert_close(sums[qk.name][name][h], expected, rtol=1e-10, atol=1e-8)


@torch.no_grad()
def test_every_reader_of_joint_streams_has_moments_of_its_own():
    _, (_, vo), sums, image, text = joint_call(4)
    assert [part.linear for part in vo.parts if part.reads] == [
        "block.to_out.0",
        "block.to_add_out",
    ]
    counts = [float(moment[-1, -1]) for moment in reader_moments(sums[vo.name])]
    assert counts == [2 * 7, 2 * 5]


@torch.no_grad()
def test_each_reader_is_refitted_on_its_own_moment():
    """The maps of a joint site are those of its readers alone, given the shared basis."""
    attn, (_, vo), sums, *_ = joint_call(5)
    wrapped = torch.nn.Module()
    wrapped.block = attn
    basis = EXACT["vo"].decompose(sums[vo.name], reader_weights(wrapped, vo))
    both = EXACT["vo"].maps(basis, sums[vo.name], 5)
    for i, moment in enumerate(reader_moments(sums[vo.name])):
        alone = EXACT["vo"].maps(basis, {"augmented": moment}, 5)
        suffix = f".{i}" if i else ""
        assert torch.equal(alone["value"], both["value"])
        assert torch.equal(alone["output"], both[f"output{suffix}"])
        assert torch.equal(alone["bias"], both[f"bias{suffix}"])


@torch.no_grad()
def test_the_published_form_gives_every_reader_the_same_map():
    attn, (_, vo), sums, *_ = joint_call(6)
    wrapped = torch.nn.Module()
    wrapped.block = attn
    basis = PAPER["vo"].decompose(sums[vo.name], reader_weights(wrapped, vo))
    maps = PAPER["vo"].maps(basis, sums[vo.name], 5)
    assert torch.equal(maps["output"], maps["output.1"])
    assert not maps["bias.1"].any()
