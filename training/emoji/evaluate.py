"""Judge a pipeline folder, draw its 8 x 8 grid, and write its model card.

The judge names pictures drawn for prompts seen in training and for held-out pairs, and names the
artists' own drawings of the same prompts: what it cannot name there says nothing about the
pipeline. Only concepts the judge was trained on are asked for.

Writes FOLDER/README.md, FOLDER/grid.png and FOLDER/evaluation.json.

    python -m training.emoji.evaluate FOLDER [--count 128] [--judge FOLDER] [--work FOLDER]
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from training.emoji.card import write_card
from training.emoji.common import (
    Drawing,
    base_parser,
    caption,
    grid,
    load_drawings,
    load_pictures,
    prepare,
)
from training.emoji.judge import unseen
from training.emoji.models import draw
from training.emoji.retrieval import Judge

GRID = 64


def choose(drawings: list[Drawing], count: int, held_out: bool, seed: int) -> list[int]:
    """Up to `count` drawings, held out or not, that the judge knows."""
    known = [i for i, d in enumerate(drawings) if d.held_out == held_out and not unseen(d)]
    return random.Random(seed).sample(known, min(count, len(known)))


def main(argv: list[str] | None = None) -> None:
    """Evaluate, and write what was found into the folder."""
    parser = base_parser(__doc__)
    parser.add_argument("folder", type=Path, help="the pipeline folder")
    parser.add_argument("--judge", type=Path, help="default: WORK/emoji-clip")
    parser.add_argument("--count", type=int, default=128, help="prompts of each kind")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    args = parser.parse_args(argv)
    device = prepare(args)
    if args.smoke:
        args.count, args.steps = 4, 2
    drawings, pictures = load_drawings(args.work), load_pictures(args.work)
    judge = Judge(args.judge or args.work / "emoji-clip", drawings)
    pipeline = StableDiffusionPipeline.from_pretrained(args.folder, dtype=torch.float32)
    pipeline.to(device).set_progress_bar_config(disable=True)

    result: dict[str, object] = {"steps": args.steps, "guidance": args.guidance}
    for kind, held_out in (("seen", False), ("held_out", True)):
        chosen = choose(drawings, args.count, held_out, args.seed)
        asked = [drawings[i] for i in chosen]
        prompts = [caption(drawing.label, drawing.artist) for drawing in asked]
        drawn = draw(pipeline, prompts, args.steps, args.guidance) if prompts else pictures[:0]
        result[kind] = {
            "generated": judge.recall(drawn, asked),
            "real": judge.recall(pictures[chosen], asked),
        }
        if not held_out:
            Image.fromarray(grid(drawn[:GRID], 8)).save(args.folder / "grid.png")
            result["grid"] = prompts[:GRID]
    (args.folder / "evaluation.json").write_text(
        json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    )
    write_card(args.folder, result)
    print(json.dumps({kind: result[kind] for kind in ("seen", "held_out")}, indent=2))


if __name__ == "__main__":
    main()
