"""Pictures for people: a before/after grid with the prompts as captions, pairs, differences."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .fidelity import Pictures

__all__ = [
    "before_after",
    "data_url",
    "difference",
    "pair_files",
    "pixelated",
    "save_pairs",
    "shown_first",
    "to_image",
]

_FIRST, _CHANGED = 16, 4
_LARGEST, _EXACT = 512, 160
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
_CELL, _GAP, _LINE, _LINES, _MARGIN = 160, 10, 15, 3, 62


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [0, 1] as an 8-bit image."""
    array = (picture.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def pixelated(image: Image.Image) -> bool:
    """Whether a page shows the picture pixel by pixel, being so small."""
    return image.width <= _EXACT


def data_url(image: Image.Image, largest: int = _LARGEST) -> str:
    """An address that holds the picture: small ones exactly, large ones shrunk for a page."""
    buffer, exact = io.BytesIO(), pixelated(image)
    if not exact:
        image = image.copy()
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    image.save(buffer, format="PNG") if exact else image.save(buffer, format="WEBP", quality=90)
    kind = "png" if exact else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shown_first(ssim: Sequence[float]) -> list[int]:
    """Pictures worth keeping: the first, and of the rest those that changed most, by SSIM."""
    rest = sorted(range(_FIRST, len(ssim)), key=lambda i: ssim[i])
    return [*range(min(_FIRST, len(ssim))), *rest[:_CHANGED]]


def pair_files(folder: Path, number: int) -> tuple[Path, Path]:
    """Where the dense and the slim picture of prompt ``number`` are kept under ``folder``."""
    place = folder / "pictures"
    return place / f"{number:04d}-dense.png", place / f"{number:04d}-slim.png"


def save_pairs(pictures: Pictures, numbers: Sequence[int], folder: Path) -> None:
    """Write the dense and slim pictures of these prompts under ``folder``."""
    (folder / "pictures").mkdir(exist_ok=True)
    for i in numbers:
        for picture, path in zip(
            (pictures.dense[i], pictures.slim[i]), pair_files(folder, i), strict=True
        ):
            to_image(picture).save(path)


def difference(dense: Image.Image, slim: Image.Image, full: float) -> Image.Image:
    """Absolute difference, the largest of the three channels, from black over red to yellow.

    ``full``, in 0..255, is where the colours end.
    """
    a, b = (np.asarray(image.convert("RGB"), dtype=float) for image in (dense, slim))
    level = np.abs(a - b).max(-1) / full * (len(_HEAT) - 1)
    places, colours = np.arange(len(_HEAT)), np.array(_HEAT)
    channels = [np.interp(level, places, colours[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def before_after(pictures: Pictures, title: str, count: int = 16, columns: int = 8) -> Image.Image:
    """Dense above slim for the first ``count`` prompts, captioned, under ``title``."""
    count = min(count, len(pictures.prompts))
    columns = min(columns, count)
    step_x, step_y = _CELL + _GAP, 2 * _CELL + _LINES * _LINE + 2 * _GAP
    rows = -(-count // columns)
    canvas = Image.new("RGB", (_MARGIN + columns * step_x, 40 + rows * step_y), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    pen.text((_GAP, 10), title, fill="black", font=ImageFont.load_default(17))
    for i in range(count):
        x, y = _MARGIN + (i % columns) * step_x, 40 + (i // columns) * step_y
        if i % columns == 0:
            pen.text((_GAP, y + _CELL // 2), "before", fill="#555", font=font)
            pen.text((_GAP, y + _CELL + _CELL // 2), "after", fill="#555", font=font)
        for k, picture in enumerate((pictures.dense[i], pictures.slim[i])):
            image = to_image(picture)
            pixelated = image.width < _CELL and _CELL % image.width == 0
            way = Image.Resampling.NEAREST if pixelated else Image.Resampling.LANCZOS
            canvas.paste(image.resize((_CELL, _CELL), way), (x, y + k * _CELL))
        caption = textwrap.wrap(pictures.prompts[i], 24)[:_LINES]
        pen.text((x, y + 2 * _CELL + 3), "\n".join(caption), fill="black", font=font)
    return canvas
