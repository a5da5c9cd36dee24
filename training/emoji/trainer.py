"""Networks, optimizers and progress of the denoiser's training, and the loop that runs them."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.emoji.common import Drawing, describe, grid, load_drawings, mixed_precision
from training.emoji.models import (
    build_pipeline,
    build_scheduler,
    build_text_encoder,
    build_unet,
    draw,
)
from training.emoji.optim import set_rate, split_optimizers
from training.emoji.text import batches, tokenise

__all__ = ["SMOKE_STEPS", "Progress", "Stop", "Trainer", "training_set"]

SAMPLE_PROMPTS = (
    "red apple, noto style emoji",
    "grinning face, fluent style emoji",
    "flag: Japan, noto style emoji",
    "blue heart, fluent style emoji",
    "dog face, noto style emoji",
    "pizza, fluent style emoji",
    "sun, noto style emoji",
    "rocket, fluent style emoji",
    "cat face, fluent style emoji",
    "green apple, fluent style emoji",
    "soccer ball, noto style emoji",
    "house, noto style emoji",
    "angry face, noto style emoji",
    "deciduous tree, fluent style emoji",
    "automobile, noto style emoji",
    "flag: France, fluent style emoji",
)
WARMUP = 200
"""Steps until the learning rate is reached."""

CAPTIONS = 24
"""Captions prepared for each drawing."""

SMOKE_STEPS = 3


@dataclass
class Progress:
    """How far training has come, over all runs."""

    step: int = 0
    pictures: int = 0
    hours: float = 0.0


class Stop:
    """While entered, turns a request to end (SIGTERM or Ctrl-C) into `asked`."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Stop:
        self._before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True


def training_set(work: Path) -> tuple[list[Drawing], Tensor]:
    """All drawings but the held-out ones, and their latents."""
    drawings, path = load_drawings(work), work / "latents.safetensors"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `python -m training.emoji.autoencoder` first")
    seen = [i for i, drawing in enumerate(drawings) if not drawing.held_out]
    return [drawings[i] for i in seen], load_file(path)["latents"][seen]


class Trainer:
    """Networks, their moving average, optimizers and progress, and how to save them."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
        if args.init:
            unet = UNet2DConditionModel.from_pretrained(args.init / "unet")
            text = CLIPTextModel.from_pretrained(args.init / "text_encoder")
        else:
            unet, text = build_unet(args.smoke), build_text_encoder(tokenizer)
        self.networks = nn.ModuleDict({"unet": unet.float(), "text_encoder": text.float()})
        self.networks.to(device, memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.networks).eval().requires_grad_(False)
        self.optimizers = split_optimizers(self.networks, args.rate, not args.adamw)
        self.progress = Progress()
        self.fresh_at = 0  # the step at which the optimizers knew nothing
        if args.init:
            facts = json.loads((args.init / "training.json").read_text())
            self.progress = Progress(facts["step"], facts["pictures"], facts["hours"])
            self.fresh_at = self.progress.step

        self.drawings, latents = training_set(args.work)
        self.tokenizer, self.latents = tokenizer, latents.to(device)
        self.alphas = build_scheduler().alphas_cumprod.to(device)
        self.velocity = torch.compile(unet) if args.compile else unet

    def save(self, path: Path) -> None:
        """Write the checkpoint in one atomic step."""
        state = {
            "networks": self.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": vars(self.progress),
            "device": describe(self.device),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint (tensors and numbers only; nothing else is unpickled)."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.networks.load_state_dict(state["networks"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress, self.fresh_at = Progress(**state["progress"]), 0

    def step(self, chosen: Tensor, ids: Tensor, rate: float) -> Tensor:
        """One optimizer step on one batch; returns the unweighted loss."""
        latents = self.latents[chosen.to(self.device)]
        count = len(latents)
        spread = (torch.arange(count) + torch.rand(count)) / count
        times = (spread * len(self.alphas)).long().to(self.device)
        signal_power = self.alphas[times].view(-1, 1, 1, 1)
        a, s = signal_power.sqrt(), (1 - signal_power).sqrt()
        noise = torch.randn_like(latents)
        target = a * noise - s * latents
        mixture = (a * latents + s * noise).contiguous(memory_format=torch.channels_last)
        with mixed_precision(self.device):
            hidden = self.networks["text_encoder"](ids.to(self.device))[0]
            predicted = self.velocity(mixture, times, hidden).sample
        error = (predicted.float() - target).square().mean((1, 2, 3))
        snr = (signal_power / (1 - signal_power)).flatten()
        loss = (error * (5 / snr).clamp(max=1)).mean()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        set_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.step += 1
        self.progress.pictures += count
        self.update_average()
        return error.mean().detach()

    @torch.no_grad()
    def update_average(self) -> None:
        """A moving average over the last tenth of the steps, at most 2,000 of them.

        In a cooldown over 50: late weights are better than early ones, and little noise is left.
        """
        limit = 0.98 if self.args.cooldown else 0.9995
        decay = min(limit, (1 + self.progress.step) / (10 + self.progress.step))
        kept, new = list(self.average.parameters()), list(self.networks.parameters())
        torch._foreach_lerp_(kept, new, 1 - decay)

    def rate(self, remaining: float) -> float:
        """Learning rate: warm-up, then constant, or falling with the cooldown's time left."""
        warm = min(1.0, (self.progress.step - self.fresh_at + 1) / WARMUP)
        return self.args.rate * warm * (remaining if self.args.cooldown else 1.0)

    def sample(self, name: str) -> None:
        """Draw the fixed prompts with the averaged weights."""
        average = self.average
        pipeline = build_pipeline(self.args.work, average["unet"], average["text_encoder"])
        steps = 2 if self.args.smoke else 20
        pictures = draw(pipeline, list(SAMPLE_PROMPTS), steps=steps, guidance=2.0)
        folder = self.args.work / "samples"
        folder.mkdir(exist_ok=True)
        Image.fromarray(grid(pictures, 8)).save(folder / f"{name}.png")

    def run(self, checkpoint: Path) -> None:
        """Train until time is up or someone asks to stop; save at the end in any case."""
        args, progress = self.args, self.progress
        torch.manual_seed(args.seed + progress.step)
        rng = random.Random(args.seed + progress.step)
        captions = tokenise(self.tokenizer, self.drawings, 2 if args.smoke else CAPTIONS, rng)
        order = batches(len(self.latents), args.batch)
        minutes = args.cooldown or args.minutes
        last_step = progress.step + SMOKE_STEPS if args.smoke else None
        start = saved = sampled = told = time.time()
        hours, told_pictures, errors = progress.hours, progress.pictures, []
        with Stop() as stop:
            while not stop.asked and progress.step != last_step:
                now = time.time()
                progress.hours = hours + (now - start) / 3600
                left = minutes - (now - start) / 60
                if left <= 0:
                    break
                chosen = next(order)
                ids = captions[chosen, torch.randint(captions.shape[1], (len(chosen),))]
                errors.append(self.step(chosen, ids, self.rate(left / minutes)))
                if len(errors) == args.report or progress.step == last_step:
                    speed = (progress.pictures - told_pictures) / (time.time() - told)
                    told, told_pictures = time.time(), progress.pictures
                    self.tell(torch.stack(errors).mean().item(), speed, left)
                    errors.clear()
                if now - saved > 60 * args.save_every:
                    self.save(checkpoint)
                    saved = now
                if now - sampled > 60 * args.sample_every:
                    self.sample(f"{progress.step:07d}")
                    sampled = now
            self.save(checkpoint)
            print(f"saved {checkpoint} at step {progress.step}", flush=True)
            self.sample("last")

    def tell(self, loss: float, speed: float, left: float) -> None:
        """Print a progress line; give up when the loss is lost."""
        if not math.isfinite(loss):
            raise SystemExit("the loss is no longer finite: continue with a lower --rate")
        progress = self.progress
        print(
            f"step {progress.step}: loss {loss:.4f}, {progress.pictures} pictures in "
            f"{progress.hours:.2f} h, {speed:.1f} pictures/s, {left:.0f} min left",
            flush=True,
        )
