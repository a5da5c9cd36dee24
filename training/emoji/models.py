"""The shapes of the networks and the noise schedule, and the pipeline they make together.

The denoiser is laid out like Stable Diffusion's: residual blocks and transformer blocks (self-
attention, cross-attention to the caption, GEGLU feed-forward). Its *pool* is the Linears of
attention and feed-forward, the part that can be slimmed. Attention starts at the 8 x 8 level,
where a transformer layer costs a quarter of what it costs at 16 x 16.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.emoji.common import MAX_TOKENS

TEXT_WIDTH = 192
LATENT_SIZE = 16
SMOKE_CHANNELS = (32, 64, 64)
BATCH = 32
"""Pictures drawn at a time."""


def build_unet(smoke: bool = False) -> UNet2DConditionModel:
    """The denoiser; heads are 32 wide at every level."""
    channels = SMOKE_CHANNELS if smoke else (64, 128, 160)
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        # In diffusers this argument is the number of heads, whatever its name says.
        attention_head_dim=tuple(width // 32 for width in channels),
        transformer_layers_per_block=1 if smoke else (1, 3, 2),
        use_linear_projection=True,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of 2.4 M parameters, trained together with the denoiser."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=TEXT_WIDTH // 32,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule, rescaled to end in pure noise (so v is what we predict)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_pipeline(
    work: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel
) -> StableDiffusionPipeline:
    """The pipeline of these two networks with the tokenizer and autoencoder in `work`."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(work / "vae").to(unet.device),
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline, prompts: list[str], steps: int, guidance: float
) -> Tensor:
    """uint8 pictures of the prompts (N x 3 x 64 x 64), the i-th from seed i."""
    pictures = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        output = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        )
        pictures.append(output.images)
    drawn = torch.from_numpy(np.concatenate(pictures))
    return (drawn * 255).round().byte().permute(0, 3, 1, 2)


def pool(unet: nn.Module) -> list[nn.Linear]:
    """The slimmable Linears: q, k, v and out of every attention, both of every feed-forward."""
    return [
        module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and ({"attn1", "attn2", "ff"} & set(name.split(".")))
    ]


def shares() -> dict[str, float]:
    """Size and cost of the denoiser and the pool's share of both, counted without running it."""
    with torch.device("meta"):
        unet = build_unet().eval()
        inputs = (
            torch.empty(1, 4, LATENT_SIZE, LATENT_SIZE),
            torch.empty(1),
            torch.empty(1, MAX_TOKENS, TEXT_WIDTH),
        )
    parameters = sum(p.numel() for p in unet.parameters())
    pooled = sum(p.numel() for linear in pool(unet) for p in linear.parameters())
    macs = [0]

    def count(linear: nn.Linear, args: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        macs[0] += args[0].numel() * linear.out_features

    for linear in pool(unet):
        linear.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        unet(*inputs)
    total = counter.get_total_flops() / 2
    return {
        "denoiser_parameters": parameters,
        "pool_share_of_parameters": pooled / parameters,
        "denoiser_macs": total,
        "pool_share_of_macs": macs[0] / total,
    }
