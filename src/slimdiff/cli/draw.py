"""``slimdiff generate``: draws one picture with a dense or a slim pipeline."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click

from ..files import refuse_existing, write_bytes
from ..pictures import to_image
from ..plan import Plan
from ..sampling import draw
from ..store import PLAN_FILE
from .display import say
from .drawing import sampling_from, sampling_options
from .opening import Opening, model_options
from .options import PATH, force_option

__all__ = ["generate"]


@click.command()
@click.argument("model")
@click.argument("prompt")
@click.option("-o", "--output", type=PATH, required=True, help="PNG file to write.")
@sampling_options
@model_options
@force_option
def generate(
    model: str,
    prompt: str,
    output: Path,
    force: bool,
    drawing: dict[str, Any],
    opening: Opening,
) -> None:
    """Draw PROMPT with MODEL, dense or slim, and write a PNG.

    Example: slimdiff generate emoji-slim "red apple, noto style emoji" -o apple.png --seed 1
    """
    refuse_existing(output, force)
    plan_file = Path(model) / PLAN_FILE
    known: dict[str, Any] = {}
    if plan_file.is_file():
        known = dict(Plan.load(plan_file).calibration.get("sampling", {}))
    sampling = sampling_from(model, {"seed": 0, **drawing}, known)
    pipe = opening.open(model)
    images, _ = draw(pipe, [(0, prompt)], sampling)
    buffer = io.BytesIO()
    to_image(images[0]).save(buffer, format="PNG")
    write_bytes(output, buffer.getvalue())
    say(f"Drawn with seed {sampling.seed}: {output}")
