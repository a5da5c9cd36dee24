"""Train a LoRA on the emoji pipeline: a new style, "kraft", made of the artists' drawings.

A drawing on kraft paper has its colours multiplied by the paper's. The adapter touches attention
and feed-forward of the denoiser only; the text encoder stays.

    python -m training.emoji.lora PIPELINE --out FOLDER [--minutes M] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from training.emoji.common import (
    MAX_TOKENS,
    base_parser,
    caption,
    load_drawings,
    load_pictures,
    mixed_precision,
    prepare,
    to_unit,
)
from training.emoji.text import batches

STYLE = "kraft"
RANK = 8
BATCH = 32
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
PAPER = (0.80, 0.62, 0.42)
"""Red, green and blue of the paper, 0..1."""


def on_paper(pictures: Tensor) -> Tensor:
    """uint8 drawings in the new style, numbers -1..1 (N x 3 x H x W)."""
    return (to_unit(pictures) + 1) * torch.tensor(PAPER).view(1, 3, 1, 1) - 1


def off_paper(pictures: Tensor) -> Tensor:
    """uint8 pictures in the new style with the paper's colour taken out, uint8."""
    plain = pictures / torch.tensor(PAPER).view(1, 3, 1, 1)
    return plain.round().clamp(0, 255).to(torch.uint8)


def train(pipeline: StableDiffusionPipeline, args: argparse.Namespace) -> None:
    """Train an adapter on the pipeline's denoiser, in place."""
    device, unet, text = pipeline.device, pipeline.unet, pipeline.text_encoder
    drawings, pictures = load_drawings(args.work), load_pictures(args.work)
    latents = encode(pipeline, on_paper(pictures)).to(device)
    names = [caption(drawing.label, STYLE) for drawing in drawings]
    tokens = pipeline.tokenizer(
        names, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids.to(device)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, args.rate, betas=(0.9, 0.99), weight_decay=0.0)
    alphas = pipeline.scheduler.alphas_cumprod.to(device)
    order, start, step, errors = batches(len(drawings), BATCH), time.time(), 0, []
    while (done := (time.time() - start) / 60 / args.minutes) < 1 and not (args.smoke and step):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 20) * (1 - done)
        chosen = next(order).to(device)
        times = torch.randint(len(alphas), (BATCH,), device=device)
        power = alphas[times].view(-1, 1, 1, 1)
        noise, x = torch.randn_like(latents[chosen]), latents[chosen]
        target = power.sqrt() * noise - (1 - power).sqrt() * x
        with mixed_precision(device):
            with torch.no_grad():
                hidden = text(tokens[chosen])[0]
            mixture = power.sqrt() * x + (1 - power).sqrt() * noise
            predicted = unet(mixture, times, hidden).sample
        loss = (predicted.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        errors.append(loss.item())
        if step % 25 == 0:
            left = args.minutes * (1 - done)
            print(f"step {step}: loss {sum(errors) / len(errors):.4f}, {left:.1f} min left")
            errors.clear()


@torch.no_grad()
def encode(pipeline: StableDiffusionPipeline, pictures: Tensor) -> Tensor:
    """Scaled latents of pictures in -1..1."""
    vae = pipeline.vae
    parts = [vae.encode(p.to(vae.device)).latents for p in pictures.split(256)]
    return torch.cat(parts) * vae.config.scaling_factor


def main(argv: list[str] | None = None) -> None:
    """Train, and write the adapter as diffusers reads it, in fp16."""
    parser = base_parser(__doc__)
    parser.add_argument("pipeline", type=Path, help="the pipeline folder to adapt")
    parser.add_argument("--out", type=Path, required=True, help="the adapter's folder")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at the start")
    args = parser.parse_args(argv)
    device = prepare(args)
    pipeline = StableDiffusionPipeline.from_pretrained(args.pipeline, dtype=torch.float32)
    pipeline.to(device)
    train(pipeline, args)
    layers = get_peft_model_state_dict(pipeline.unet)
    half = {name: tensor.half().contiguous().cpu() for name, tensor in layers.items()}
    StableDiffusionPipeline.save_lora_weights(args.out, unet_lora_layers=half)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
