"""A tiny random text-to-image pipeline, saved as a folder, for tests that need a whole one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import slimdiff
from slimdiff.families import unet
from slimdiff.recipe import copy_pipeline


def tiny_pipeline() -> StableDiffusionPipeline:
    """A Stable-Diffusion-style pipeline of 16x16 pictures with random weights."""
    torch.manual_seed(0)
    symbols = [chr(i) for i in range(33, 127)]
    words = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16
    )
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    model, _ = unet._tiny()
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=model,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_folder(folder: Path) -> Path:
    """Save a tiny pipeline to ``folder``."""
    tiny_pipeline().save_pretrained(folder)
    return folder


def prompt_file(path: Path, count: int = 12) -> Path:
    """A file of ``count`` short prompts."""
    path.write_text("\n".join(f"thing {i}" for i in range(count)) + "\n")
    return path


def cut_by_hand(pipe, stats, pool=0.5, **changed):
    """A slim copy within ``pool``; ``changed`` are widths by the end of the site's name."""
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=pool), multiple=2)
    widths = {
        name: next((w for end, w in changed.items() if name.endswith(end)), width)
        for name, width in plan.widths.items()
    }
    slim = copy_pipeline(pipe)
    slimdiff.compress_(slim, stats, replace(plan, widths=widths))
    return slim
