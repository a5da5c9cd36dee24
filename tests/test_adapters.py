"""IP-Adapters and ControlNets made for the dense model drive the slim one."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import ControlNetModel
from tiny import cut_by_hand, tiny_pipeline

import slimdiff
from slimdiff.adapters import _slimming
from slimdiff.denoiser import denoiser
from slimdiff.export import dense_
from slimdiff.recipe import copy_pipeline

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
CONTEXT, EMBED = 12, 6


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def stats(pipe):
    return slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)


def ip_adapter(unet, seed=0):
    """A random IP-Adapter for a dense ``unet``, in the layout of the published files."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    projections = {}
    names = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    for i, name in enumerate(names):
        attn = unet.get_submodule(name.removesuffix(".processor"))
        for side in ("k", "v"):
            rows = getattr(attn, f"to_{side}").out_features
            projections[f"{2 * i + 1}.to_{side}_ip.weight"] = normal(rows, CONTEXT)
    image = {
        "proj.weight": normal(4 * CONTEXT, EMBED),
        "proj.bias": normal(4 * CONTEXT),
        "norm.weight": normal(CONTEXT),
        "norm.bias": normal(CONTEXT),
    }
    return {"image_proj": image, "ip_adapter": projections}


def padded(weights, dense, slim):
    """The image projections as the zero-padded twin of ``slim`` must have them."""
    sites, maps = _slimming(slim)
    names = [n for n in dense.attn_processors if n.endswith("attn2.processor")]
    found = dict(weights["ip_adapter"])
    for i, name in enumerate(names):
        for site in sites:
            if f"{site.module}.processor" != name or site.name not in maps:
                continue
            side, role = ("k", "key") if site.kind == "qk" else ("v", "value")
            key = f"{2 * i + 1}.to_{side}_ip.weight"
            basis = maps[site.name][role]
            heads = found[key].double().unflatten(0, (site.heads, site.width))
            short = torch.einsum("hdr,hdc->hrc", basis, heads)
            room = torch.zeros_like(heads)
            room[:, : short.shape[1]] = short
            found[key] = room.flatten(0, 1).float()
    return {**weights, "ip_adapter": found}


def answer(unet):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 5, CONTEXT, generator=generator)
    image = torch.randn(2, 1, EMBED, generator=generator)
    with torch.no_grad():
        return unet(x, 500, context, added_cond_kwargs={"image_embeds": [image]}).sample


def test_ip_adapter_tokens_meet_the_slim_basis(pipe, stats):
    slim = cut_by_hand(pipe, stats)
    twin = copy_pipeline(slim)
    dense_(twin)
    weights = ip_adapter(denoiser(pipe))
    twin_weights = padded(weights, denoiser(pipe), denoiser(slim))
    denoiser(twin)._load_ip_adapter_weights([twin_weights])
    denoiser(slim)._load_ip_adapter_weights([weights])
    expected = answer(denoiser(twin))
    torch.testing.assert_close(answer(denoiser(slim)), expected, rtol=1e-4, atol=1e-4)
    other = copy_pipeline(cut_by_hand(pipe, stats))
    denoiser(other)._load_ip_adapter_weights([ip_adapter(denoiser(pipe), seed=5)])
    assert not torch.allclose(answer(denoiser(other)), expected, atol=1e-2)


def test_ip_adapter_needs_equal_widths(pipe, stats):
    slim = cut_by_hand(pipe, stats, **{"attn2.qk": 2, "attn2.vo": 4})
    with pytest.raises(
        slimdiff.SlimdiffError, match="IP-Adapter expects equal ones. Apply a plan"
    ):
        denoiser(slim)._load_ip_adapter_weights([ip_adapter(denoiser(pipe))])


def test_ip_adapter_on_a_dense_model_is_untouched(pipe):
    dense = copy_pipeline(pipe)
    weights = ip_adapter(denoiser(pipe))
    denoiser(dense)._load_ip_adapter_weights([weights])
    found = [p for p in denoiser(dense).attn_processors.values() if hasattr(p, "to_k_ip")]
    assert torch.equal(found[0].to_k_ip[0].weight, weights["ip_adapter"]["1.to_k_ip.weight"])


def test_a_controlnet_of_the_dense_model_drives_the_slim_one(pipe, stats):
    slim = denoiser(cut_by_hand(pipe, stats))
    control = ControlNetModel.from_unet(
        copy.deepcopy(denoiser(pipe)), conditioning_channels=3,
        controlnet_conditioning_channel_order="rgb",
    )  # fmt: skip
    for block in [*control.controlnet_down_blocks, control.controlnet_mid_block]:
        torch.nn.init.normal_(block.weight, std=0.1)
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, CONTEXT)
    with torch.no_grad():
        down, mid = control(x, 500, context, torch.randn(1, 3, 64, 64), return_dict=False)
        plain = slim(x, 500, context).sample
        driven = slim(
            x,
            500,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
    assert driven.shape == plain.shape
    assert not torch.allclose(driven, plain, atol=1e-3)
