"""Pictures for people: a before/after grid with the prompts as captions."""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .fidelity import Pictures

__all__ = ["before_after", "to_image"]

_CELL, _GAP, _LINE, _LINES, _MARGIN = 160, 10, 15, 3, 62


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [0, 1] as an 8-bit image."""
    array = (picture.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(array)


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
