"""LoRAs and IP-Adapters of dense transformers meet slim ones through their own loaders."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_models import SIZES, build

import slimdiff
from slimdiff.decomposition import EXACT
from slimdiff.denoiser import denoiser
from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import Sampling, sample_latents
from slimdiff.surgery import cut_site_

PROMPTS = [(0, "thing 1"), (1, "thing 2")]
TARGETS = {
    "flux": ["to_v", "add_v_proj", "to_add_out", "to_out.0", "proj_mlp", "proj_out", "net.2"],
    "sd3": ["to_q", "add_k_proj", "to_v", "add_v_proj", "to_add_out", "to_out.0", "net.2"],
    "wan": ["to_v", "to_out.0", "net.0.proj", "net.2"],
}


def sampling(name):
    words = [word.strip("-").replace("-", "_") for word in SIZES[name]]
    sizes = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return Sampling(steps=2, guidance=3.0, batch_size=2, **sizes)


@pytest.mark.parametrize("name", TARGETS)
def test_loading_equals_slimming_the_fused_model(name, tmp_path):
    pipe, how = build(name), sampling(name)
    stats = slimdiff.calibrate(pipe, [text for _, text in PROMPTS], sampling=how)
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.5), multiple=2)
    slim = copy_pipeline(pipe)
    slimdiff.compress_(slim, stats, plan)
    shapes = {k: v.shape for k, v in denoiser(slim).state_dict().items()}

    adapted = copy.deepcopy(denoiser(pipe))
    adapted.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=TARGETS[name]))
    generator = torch.Generator().manual_seed(0)
    for key, weight in adapted.named_parameters():
        if ".lora_" in key:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    tensors = get_peft_model_state_dict(adapted)
    save_file(
        {f"transformer.{k}": v.contiguous() for k, v in tensors.items()},
        tmp_path / "pytorch_lora_weights.safetensors",
    )

    fused = copy_pipeline(pipe)
    for key in {key.partition(".lora_")[0] for key in tensors}:
        linear = denoiser(fused).get_submodule(key)
        linear.weight.data += tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
    for site in stats.header.sites:
        width = plan.widths.get(site.name, site.width)
        if width < site.width:
            maps = EXACT[site.kind].maps(stats.bases[site.name], stats.sums[site.name], width)
            cut_site_(denoiser(fused), site, maps)

    expected, plain = (sample_latents(p, PROMPTS, how) for p in (fused, slim))
    slim.load_lora_weights(tmp_path)
    found = sample_latents(slim, PROMPTS, how)
    effect = (expected - plain).square().mean().sqrt()
    assert effect > 0.01
    assert (found - expected).square().mean().sqrt() < 1e-3 * effect
    slim.unload_lora_weights()
    assert {k: v.shape for k, v in denoiser(slim).state_dict().items()} == shapes
    torch.testing.assert_close(sample_latents(slim, PROMPTS, how), plain)


def test_an_ip_adapter_of_sd3_is_refused_on_a_slim_model():
    pipe, how = build("sd3"), sampling("sd3")
    stats = slimdiff.calibrate(pipe, [text for _, text in PROMPTS], sampling=how)
    slimdiff.compress_(
        pipe, stats, slimdiff.allocate(stats, slimdiff.Budget(pool=0.5), multiple=2)
    )
    with pytest.raises(slimdiff.SlimdiffError, match="IP-Adapters are not carried over to a slim"):
        pipe.transformer._load_ip_adapter_weights({})
