"""``slimdiff lora``: adapters of the dense model on the slim one."""

from __future__ import annotations

from pathlib import Path

import click

from ..files import refuse_existing
from ..lora_files import convert as run_convert
from ..store import load
from .display import say
from .options import PATH, force_option

__all__ = ["lora"]


@click.group()
def lora() -> None:
    """Take LoRAs made for the dense model over to a slim one.

    In Python nothing is needed: load_lora_weights does it. Example: slimdiff lora convert --help
    """


@lora.command()
@click.argument("slim", type=PATH)
@click.argument("lora_file", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="File to write (.safetensors).")
@force_option
def convert(slim: Path, lora_file: Path, output: Path, force: bool) -> None:
    """Rewrite LORA_FILE, kohya's or PEFT's, for the slim pipeline in folder SLIM.

    Example: slimdiff lora convert emoji-slim style.safetensors -o style-slim.safetensors
    """
    refuse_existing(output, force)
    carried = run_convert(load(slim), lora_file, output)
    for linear, share in sorted(carried.lost.items(), key=lambda item: -item[1])[:5]:
        say(f"{linear}: {share:.1%} of its energy lies outside the kept basis")
    say(f"{output}: {carried.lost_share:.1%} of the adapter's energy lies outside the kept basis")
