"""Does the LoRA still work once the pipeline is slim? Four pipelines draw the same prompts.

Dense and slim, without and with the adapter, ask for the new style with the same seeds. The judge
names what is drawn (R@1 and R@5 among all concepts, by their captions in the first artist's style,
the paper's colour taken out first, since it knows no paper), and gives the CLIP score, 100 x
cosine, of the same caption. *Paper* is how far the corners have gone from white, 0, to the paper's
colour, 1.

Writes OUT/lora.png and OUT/lora.json.

    python -m training.emoji.lora_evaluate PIPELINE SLIM LORA --out FOLDER [--count 64]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import slimdiff
from slimdiff.files import write_json
from slimdiff.judge import EMBEDDED, judge_place
from training.emoji.common import ARTISTS, Drawing, base_parser, caption, grid, load_drawings
from training.emoji.evaluate import choose
from training.emoji.lora import PAPER, STYLE, off_paper
from training.emoji.models import draw
from training.emoji.retrieval import Judge

ROWS = "dense", "slim", "dense + LoRA", "slim + LoRA"
SHOWN = 10


def main(argv: list[str] | None = None) -> None:
    """Draw, judge and write what was found."""
    parser = base_parser(__doc__)
    parser.add_argument("pipeline", type=Path, help="the dense pipeline")
    parser.add_argument("slim", type=Path, help="the slim pipeline, as slimdiff slim wrote it")
    parser.add_argument("lora", type=Path, help="the adapter's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the picture")
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    args = parser.parse_args(argv)
    drawings = load_drawings(args.work)
    asked = [drawings[i] for i in choose(drawings, args.count, held_out=False, seed=args.seed)]
    drawn = dict(zip(ROWS, _pictures(args, asked), strict=True))
    judge = Judge(Path(judge_place(EMBEDDED)), drawings)
    found = {
        row: _scores(judge, off_paper(pictures) if "LoRA" in row else pictures, asked)
        | {"paper": paper(pictures)}
        for row, pictures in drawn.items()
    }
    for row, scores in found.items():
        print(f"{row:14}" + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    _sheet(drawn).save(args.out / "lora.png")
    write_json(args.out / "lora.json", {"steps": args.steps, "guidance": args.guidance, **found})


def _pictures(args: argparse.Namespace, asked: list[Drawing]) -> list[Tensor]:
    """Pictures of all rows, each (N, 3, H, W) in uint8."""
    pipes = [
        StableDiffusionPipeline.from_pretrained(args.pipeline, dtype=torch.float32),
        slimdiff.load(args.slim, dtype=torch.float32),
    ]
    prompts = [caption(drawing.label, STYLE) for drawing in asked]
    rows = []
    for adapted in (False, True):
        for pipe in pipes:
            pipe.set_progress_bar_config(disable=True)
            if adapted:
                pipe.load_lora_weights(args.lora)
            rows.append(draw(pipe, prompts, args.steps, args.guidance))
    return rows


def _scores(judge: Judge, pictures: Tensor, asked: list[Drawing]) -> dict[str, Any]:
    known = [replace(drawing, artist=ARTISTS[0]) for drawing in asked]
    texts = judge.embed_texts([caption(d.label, d.artist) for d in known])
    cosines = (texts * judge.embed_pictures(pictures)).sum(1)
    return {**judge.recall(pictures, known), "CLIP score": float(100 * cosines.mean())}


def paper(pictures: Tensor) -> float:
    """Median over uint8 pictures of how much of the way from white to paper their corners are."""
    corners = pictures[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean(2) / 255
    way = 1 - torch.tensor(PAPER)
    return float((((1 - corners) @ way) / way.square().sum()).median())


def _sheet(drawn: dict[str, Tensor]) -> Image.Image:
    """One row a pipeline, with its name on the left."""
    side, left = 2 * next(iter(drawn.values())).shape[-1], 120
    shown = torch.cat([pictures[:SHOWN] for pictures in drawn.values()])
    sheet = Image.fromarray(grid(shown, SHOWN))
    sheet = sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (left + sheet.width, sheet.height), "white")
    canvas.paste(sheet, (left, 0))
    pen = ImageDraw.Draw(canvas)
    for i, row in enumerate(drawn):
        at = (10, i * side + side // 2 - 8)
        pen.text(at, row, fill="black", font=ImageFont.load_default(14))
    return canvas


if __name__ == "__main__":
    main()
