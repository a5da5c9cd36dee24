"""What a model is watched on and what is made of it: options of calibration."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from ..decomposition import METHODS
from ..gathering import SAVE_EVERY
from ..pipelines import preset
from ..prompts import NUM_PROMPTS, read_prompts
from ..sampling import CALIBRATION_STEPS
from ..weighting import WEIGHTS
from .drawing import drawing_options, given_only
from .options import PATH, Command, gathered

__all__ = [
    "SHIPPED_POOL",
    "calibration_options",
    "max_moment_option",
    "method_option",
    "pool_of",
    "prompt_options",
    "rounds_option",
    "save_every_option",
    "weights_option",
]

SHIPPED_POOL = Path(str(files("slimdiff") / "assets" / "prompts.txt"))


def calibration_options(command: Command) -> Command:
    """How pictures are drawn, and how many steps of that calibration takes; as ``drawing``."""
    steps = click.option(
        "--calibration-steps",
        type=click.IntRange(1),
        help=f"Denoising steps of calibration. Default: --steps, {CALIBRATION_STEPS} at most.",
    )
    return gathered(command, [*drawing_options(), steps], "drawing", given_only)


method_option = click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="exact",
    show_default=True,
    help="Closed forms: ours, or the published ones.",
)


save_every_option = click.option(
    "--save-every",
    type=click.FloatRange(0),
    default=SAVE_EVERY,
    show_default=True,
    help="Seconds between two saves of a calibration.",
)


max_moment_option = click.option(
    "--max-moment-mib",
    type=click.FloatRange(0, min_open=True),
    help="Most MiB of sums in memory; what does not fit takes another pass of sampling.",
)


rounds_option = click.option(
    "--rounds",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Groups in which projections are refitted after the cut (error feedback).",
)


weights_option = click.option(
    "--timestep-weights",
    type=click.Choice(WEIGHTS),
    default="uniform",
    show_default=True,
    help="How much each denoising step counts in the moments.",
)


def prompt_options(command: Command) -> Command:
    """--prompts and --num-prompts."""
    for option in (
        click.option(
            "--prompts",
            type=PATH,
            help="Text file, one prompt a line. Default: the model's own, else many kinds.",
        ),
        click.option(
            "--num-prompts",
            type=click.IntRange(1),
            default=NUM_PROMPTS,
            show_default=True,
            help="Calibration prompts.",
        ),
    ):
        command = option(command)
    return command


def pool_of(model: str, prompts: Path | None) -> list[str]:
    """The prompt pool: the user's file, the embedded pipeline's own, or one for all models."""
    found = preset(model)
    return read_prompts(prompts or (found.prompts if found else SHIPPED_POOL))
