"""``slimdiff demo``: type a prompt, see the dense and the slim picture, move the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..classes import suited_pool
from ..demo import require_gradio
from ..demo.finding import find_statistics
from ..demo.studio import Studio
from ..plan import Plan
from ..prompts import split
from ..store import PLAN_FILE, require_slim
from .calibrating import pool_of
from .display import say
from .drawing import sampling_from, sampling_options
from .opening import Opening, model_options
from .options import PATH

__all__ = ["demo"]

_EXAMPLES = 3


@click.command()
@click.argument("dense")
@click.argument("slim", type=PATH)
@click.option(
    "--statistics",
    "--stats",
    type=PATH,
    help="Calibration that the slider cuts by. Default: SLIM-statistics, where slim kept it.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    show_default=True,
    help="Port to listen at; 0 is any free one.",
)
@sampling_options
@model_options
def demo(
    dense: str,
    slim: Path,
    statistics: Path | None,
    host: str,
    port: int,
    drawing: dict[str, Any],
    opening: Opening,
) -> None:
    """Show a page that draws a prompt with DENSE and SLIM, and with any other budget.

    The page is for this machine only unless --host says otherwise, and loads nothing from
    elsewhere. Ctrl-C ends it.

    Example: slimdiff demo emoji emoji-slim --steps 10
    """
    require_gradio()
    from ..demo.page import build
    from ..demo.server import is_loopback, listening, serve

    require_slim(slim)
    plan = Plan.load(slim / PLAN_FILE)
    known = dict(plan.calibration.get("sampling", {}))
    sampling = sampling_from(dense, {"seed": 0, **drawing}, known)
    with listening(host, port) as listener:
        dense_pipe = opening.open(dense, plan.calibration.get("dtype"))
        slim_pipe = opening.open_slim(slim, dense_pipe)
        found, why_not = find_statistics(dense_pipe, plan, slim, statistics)
        studio = Studio(dense_pipe, slim_pipe, sampling, found)
        _, held_out = split(suited_pool(dense_pipe, pool_of(dense, None)), 1)
        examples = [text for _, text in held_out[:_EXAMPLES]]
        page = build(
            studio, (dense, str(slim)), no_slider=why_not, examples=examples, seed=sampling.seed
        )
        if why_not:
            say(f"No slider: {why_not}")
        if not is_loopback(host):
            say("Whoever can reach this machine can use the page; there is no password.")
        name, number = listener.getsockname()[:2]
        say(f"The demo is at http://{f'[{name}]' if ':' in name else name}:{number}/")
        serve(page, listener, host, studio.stop)
