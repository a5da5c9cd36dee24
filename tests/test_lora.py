"""Adapters made for the dense model work on the slim one."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from tiny import tiny_pipeline

import slimdiff
from slimdiff.decomposition import EXACT
from slimdiff.denoiser import denoiser
from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import draw, sample_latents

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
PROMPTS = [(0, "thing"), (1, "other")]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def stats(pipe):
    return slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)


@pytest.fixture(scope="module")
def plan(stats):
    return slimdiff.allocate(stats, slimdiff.Budget(pool=0.5), multiple=2)


@pytest.fixture
def slim(pipe, stats, plan):
    slim = copy_pipeline(pipe)
    slimdiff.compress_(slim, stats, plan)
    return slim


def adapted(pipe, seed, rank=3, targets=TARGETS):
    """A copy of ``pipe`` with a random adapter on its denoiser, unfused."""
    pipe = copy_pipeline(pipe)
    unet = denoiser(pipe)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in unet.named_parameters():
        if ".lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return pipe


def lora_file(adapted_pipe, folder):
    """The adapter as a file that load_lora_weights reads."""
    tensors = {
        f"unet.{name}": tensor.contiguous()
        for name, tensor in get_peft_model_state_dict(denoiser(adapted_pipe)).items()
    }
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder


def fused_then_cut(adapted_pipe, slim, stats, plan):
    """Slimming the fused dense model with the maps of the unadapted one."""
    from slimdiff.surgery import cut_site_

    fused = copy.deepcopy(denoiser(adapted_pipe))
    fused.fuse_lora()
    dense = copy_pipeline(adapted_pipe)
    dense.unet = type(fused).from_config(fused.config)
    state = {
        k.replace(".base_layer", ""): v for k, v in fused.state_dict().items() if ".lora_" not in k
    }
    dense.unet.load_state_dict(state)
    for site in stats.header.sites:
        width = plan.widths.get(site.name, site.width)
        if width < site.width:
            maps = EXACT[site.kind].maps(stats.bases[site.name], stats.sums[site.name], width)
            cut_site_(dense.unet, site, maps)
    return dense


@pytest.mark.parametrize("seed", range(3))
def test_loading_equals_slimming_the_fused_model(pipe, stats, plan, slim, tmp_path, seed):
    dense = adapted(pipe, seed)
    expected = sample_latents(fused_then_cut(dense, slim, stats, plan), PROMPTS, SAMPLING)
    plain = sample_latents(slim, PROMPTS, SAMPLING)
    slim.load_lora_weights(lora_file(dense, tmp_path / "lora"))
    found = sample_latents(slim, PROMPTS, SAMPLING)
    effect = (expected - plain).square().mean().sqrt()
    assert effect > 0.05
    assert (found - expected).square().mean().sqrt() < 1e-4 * effect


def test_fuse_unfuse_scale_and_unload(pipe, slim, tmp_path):
    plain = sample_latents(slim, PROMPTS, SAMPLING)
    slim.load_lora_weights(lora_file(adapted(pipe, 0), tmp_path / "a"), adapter_name="a")
    slim.load_lora_weights(lora_file(adapted(pipe, 1), tmp_path / "b"), adapter_name="b")
    slim.set_adapters(["a", "b"], [0.5, 0.0])
    half = sample_latents(slim, PROMPTS, SAMPLING)
    slim.set_adapters("a", 0.5)
    torch.testing.assert_close(sample_latents(slim, PROMPTS, SAMPLING), half)
    slim.fuse_lora()
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(sample_latents(slim, PROMPTS, SAMPLING), half, **close)
    slim.unfuse_lora()
    torch.testing.assert_close(sample_latents(slim, PROMPTS, SAMPLING), half, **close)
    slim.unload_lora_weights()
    torch.testing.assert_close(sample_latents(slim, PROMPTS, SAMPLING), plain, **close)
    assert not torch.allclose(half, plain, atol=1e-2)


def test_a_loaded_folder_takes_adapters_too(pipe, slim, tmp_path):
    from diffusers import DiffusionPipeline

    lora = lora_file(adapted(pipe, 0), tmp_path / "lora")
    slimdiff.save(slim, tmp_path / "slim")
    slim.load_lora_weights(lora)
    expected, _ = draw(slim, PROMPTS, SAMPLING)
    for loaded in (
        slimdiff.load(tmp_path / "slim"),
        DiffusionPipeline.from_pretrained(tmp_path / "slim"),
    ):
        loaded.load_lora_weights(lora)
        found, _ = draw(loaded, PROMPTS, SAMPLING)
        torch.testing.assert_close(found, expected)


def test_kohya_and_old_diffusers_names(pipe, slim):
    """The names of other trainers reach the same weights; kohya's alpha halves the effect."""
    dense = adapted(pipe, 0, rank=4, targets=["to_q", "to_v", "to_out.0", "ff.net.2"])
    peft = get_peft_model_state_dict(denoiser(dense))
    expected = {}
    for scale in (1.0, 0.5):
        slim.load_lora_weights({f"unet.{k}": v for k, v in peft.items()}, adapter_name="peft")
        slim.set_adapters("peft", scale)
        expected[scale] = sample_latents(slim, PROMPTS, SAMPLING)
        slim.unload_lora_weights()

    def renamed(down, up):
        return {
            k.replace("lora_A.weight", down).replace("lora_B.weight", up): v
            for k, v in peft.items()
        }

    old = {f"unet.{k}": v for k, v in renamed("lora.down.weight", "lora.up.weight").items()}
    kohya = {}
    for key, value in renamed("!lora_down.weight", "!lora_up.weight").items():
        module, _, leaf = key.partition(".!")
        start = f"lora_unet_{module.replace('.', '_')}"
        kohya |= {f"{start}.{leaf}": value, f"{start}.alpha": torch.tensor(2.0)}
    for state_dict, scale in ((old, 1.0), (kohya, 0.5)):
        slim.load_lora_weights(state_dict)
        torch.testing.assert_close(sample_latents(slim, PROMPTS, SAMPLING), expected[scale])
        slim.unload_lora_weights()


def test_what_is_lost_is_told(pipe, slim, tmp_path, caplog):
    from slimdiff.adapters import carried_over

    peft = get_peft_model_state_dict(denoiser(adapted(pipe, 0)))
    carried = carried_over(denoiser(slim), peft)
    assert 0.05 < carried.lost_share < 0.95
    again = carried_over(denoiser(slim), carried.state_dict)
    assert again.lost_share == 0
    assert all(torch.equal(again.state_dict[k], v) for k, v in carried.state_dict.items())
    with caplog.at_level(logging.WARNING, "slimdiff.adapters"):
        slim.load_lora_weights({f"unet.{k}": v for k, v in peft.items()})
    assert f"{100 * carried.lost_share:.1f} % of its energy lies outside" in caplog.text


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_magnitude_vector", "DoRA"),
        ("lokr_w1", "LoKr"),
        ("hada_w1_a", "LoHa"),
    ],
)
def test_other_adapters_are_refused_with_the_remedy(pipe, slim, key, kind):
    from slimdiff.adapters import carried_over

    peft = get_peft_model_state_dict(denoiser(adapted(pipe, 0)))
    name = next(iter(peft)).split(".lora_")[0]
    with pytest.raises(slimdiff.SlimdiffError, match=f"{kind} adapter; .*Fuse it into the dense"):
        carried_over(denoiser(slim), {**peft, f"{name}.{key}": torch.zeros(2)})


def test_an_adapter_of_another_model_is_refused_and_leaves_no_trace(pipe, slim):
    peft = get_peft_model_state_dict(denoiser(adapted(pipe, 0, targets=["to_q"])))
    name = next(iter(peft))
    wrong = {k: v[:, :-1] if "lora_A" in k else v[:-1] for k, v in peft.items()}
    before = set(dict(denoiser(slim).named_modules()))
    with pytest.raises(slimdiff.SlimdiffError, match=r"expected \d+ to \d+, as in the dense"):
        slim.load_lora_weights({f"unet.{k}": v for k, v in wrong.items()})
    assert set(dict(denoiser(slim).named_modules())) == before
    assert name


def test_dense_models_load_as_ever(pipe, tmp_path):
    dense = copy_pipeline(pipe)
    with_adapter = adapted(pipe, 0)
    expected = sample_latents(with_adapter, PROMPTS, SAMPLING)
    dense.load_lora_weights(lora_file(with_adapter, tmp_path / "lora"))
    torch.testing.assert_close(sample_latents(dense, PROMPTS, SAMPLING), expected)


def test_a_new_adapter_can_be_trained_on_the_slim_model(slim):
    unet = denoiser(slim)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0", "ff.net.2"]))
    weights = [w for n, w in unet.named_parameters() if ".lora_" in n]
    optimizer = torch.optim.Adam(weights, 1e-2)
    torch.manual_seed(0)
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    target = torch.randn(2, 4, 8, 8)
    losses = []
    for _ in range(20):
        loss = (unet(x, 500, context).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("form", ["peft", "header", "kohya"])
def test_a_converted_file_needs_no_carrying(pipe, slim, tmp_path, form):
    from diffusers.loaders.peft import PeftAdapterMixin

    from slimdiff.lora_files import convert

    dense = adapted(pipe, 0, rank=4, targets=["to_q", "to_v", "to_out.0", "ff.net.2"])
    peft = get_peft_model_state_dict(denoiser(dense))
    tensors = {f"unet.{k}": v.contiguous() for k, v in peft.items()}
    header = {}
    if form == "header":
        config = next(iter(denoiser(dense).peft_config.values())).to_dict()
        told = ("r", "target_modules", "lora_alpha", "alpha_pattern")
        config |= {"lora_alpha": 12, "alpha_pattern": {"attn1.to_q": 2}}
        config["target_modules"] = sorted(config["target_modules"])
        told = {f"unet.{name}": config[name] for name in told}
        header = {"format": "pt", "lora_adapter_metadata": json.dumps(told)}
    if form == "kohya":
        tensors = {}
        for key, value in peft.items():
            module, _, leaf = key.partition(".lora_")
            start = f"lora_unet_{module.replace('.', '_')}"
            down = leaf.startswith("A")
            tensors[f"{start}.lora_{'down' if down else 'up'}.weight"] = value.contiguous()
            tensors[f"{start}.alpha"] = torch.tensor(10.0)
    save_file(tensors, tmp_path / "dense.safetensors", header or None)
    carried = convert(slim, tmp_path / "dense.safetensors", tmp_path / "slim.safetensors")
    assert 0 < carried.lost_share < 1
    slim.load_lora_weights(tmp_path, weight_name="dense.safetensors")
    expected = sample_latents(slim, PROMPTS, SAMPLING)
    slim.unload_lora_weights()
    with pytest.MonkeyPatch.context() as patch:
        original = PeftAdapterMixin.load_lora_adapter.__wrapped__
        patch.setattr(PeftAdapterMixin, "load_lora_adapter", original)
        slim.load_lora_weights(tmp_path, weight_name="slim.safetensors")
    found = sample_latents(slim, PROMPTS, SAMPLING)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    slim.unload_lora_weights()
    slim.load_lora_weights(tmp_path, weight_name="slim.safetensors")
    torch.testing.assert_close(sample_latents(slim, PROMPTS, SAMPLING), found)


def test_files_that_cannot_be_converted(slim, tmp_path):
    from slimdiff.lora_files import convert

    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    save_file({"transformer.x.lora_A.weight": torch.ones(1, 1)}, tmp_path / "other.safetensors")
    save_file({"lora_unet_x.dora_scale": torch.ones(1)}, tmp_path / "dora.safetensors")
    for name, text in (
        ("missing", "is missing or no safetensors file"),
        ("broken", "is missing or no safetensors file"),
        ("other", "says nothing of the unet"),
        ("dora", "belongs to a DoRA adapter"),
    ):
        with pytest.raises(slimdiff.SlimdiffError, match=text):
            convert(slim, tmp_path / f"{name}.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
