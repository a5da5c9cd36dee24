"""Go on from a shipped pipeline when the work folder is lost: copies its parts, encodes the set.

Tokenizer, autoencoder and judge are taken over unchanged, and the drawings are encoded with the
autoencoder as it is. Then `python -m training.emoji.unet --init PIPELINE` trains on.

    python -m training.emoji.restore PIPELINE JUDGE [--work FOLDER]
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from training.emoji.autoencoder import encode
from training.emoji.common import base_parser, load_pictures, prepare


def main(argv: list[str] | None = None) -> None:
    """Write tokenizer, vae, emoji-clip, autoencoder.json and latents.safetensors to WORK."""
    parser = base_parser(__doc__)
    parser.add_argument("pipeline", type=Path, help="an assembled pipeline folder")
    parser.add_argument("judge", type=Path, help="its judge's folder")
    args = parser.parse_args(argv)
    device = prepare(args)
    for source, name in (
        (args.pipeline / "tokenizer", "tokenizer"),
        (args.pipeline / "vae", "vae"),
        (args.judge, "emoji-clip"),
    ):
        shutil.copytree(source, args.work / name, dirs_exist_ok=True)
    record = json.loads((args.pipeline / "training.json").read_text())["autoencoder"]
    (args.work / "autoencoder.json").write_text(json.dumps(record, indent=2) + "\n")
    vae = AutoencoderTiny.from_pretrained(args.work / "vae").float().to(device)
    latents = encode(vae, load_pictures(args.work), device) * vae.config.scaling_factor
    save_file({"latents": latents}, args.work / "latents.safetensors")
    print(f"{args.work}: latents of {len(latents)} drawings, spread {latents.std().item():.3f}")


if __name__ == "__main__":
    main()
