"""What else diffusers offers, on a slim pipeline: one test a row of docs/features.md.

Works means: the slim pipeline answers as it does without the feature, or as near as the dense one
stays to itself with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from tiny import cut_by_hand, tiny_pipeline

import slimdiff
from slimdiff.attention import SlimAttnProcessor
from slimdiff.denoiser import denoiser
from slimdiff.pipelines import open_pipeline
from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import draw, sample_latents

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
PROMPTS = [(0, "thing"), (1, "other")]
FEATURES = (Path(__file__).parents[1] / "docs" / "features.md").read_text(encoding="utf-8")

Change = Callable[[Any], Any]


@pytest.fixture(scope="module", params=["tiny", "emoji"])
def dense(request):
    return tiny_pipeline() if request.param == "tiny" else open_pipeline(request.param)


@pytest.fixture(scope="module")
def stats(dense):
    return slimdiff.calibrate(dense, ["a", "b"], sampling=SAMPLING)


@pytest.fixture(scope="module")
def equal(dense, stats):
    """Query-key and value-output widths alike, as every plan of ours has them."""
    return cut_by_hand(dense, stats, 0.6)


@pytest.fixture(scope="module")
def unequal(dense, stats):
    """Widths edited by hand: the slim attention processor is at work."""
    slim = cut_by_hand(
        dense, stats, 0.6, **{"attn1.qk": 3, "attn1.vo": 6, "attn2.qk": 6, "attn2.vo": 3}
    )
    processors = denoiser(slim).attn_processors.values()
    assert any(isinstance(p, SlimAttnProcessor) for p in processors)
    return slim


@pytest.fixture(scope="module")
def folder(equal, tmp_path_factory):
    place = tmp_path_factory.mktemp("features") / "slim"
    slimdiff.save(equal, place)
    return place


def latents(pipe):
    return sample_latents(pipe, PROMPTS, SAMPLING)


def near(found, expected, tolerance=1e-4):
    scale = float(expected.float().square().mean().sqrt())
    error = float((found.float() - expected.float()).square().mean().sqrt())
    assert error <= tolerance * scale, error / scale


def compiled(pipe):
    denoiser(pipe).compile(backend="aot_eager", fullgraph=True)


def compiled_by_block(pipe):
    denoiser(pipe).compile_repeated_blocks(backend="aot_eager", fullgraph=True)


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def group_offload(pipe):
    denoiser(pipe).enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="leaf_level"
    )


def slicing(pipe):
    pipe.enable_attention_slicing("max")


def backend(pipe):
    denoiser(pipe).set_attention_backend("native")


def fused_qkv(pipe):
    denoiser(pipe).fuse_qkv_projections()


def stock_processor(pipe):
    denoiser(pipe).set_attn_processor(AttnProcessor2_0())


def plain_processor(pipe):
    denoiser(pipe).set_attn_processor(AttnProcessor())


def channels_last(pipe):
    denoiser(pipe).to(memory_format=torch.channels_last)


def deepcopied(pipe):
    return copy_pipeline(pipe)


SAME: dict[str, Change] = {
    "torch.compile": compiled,
    "compile_repeated_blocks": compiled_by_block,
    "enable_model_cpu_offload": model_offload,
    "enable_group_offload": group_offload,
    "set_attention_backend": backend,
    "AttnProcessor": plain_processor,
    "channels_last": channels_last,
    "deepcopy": deepcopied,
}
EQUAL_ONLY: dict[str, Change] = {
    "enable_attention_slicing": slicing,
    "fuse_qkv_projections": fused_qkv,
    "AttnProcessor2_0": stock_processor,
}


@pytest.fixture
def no_programs():
    """Nothing compiled yet: a compiler keeps only so many programs of one block."""
    torch.compiler.reset()


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("feature", [*SAME, *EQUAL_ONLY])
def test_equal_widths_answer_alike_with(feature, equal):
    expected, pipe = latents(equal), copy_pipeline(equal)
    pipe = (SAME | EQUAL_ONLY)[feature](pipe) or pipe
    near(latents(pipe), expected)


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("feature", SAME)
def test_unequal_widths_answer_alike_with(feature, unequal):
    expected, pipe = latents(unequal), copy_pipeline(unequal)
    pipe = SAME[feature](pipe) or pipe
    near(latents(pipe), expected)


@pytest.mark.usefixtures("no_programs")
def test_repeated_blocks_compile_for_several_picture_sizes(equal):
    pipe = copy_pipeline(equal)
    denoiser(pipe).compile_repeated_blocks(backend="aot_eager", fullgraph=True, dynamic=True)
    for height in (64, 96):
        taller = replace(SAMPLING, steps=1, height=height, width=64)
        near(sample_latents(pipe, PROMPTS, taller), sample_latents(equal, PROMPTS, taller))


@pytest.mark.parametrize("feature", EQUAL_ONLY)
def test_unequal_widths_never_answer_wrongly_with(feature, unequal):
    pipe = copy_pipeline(unequal)
    with pytest.raises((RuntimeError, ValueError)):  # noqa: PT012
        EQUAL_ONLY[feature](pipe)
        latents(pipe)


def test_layerwise_casting(dense, equal):
    def cast(pipe):
        pipe = copy_pipeline(pipe)
        denoiser(pipe).enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
        )
        return latents(pipe)

    stays = (cast(dense) - latents(dense)).square().mean() / latents(dense).square().mean()
    error = (cast(equal) - latents(equal)).square().mean() / latents(equal).square().mean()
    assert error < 4 * stays


def test_freeu(dense, equal):
    for pipe in (dense, equal):
        plain = latents(pipe)
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        changed = latents(pipe)
        pipe.disable_freeu()
        assert not torch.allclose(changed, plain, atol=1e-3)
        near(latents(pipe), plain)


def test_tomesd(equal):
    tomesd = pytest.importorskip("tomesd")
    plain, pipe = latents(equal), copy_pipeline(equal)
    tomesd.apply_patch(pipe, ratio=0.5, max_downsample=8)
    changed = latents(pipe)
    tomesd.remove_patch(pipe)
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, plain)
    near(latents(pipe), plain)


def test_deepcache(equal):
    helper = pytest.importorskip("DeepCache").DeepCacheSDHelper
    plain, pipe = latents(equal), copy_pipeline(equal)
    cache = helper(pipe=pipe)
    cache.set_params(cache_interval=2, cache_branch_id=0)
    cache.enable()
    changed = latents(pipe)
    cache.disable()
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, plain)
    near(latents(pipe), plain)


def test_torchao_int8(equal):
    torchao = pytest.importorskip("torchao.quantization")
    plain, pipe = latents(equal), copy_pipeline(equal)
    torchao.quantize_(denoiser(pipe), torchao.Int8WeightOnlyConfig())
    near(latents(pipe), plain, 0.1)


def test_another_quantization_in_the_same_load_is_ignored_aloud(folder):
    torchao = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig

    wanted = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", quantization_config=wanted
        )
    assert {type(p) for p in model.parameters()} == {torch.nn.Parameter}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loading(folder, equal, dtype):
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    assert denoiser(pipe).dtype == dtype
    assert {p.dtype for p in denoiser(pipe).parameters()} == {dtype}
    near(latents(pipe), latents(equal), 0.1)


def test_device_map_balanced(folder, equal):
    pipe = DiffusionPipeline.from_pretrained(folder, device_map="balanced")
    near(latents(pipe), latents(equal))


def test_variant_and_shards(equal, tmp_path):
    equal.save_pretrained(
        tmp_path / "x", variant="fp16", max_shard_size=denoiser(equal).num_parameters()
    )
    assert list((tmp_path / "x/unet").glob("*00001-of-*"))
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "x", variant="fp16")
    assert torch.equal(latents(pipe), latents(equal))


def test_auto_pipeline(folder, equal):
    pipe = AutoPipelineForText2Image.from_pretrained(folder)
    assert torch.equal(latents(pipe), latents(equal))


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_from_pipe(equal, kind):
    pipe = kind.from_pipe(equal, vae=equal.vae)  # its type is not what these pipelines declare
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet is equal.unet
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    picture = Image.new("RGB", (side, side), "red")
    mask = {"mask_image": Image.new("L", picture.size, 255)} if "Inpaint" in kind.__name__ else {}
    size = {"height": side, "width": side} if mask else {}
    drawn = pipe(
        "thing", image=picture, strength=0.9, num_inference_steps=4, output_type="pt",
        generator=torch.Generator().manual_seed(0), **mask, **size,
    ).images  # fmt: skip
    assert torch.isfinite(drawn).all()


def test_gradient_checkpointing(equal):
    unet = denoiser(copy_pipeline(equal)).train()
    unet.enable_gradient_checkpointing()
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, unet.config.cross_attention_dim)
    unet(x, 500, context).sample.square().mean().backward()
    grads = [p.grad for p in unet.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


def test_save_pretrained_round_trip(equal, tmp_path):
    equal.save_pretrained(tmp_path / "plain")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "plain")
    found, _ = draw(pipe, PROMPTS, SAMPLING)
    expected, _ = draw(equal, PROMPTS, SAMPLING)
    assert torch.equal(found, expected)


def test_every_row_of_the_table_names_a_test_that_exists():
    names = {name for name in globals() if name.startswith("test_")} | set(SAME) | set(EQUAL_ONLY)
    others = "".join(
        path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")
    )
    rows = [line for line in FEATURES.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        test = re.findall(r"`([^`]+)`", row.rsplit("|", 2)[-2])
        assert test, row
        assert all(t in names or f"def {t}(" in others for t in test), row
