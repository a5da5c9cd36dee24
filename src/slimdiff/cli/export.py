"""``slimdiff export``: slim pipelines for places where slimdiff is not."""

from __future__ import annotations

from pathlib import Path

import click

from ..compression import plan_of
from ..errors import SlimdiffError
from ..export import dense_, write_self_contained
from ..files import new_folder, refuse_existing
from ..store import load
from .display import say
from .options import PATH, force_option

__all__ = ["export"]


@click.command()
@click.argument("folder", type=PATH)
@click.option("--self-contained", is_flag=True, help="Bring the class along, in one file.")
@click.option("--dense", is_flag=True, help="Pad to stock shapes: loads anywhere, no faster.")
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the pipeline.")
@force_option
def export(folder: Path, self_contained: bool, dense: bool, output: Path, force: bool) -> None:
    """Write the slim pipeline in FOLDER so that it loads without slimdiff.

    Example: slimdiff export emoji-slim --self-contained -o emoji-portable
    """
    if self_contained == dense:
        raise SlimdiffError("Expected one of --self-contained and --dense.")
    refuse_existing(output, force)
    pipe = load(folder)
    plan = plan_of(pipe)
    assert plan is not None
    with new_folder(output, force=force) as work:
        if dense:
            dense_(pipe)
            pipe.save_pretrained(work, safe_serialization=True)
        else:
            write_self_contained(pipe, work)
        plan.save(work / "slimdiff_export.json")
    if dense:
        say(f"Stock shapes in {output}: as large and as slow as the dense model.")
    else:
        say(f"Pipeline in {output}; load it with trust_remote_code=True.")
