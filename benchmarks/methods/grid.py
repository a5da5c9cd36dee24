"""One picture grid: a method a row, a prompt a column, same prompt and noise down a column."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from slimdiff.pictures import to_image

__all__ = ["method_grid"]

_CELL, _GAP, _LINE, _LINES, _MARGIN, _TOP = 128, 6, 14, 4, 130, 40


def method_grid(
    pictures: Mapping[str, Tensor], prompts: Sequence[str], title: str, columns: int = 10
) -> Image.Image:
    """``pictures``: label -> uint8 pictures, shape (n, 3, H, W), in the order of ``prompts``."""
    columns = min(columns, len(prompts))
    step = _CELL + _GAP
    size = (_MARGIN + columns * step, _TOP + len(pictures) * step + _LINES * _LINE + _GAP)
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    pen.text((_GAP, 10), title, fill="black", font=ImageFont.load_default(16))
    for row, (label, drawn) in enumerate(pictures.items()):
        y = _TOP + row * step
        pen.text((_GAP, y + _CELL // 2), label, fill="#333", font=ImageFont.load_default(14))
        for column in range(columns):
            image = to_image(drawn[column].float() / 255)
            # Whole multiples of the pixels are shown as they are, nothing is smoothed over.
            way = Image.Resampling.LANCZOS if _CELL % image.width else Image.Resampling.NEAREST
            canvas.paste(image.resize((_CELL, _CELL), way), (_MARGIN + column * step, y))
    for column in range(columns):
        caption = "\n".join(textwrap.wrap(prompts[column], 20)[:_LINES])
        place = (_MARGIN + column * step, _TOP + len(pictures) * step)
        pen.text(place, caption, fill="black", font=font)
    return canvas
