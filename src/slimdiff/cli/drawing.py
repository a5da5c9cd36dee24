"""How pictures are drawn: its options and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..pipelines import preset
from ..sampling import Sampling
from .options import Command, gathered

__all__ = [
    "drawing_options",
    "given_only",
    "sampling_from",
    "sampling_options",
]


def sampling_options(command: Command) -> Command:
    """How pictures are drawn; gathered as the dict ``drawing`` of what the user gave."""
    return gathered(command, drawing_options(), "drawing", given_only)


def sampling_from(model: str, drawing: dict[str, Any], known: dict[str, Any]) -> Sampling:
    """What the user gave, else what is ``known`` of the model, else what its preset likes."""
    found = preset(model)
    likes = {"guidance": found.guidance} if found else {}
    return Sampling(**{**likes, **known, **drawing})


def drawing_options() -> list[Callable[[Command], Command]]:
    """The options themselves, for commands that add some of their own."""
    return [
        click.option("--steps", type=click.IntRange(1), help="Denoising steps. Default: 20."),
        click.option(
            "--guidance", type=float, help="Guidance scale. Default: the pipeline's own."
        ),
        click.option("--negative-prompt", help="What the pictures should not show."),
        click.option("--height", type=click.IntRange(8), help="Height in pixels."),
        click.option("--width", type=click.IntRange(8), help="Width in pixels."),
        click.option("--num-frames", type=click.IntRange(1), help="Frames of a video."),
        click.option("--batch-size", type=click.IntRange(1), help="Prompts a batch. Default: 8."),
        click.option(
            "--seed", type=click.IntRange(0, 2**62), help="Seed of the first prompt. Default: 0."
        ),
    ]


def given_only(**options: Any) -> dict[str, Any]:
    """``options`` without those that the user left out."""
    return {name: value for name, value in options.items() if value is not None}
