"""Train the judge, a small CLIP that tells offline whether a picture shows what was asked for.

Picture and caption are embedded as unit vectors p_i and c_i; for a batch of pairs the loss is the
cross-entropy of finding the right caption for each picture and the right picture for each caption
among the batch, with logits  exp(tau) <p_i, c_j>  and tau learned.

The judge sees real drawings only, never a generated picture. One concept in ten is held out of
its training, to measure how well it generalises: those names it must tell from words and pictures
it knows from elsewhere. Pictures are shifted, scaled, recoloured a little and softened, but never
flipped: flags and letters would become others.

Writes WORK/emoji-clip (fp16, with its own processor) and WORK/judge.json.

    python -m training.emoji.judge [--minutes 20] [--init JUDGE_FOLDER] [--work FOLDER]
"""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from training.emoji.common import (
    MAX_TOKENS,
    SIZE,
    Drawing,
    base_parser,
    describe,
    fraction_of,
    load_drawings,
    load_pictures,
    mixed_precision,
    prepare,
    to_unit,
)
from training.emoji.optim import set_rate, split_optimizers
from training.emoji.retrieval import Judge
from training.emoji.text import batches, tokenise

UNSEEN_SHARE = 0.1
WARMUP = 100


def unseen(drawing: Drawing) -> bool:
    """Whether the drawing's concept is held out of the judge's training."""
    return fraction_of(f"judge:{drawing.code}") < UNSEEN_SHARE


def build(tokenizer: CLIPTokenizer, smoke: bool = False) -> CLIPModel:
    """3.5 M parameters: 16 x 16 pixel patches, five layers for pictures, three for captions."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 1 if smoke else 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 1 if smoke else 5,
        "num_attention_heads": 6,
        "image_size": SIZE,
        "patch_size": 16,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    """Turns pictures of any size, and captions, into what the judge takes."""
    pictures = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)


def augment(pictures: Tensor) -> Tensor:
    """Small shifts, scales, colour changes and softening of pictures in -1..1, on white."""
    count = len(pictures)
    scale = torch.empty(count).uniform_(0.9, 1.2)
    moves = torch.zeros(count, 2, 3)
    moves[:, 0, 0] = moves[:, 1, 1] = scale
    moves[:, :, 2] = torch.empty(count, 2).uniform_(-0.12, 0.12)
    where = F.affine_grid(moves, list(pictures.shape), align_corners=False)
    # Measured from white, the padding of `grid_sample`, which is 0, is white too.
    moved = 1 + F.grid_sample(pictures - 1, where, align_corners=False)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    moved = torch.lerp(moved, soft, torch.rand(count, 1, 1, 1))
    grey = moved.mean(1, keepdim=True)
    moved = torch.lerp(grey, moved, torch.empty(count, 1, 1, 1).uniform_(0.7, 1.2))
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.85, 1.1)
    shift = torch.empty(count, 3, 1, 1).uniform_(-0.08, 0.08)
    noise = 0.1 * torch.rand(count, 1, 1, 1) * torch.randn_like(moved)
    return (1 + (moved - 1) * contrast + shift + noise).clamp(-1, 1)


def train(
    model: CLIPModel,
    pictures: Tensor,
    captions: Tensor,
    minutes: float,
    rate: float,
    batch: int,
    device: torch.device,
) -> int:
    """Train for `minutes`, the rate falling to zero; return how many pictures that took."""
    optimizers = split_optimizers(model, rate)
    order = batches(len(pictures), batch)
    start, step, losses = time.time(), 0, []
    while (done := (time.time() - start) / 60 / minutes) < 1:
        chosen = next(order)
        ids = captions[chosen, torch.randint(captions.shape[1], (len(chosen),))].to(device)
        # Everything after the first end mark is padding, and attention never looks ahead.
        ids = ids[:, : 1 + (ids == model.config.text_config.eos_token_id).int().argmax(1).max()]
        views = augment(to_unit(pictures[chosen])).to(device)
        with mixed_precision(device):
            output = model(input_ids=ids, pixel_values=views)
        logits = output.logits_per_image.float()
        right = torch.arange(len(chosen), device=device)
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        now = rate * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
        set_rate(optimizers, now)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        step += 1
        losses.append(loss.item())
        if step % 50 == 0 or step == 1:
            speed = step * batch / (time.time() - start)
            print(
                f"step {step}: loss {sum(losses) / len(losses):.3f}, {speed:.0f} pictures/s, "
                f"{minutes * (1 - done):.1f} min left",
                flush=True,
            )
            losses.clear()
    return step * batch


def main(argv: list[str] | None = None) -> None:
    """Train, save in half precision, and measure recall on real drawings."""
    parser = base_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--init", type=Path, help="train this judge further")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args(argv)
    device = prepare(args)
    if args.smoke:
        args.minutes, args.batch = 0.02, 8

    drawings, pictures = load_drawings(args.work), load_pictures(args.work)
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    known = [i for i, drawing in enumerate(drawings) if not unseen(drawing)]
    rng = random.Random(args.seed)
    variants = 2 if args.smoke else 24
    captions = tokenise(tokenizer, [drawings[i] for i in known], variants, rng, empty=0)
    if args.init:
        model = CLIPModel.from_pretrained(args.init, dtype=torch.float32)
    else:
        model = build(tokenizer, args.smoke)
    model.to(device).train()
    shown = train(model, pictures[known], captions, args.minutes, args.rate, args.batch, device)
    folder: Path = args.work / "emoji-clip"
    model.cpu().half().save_pretrained(folder)
    processor(tokenizer).save_pretrained(folder)

    judge = Judge(folder, drawings)
    new = [i for i, drawing in enumerate(drawings) if unseen(drawing)]
    result = {
        "minutes": args.minutes,
        "pictures_shown": shown,
        "device": describe(device),
        "names": len(judge.labels),
        "seen_concepts": judge.recall(pictures[known], [drawings[i] for i in known]),
        "held_out_concepts": judge.recall(pictures[new], [drawings[i] for i in new]),
    }
    (args.work / "judge.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
