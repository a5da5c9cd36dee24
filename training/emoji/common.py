"""What every step of the recipe shares: the drawings on disk, captions, command-line flags.

A drawing is one artist's picture of one concept (one emoji), so a pair (concept, artist) names
it. A few pairs whose concept the other artist also drew are *held out*: no step trains on
them, and asking for them later shows whether the model composes concept and artist.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

SIZE = 64
"""Side of a picture in pixels."""

ARTISTS = ("noto", "fluent")
"""The two artists whose licences allow shipping what was learned from them."""

MAX_TOKENS = 32
"""Length of a tokenised caption, start and end included."""


@dataclass(frozen=True)
class Drawing:
    """What is known about one picture: its row in `drawings.json`."""

    artist: str
    code: str
    label: str
    tags: list[str] = field(default_factory=list)
    held_out: bool = False


def fraction_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: deterministic "random" choices."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64


def caption(label: str, artist: str, tags: list[str] | tuple[str, ...] = ()) -> str:
    """The full caption of a drawing, such as "red apple, fruit, noto style emoji"."""
    return ", ".join([label, *tags, f"{artist} style emoji"])


def random_caption(drawing: Drawing, rng: random.Random, empty: float = 0.1) -> str:
    """One way to ask for the drawing: label, tags or both, usually with the artist.

    With probability `empty` the caption is "": the unconditional half of guidance.
    """
    if rng.random() < empty:
        return ""
    tags = rng.sample(drawing.tags, min(len(drawing.tags), rng.randint(0, 3)))
    choice = rng.random()
    if choice < 0.6 or not tags:
        words = [drawing.label]
    elif choice < 0.85:
        words = [drawing.label, *tags]
    else:
        words = tags
    style = f"{drawing.artist} style emoji" if rng.random() < 0.9 else "emoji"
    return ", ".join([*words, style])


def save_drawings(work: Path, drawings: list[Drawing], pictures: np.ndarray) -> None:
    """Write the pictures (uint8, N x 64 x 64 x 3) and what is known about them."""
    work.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(work / "drawings.npz", pictures=pictures)
    rows = [asdict(drawing) for drawing in drawings]
    (work / "drawings.json").write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n")


def load_drawings(work: Path) -> list[Drawing]:
    """Read what `training.emoji.data` wrote about the drawings."""
    path = work / "drawings.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `python -m training.emoji.data` first")
    return [Drawing(**row) for row in json.loads(path.read_text())]


def load_pictures(work: Path) -> torch.Tensor:
    """The drawings as a uint8 tensor N x 3 x 64 x 64, in the order of `load_drawings`."""
    with np.load(work / "drawings.npz") as archive:
        return torch.from_numpy(archive["pictures"]).permute(0, 3, 1, 2).contiguous()


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """Bytes 0..255 as numbers -1..1, the range the autoencoder works in."""
    return pictures.float() / 127.5 - 1


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_unit`, rounding and clamping."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte()


def grid(pictures: torch.Tensor, columns: int) -> np.ndarray:
    """Lay out uint8 pictures (N x 3 x H x W) row by row, `columns` a row, as H x W x 3."""
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    sheet[:count] = pictures
    sheet = sheet.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return sheet.reshape(rows * height, columns * width, channels).numpy()


def base_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags every step has."""
    summary = (description or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path.home() / ".cache" / "slimdiff" / "emoji-training",
        help="folder for data, checkpoints and results (default: %(default)s)",
    )
    parser.add_argument("--smoke", action="store_true", help="a run of seconds, for tests")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def prepare(args: argparse.Namespace) -> torch.device:
    """Seed the generators, set the threads, and return the device to train on."""
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    np.random.seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 autocast where the hardware multiplies matrices in it.

    On a CPU without AMX tiles it takes twice as long as float32, so it stays off there.
    """
    tiles = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" or tiles)


def describe(device: torch.device) -> str:
    """The device in words, for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU cores"
