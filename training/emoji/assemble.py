"""Put the averaged networks together as a pipeline folder in fp16, and say how they were made.

The folder is an ordinary `StableDiffusionPipeline`; `training.json` beside it holds the progress
of training, for the model card that `training.emoji.evaluate` writes.

    python -m training.emoji.assemble --out FOLDER [--checkpoint FILE] [--work FOLDER]
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from training.emoji.common import base_parser, load_drawings
from training.emoji.models import build_pipeline, build_text_encoder, build_unet


def main(argv: list[str] | None = None) -> None:
    """Write the pipeline folder."""
    parser = base_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the pipeline folder to write")
    parser.add_argument("--checkpoint", type=Path, help="default: WORK/unet.pt")
    args = parser.parse_args(argv)
    checkpoint = args.checkpoint or args.work / "unet.pt"
    if not checkpoint.exists():
        raise SystemExit(f"{checkpoint} is missing: run `python -m training.emoji.unet` first")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    networks = torch.nn.ModuleDict(
        {
            "unet": build_unet(args.smoke),
            "text_encoder": build_text_encoder(
                CLIPTokenizer.from_pretrained(args.work / "tokenizer")
            ),
        }
    )
    networks.load_state_dict(state["average"])
    pipeline = build_pipeline(args.work, networks["unet"], networks["text_encoder"])
    pipeline.to(torch.float16).save_pretrained(args.out)
    forget_places(args.out)

    drawings = load_drawings(args.work)
    facts = {
        **state["progress"],
        "device": state["device"],
        "training_drawings": sum(not drawing.held_out for drawing in drawings),
        "held_out_drawings": sum(drawing.held_out for drawing in drawings),
        "autoencoder": json.loads((args.work / "autoencoder.json").read_text()),
    }
    (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(
        f"{args.out}: {size / 2**20:.1f} MiB, step {facts['step']}, {facts['pictures']} pictures"
    )


def forget_places(folder: Path) -> None:
    """Take out of the components' configurations where they were loaded from."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
