"""What all groups of options are made with."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

__all__ = [
    "PATH",
    "Command",
    "force_option",
    "gathered",
]

Command = Callable[..., Any]
PATH = click.Path(path_type=Path)

force_option = click.option("--force", is_flag=True, help="Replace an existing output.")


def gathered(
    command: Command, options: list[Callable[[Command], Command]], name: str, build: Command
) -> Command:
    """Add ``options`` to ``command`` and hand them over as one argument ``name``."""
    own: set[str] = set()

    @wraps(command)
    def wrapper(**given: Any) -> Any:
        mine = {key: given.pop(key) for key in own}
        return command(**given, **{name: build(**mine)})

    wrapped: Command = wrapper
    for option in reversed(options):
        wrapped = option(wrapped)
    added = wrapped.__click_params__[-len(options) :]  # pyright: ignore
    own.update(param.name for param in added)
    return wrapped
