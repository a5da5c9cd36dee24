"""A tiny random pipeline of every family, for tests that need the whole of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny import tiny_pipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

_WIDTH = 12
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def _t5_tokenizer() -> T5Tokenizer:
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab = marks + [(letter, -3.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=16)


def _t5_sizes() -> dict[str, int]:
    return {
        "vocab_size": 4 + len(_LETTERS),
        "d_model": _WIDTH,
        "d_kv": 6,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
    }


def _t5() -> dict[str, Any]:
    return {
        "tokenizer": _t5_tokenizer(),
        "text_encoder": T5EncoderModel(T5Config(**_t5_sizes())).eval(),
    }


def _clip(projection: int | None = None) -> tuple[Any, Any]:
    """A tokenizer and a text encoder, with a projection if its width is given."""
    pipe = tiny_pipeline()
    if projection is None:
        return pipe.tokenizer, pipe.text_encoder
    sizes = {**pipe.text_encoder.config.to_dict(), "projection_dim": projection}
    return pipe.tokenizer, CLIPTextModelWithProjection(CLIPTextConfig(**sizes)).eval()


def _vae(channels: int, levels: int = 2, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        **options,
    ).eval()


def _sd() -> Any:
    return tiny_pipeline()


def _sdxl() -> Any:
    tokenizer, encoder = _clip(10)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=24,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=CLIPTextModel(encoder.config).eval(),
        text_encoder_2=encoder,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )


def _pixart() -> Any:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        cross_attention_dim=16,
        caption_channels=_WIDTH,
        sample_size=32,  # the least that the pipeline knows sizes for
        patch_size=4,
        out_channels=8,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        **_t5(), vae=_vae(4, 4), transformer=transformer.eval(), scheduler=DDIMScheduler()
    )


def _dit() -> Any:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        out_channels=8,
        num_embeds_ada_norm=1000,  # the pipeline's empty class is number 1000
    )
    names = {str(i): f"thing {i}, object {i}" for i in range(10)}
    pipe = DiTPipeline(
        transformer=transformer.eval(), vae=_vae(4), scheduler=DDIMScheduler(), id2label=names
    )
    pipe.register_to_config(id2label=names)  # as published folders have it
    return pipe


def _sd3(**options: Any) -> Any:
    tokenizer, encoder = _clip(5)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=16,
        **options,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(4, shift_factor=0.0),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(T5Config(**{**_t5_sizes(), "d_model": 24})).eval(),
        tokenizer_3=_t5_tokenizer(),
    )


def _sd35() -> Any:
    return _sd3(qk_norm="rms_norm", dual_attention_layers=(0,))


def _flux() -> Any:
    (tokenizer, encoder), t5 = _clip(), _t5()
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(1, shift_factor=0.0),
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=t5["text_encoder"],
        tokenizer_2=t5["tokenizer"],
        transformer=transformer.eval(),
    )


def _wan() -> Any:
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    return WanPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(**_t5_sizes())).eval(),
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": _sd,
    "sdxl": _sdxl,
    "pixart": _pixart,
    "dit": _dit,
    "sd3": _sd3,
    "sd3.5": _sd35,
    "flux": _flux,
    "wan": _wan,
}
SIZES: dict[str, list[str]] = {
    "sdxl": ["--height", "16", "--width", "16"],
    "sd3": ["--height", "16", "--width", "16"],
    "sd3.5": ["--height", "16", "--width", "16"],
    "flux": ["--height", "16", "--width", "16"],
    "wan": ["--height", "32", "--width", "32", "--num-frames", "5"],
}


def build(name: str) -> Any:
    """The tiny pipeline of that name; the same weights every time."""
    torch.manual_seed(0)
    return PIPELINES[name]()
