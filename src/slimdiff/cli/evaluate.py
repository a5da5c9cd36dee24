"""``slimdiff evaluate``: the metrics of the field, on as many prompts as one likes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ..evaluation import FILE
from ..evaluation import evaluate as run_evaluate
from ..files import refuse_existing
from ..judge import EMBEDDED
from ..locking import remove_idle
from ..metrics import METRICS, known_metrics
from ..pipelines import preset
from ..plan import Plan
from ..prompts import read_prompts, split
from ..store import PLAN_FILE, require_slim
from ..team import joined
from .calibrating import pool_of
from .display import out, say
from .drawing import sampling_from, sampling_options
from .opening import Opening, model_options
from .options import PATH, force_option

__all__ = ["evaluate"]


@click.command()
@click.argument("dense")
@click.argument("slim", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for pictures and figures.")
@click.option("--prompts", type=PATH, help="Prompts to draw, one a line. Default: as compare.")
@click.option(
    "--metrics",
    default=",".join(METRICS),
    show_default=True,
    help="Which, comma-separated; what is not at hand is listed as not computed.",
)
@click.option("--judge", help=f"CLIP model: a folder, a hub id, or {EMBEDDED} (emoji's default).")
@sampling_options
@model_options
@force_option
def evaluate(
    dense: str,
    slim: Path,
    output: Path,
    prompts: Path | None,
    metrics: str,
    judge: str | None,
    force: bool,
    drawing: dict[str, Any],
    opening: Opening,
) -> None:
    """Draw many prompts with DENSE and SLIM, keep the pictures, and compute metrics.

    Stopped, it goes on where it was. FID and KID are distances of the slim pictures from the
    dense ones. Under torchrun the processes share the drawing out.

    Example: slimdiff evaluate emoji emoji-slim --metrics fid,kid,clip -o evaluation
    """
    names = known_metrics([name.strip() for name in metrics.split(",") if name.strip()])
    refuse_existing(output, force or (output / FILE).is_file())
    require_slim(slim)
    provenance = Plan.load(slim / PLAN_FILE).calibration
    held_out = [text for _, text in split(pool_of(dense, None), 1)[1]] if not prompts else None
    texts = held_out or read_prompts(prompts or "")
    sampling = sampling_from(dense, drawing, dict(provenance.get("sampling", {})))
    dense_pipe = opening.open(dense, provenance.get("dtype"))
    slim_pipe = opening.open_slim(slim, dense_pipe)
    judge = judge or (EMBEDDED if preset(dense) else None)
    with joined() as team:
        if force and output.exists() and team.leads:
            remove_idle(output)
        team.wait()
        found = run_evaluate(
            dense_pipe,
            slim_pipe,
            texts,
            output,
            metrics=names,
            judge=judge,
            sampling=sampling,
        )
    if team.leads:
        _show(found, len(texts))
        say(f"Pictures and {FILE} in {output}")


def _show(found: dict[str, Any], count: int) -> None:
    table = Table("metric", "value", "95 % interval", "dense", title=f"{count} prompts")
    for name, values in found["metrics"].items():
        interval, dense = values.get("interval"), values.get("dense")
        table.add_row(
            name,
            f"{values['value']:.5g}",
            f"{interval[0]:.5g} to {interval[1]:.5g}" if interval else "",
            f"{dense['value']:.5g}" if dense else "",
        )
    out.print(table)
    for name, reason in found["not_computed"].items():
        out.print(f"{name}: not computed, {reason}", highlight=False, soft_wrap=True, markup=False)
