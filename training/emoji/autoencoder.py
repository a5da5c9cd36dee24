"""Train the autoencoder that turns 64 x 64 pictures into 16 x 16 x 4 latents, and encode the set.

Diffusion in pixels would waste most of its work on detail a small convolutional decoder can
fill in. With encoder E and decoder D the loss for a picture x is

    |D(z + n) - x|  +  (D(z + n) - x)^2  +  |grad D(z + n) - grad x|  +  0.1 R(z),   z = E(x),

where n is a little Gaussian noise, so that the decoder forgives the denoiser's small errors, and
R keeps each latent channel centred, with a spread of about 0.7 and without outliers. Afterwards
`scaling_factor` is set such that the scaled latents have unit standard deviation.

Writes to WORK: vae (the moving average of the weights), latents.safetensors, autoencoder.json.

    python -m training.emoji.autoencoder [--minutes 25] [--init VAE_FOLDER] [--work FOLDER]
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from training.emoji.common import (
    base_parser,
    grid,
    load_drawings,
    load_pictures,
    mixed_precision,
    prepare,
    to_bytes,
    to_unit,
)

BATCH = 16
LATENT_NOISE = 0.05
AVERAGE = 0.998


def build() -> AutoencoderTiny:
    """0.43 M parameters; a factor of 4 from pixels to latents."""
    width = (32, 32, 32)
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(1, 3, 3),
        num_decoder_blocks=(3, 3, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
    )


def gradients(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring rows and of neighbouring columns."""
    return pictures.diff(dim=-2), pictures.diff(dim=-1)


def regulariser(latents: Tensor) -> Tensor:
    """R(z): no outliers beyond 1, channel means at 0, channel spreads at 0.7."""
    outliers = F.relu(latents.abs() - 1).pow(2).mean()
    means = latents.mean((0, 2, 3)).pow(2).mean()
    spreads = (latents.std((0, 2, 3)) - 0.7).pow(2).mean()
    return outliers + means + spreads


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB for a mean squared error on the range -1..1."""
    return 10 * math.log10(4 / error)


@torch.no_grad()
def encode(vae: AutoencoderTiny, pictures: Tensor, device: torch.device) -> Tensor:
    """Latents of uint8 pictures, unscaled."""
    parts = [vae.encoder(to_unit(part.to(device))).float() for part in pictures.split(128)]
    return torch.cat(parts).contiguous().cpu()


@torch.no_grad()
def measure(vae: AutoencoderTiny, pictures: Tensor, device: torch.device) -> float:
    """PSNR of the reconstructions of uint8 pictures."""
    error = 0.0
    for part in pictures.split(128):
        target = to_unit(part.to(device))
        rebuilt = vae.decoder(vae.encoder(target)).clamp(-1, 1)
        error += F.mse_loss(rebuilt, target).item() * len(part)
    return psnr(error / len(pictures))


def train(
    vae: AutoencoderTiny, pictures: Tensor, minutes: float, rate: float, device: torch.device
) -> AutoencoderTiny:
    """Train for `minutes` and return the moving average of the weights."""
    # The copy is taken before compiling, and only its weights are ever touched.
    average = AutoencoderTiny.from_config(vae.config).to(device)
    average.load_state_dict(vae.state_dict())
    optimizer = torch.optim.AdamW(vae.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-4)
    start, step, errors = time.time(), 0, []
    while (done := (time.time() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (1 - done) ** 0.7
        batch = pictures[torch.randint(len(pictures), (BATCH,))].to(device)
        target = to_unit(batch).contiguous(memory_format=torch.channels_last)
        with mixed_precision(device):
            latents = vae.encoder(target)
            rebuilt = vae.decoder(latents + LATENT_NOISE * torch.randn_like(latents))
        latents, rebuilt = latents.float(), rebuilt.float()
        error = F.mse_loss(rebuilt, target)
        loss = F.l1_loss(rebuilt, target) + error + 0.1 * regulariser(latents)
        for ours, theirs in zip(gradients(rebuilt), gradients(target), strict=True):
            loss = loss + F.l1_loss(ours, theirs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(AVERAGE, step / (step + 20))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), vae.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        errors.append(error.item())
        if step % 250 == 0 or step == 1:
            speed = step * BATCH / (time.time() - start)
            left = minutes * (1 - done)
            quality = psnr(sum(errors) / len(errors))
            print(f"step {step}: {quality:.2f} dB, {speed:.0f} pictures/s, {left:.1f} min left")
            errors.clear()
    return average


def main(argv: list[str] | None = None) -> None:
    """Train, measure, and write the autoencoder and the scaled latents of all drawings."""
    parser = base_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--init", type=Path, help="start from this autoencoder folder")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at the start")
    args = parser.parse_args(argv)
    device = prepare(args)
    minutes = 0.05 if args.smoke else args.minutes

    drawings, pictures = load_drawings(args.work), load_pictures(args.work)
    seen = torch.tensor([not drawing.held_out for drawing in drawings])
    vae = AutoencoderTiny.from_pretrained(args.init) if args.init else build()
    vae = vae.to(device, memory_format=torch.channels_last)
    if args.init:
        quality = [measure(vae, pictures[part], device) for part in (seen, ~seen)]
        print(f"start: {quality[0]:.2f} dB on training drawings, {quality[1]:.2f} dB on held-out")
    if minutes > 0:
        vae = train(vae, pictures[seen], minutes, args.rate, device)
    quality = [measure(vae, pictures[part], device) for part in (seen, ~seen)]
    print(f"end: {quality[0]:.2f} dB on training drawings, {quality[1]:.2f} dB on held-out")

    latents = encode(vae, pictures, device)
    scale = 1 / latents[seen].std().item()
    vae.register_to_config(scaling_factor=scale)
    vae.to(memory_format=torch.contiguous_format).save_pretrained(args.work / "vae")
    note = f"The autoencoder was trained for {minutes:g} minutes on the training drawings"
    note += " from the weights of an earlier one." if args.init else "."
    record = {"psnr": quality[0], "psnr_held_out": quality[1], "note": note}
    (args.work / "autoencoder.json").write_text(json.dumps(record, indent=2) + "\n")
    save_file({"latents": latents * scale}, args.work / "latents.safetensors")
    shown = torch.linspace(0, len(pictures) - 1, 32).long()
    with torch.no_grad():
        rebuilt = to_bytes(vae.decoder(latents[shown].to(device)).cpu())
    rows = zip(pictures[shown].split(16), rebuilt.split(16), strict=True)
    sheet = torch.cat([part for pair in rows for part in pair])
    Image.fromarray(grid(sheet, 16)).save(args.work / "autoencoder.png")
    print(f"scaling factor {scale:.4f}; {args.work / 'autoencoder.png'}: originals over copies")


if __name__ == "__main__":
    main()
