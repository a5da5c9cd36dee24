"""``slimdiff prompts``: chooses the prompts of a pool that are worth calibrating on."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from ..coverage import METHODS
from ..errors import SlimdiffError
from ..files import refuse_existing, write_text
from ..prompts import NUM_PROMPTS, dataset_captions
from ..prompts import split as split_pool
from ..slimset import Selection, candidates, select_prompts
from .calibrating import pool_of
from .display import out, say
from .opening import Opening, model_options
from .options import PATH, force_option

__all__ = ["prompts"]


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=PATH, required=True, help="File to write, one prompt a line.")
@click.option(
    "--num-prompts",
    type=int,
    default=NUM_PROMPTS,
    show_default=True,
    help="How many prompts to choose.",
)
@click.option("--pool", type=PATH, help="Text file to choose from. Default: as for slim.")
@click.option("--dataset", metavar="NAME", help="Choose from captions on the hub instead.")
@click.option("--column", default="caption", show_default=True, help="The dataset's captions.")
@click.option("--split", default="train", show_default=True, help="Part of the dataset.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=5000,
    show_default=True,
    help="Rows of the dataset to read.",
)
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="facility",
    show_default=True,
    help="Near to all prompts on average, or far from none.",
)
@click.option("--held-out", type=PATH, help="Also write here what was held out of the pool.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Prompts a batch."
)
@model_options
@force_option
def prompts(
    model: str,
    output: Path,
    num_prompts: int,
    pool: Path | None,
    dataset: str | None,
    column: str,
    split: str,
    limit: int,
    method: str,
    held_out: Path | None,
    batch_size: int,
    force: bool,
    opening: Opening,
) -> None:
    """Choose the prompts of a pool that cover it, as the text encoder of MODEL sees them.

    Coverage is the mean over the pool of the cosine to the nearest chosen prompt; it is shown
    beside that of the first and of random prompts.

    The last tenth of the pool, at least 8, is held out to compare on and never chosen. The first
    lines of the file are the choice of fewer. Slim with both: slim --prompts set.txt
    --eval-prompts held-out.txt.

    Example: slimdiff prompts emoji --num-prompts 256 -o set.txt --held-out held-out.txt
    """
    for path in filter(None, (output, held_out)):
        refuse_existing(path, force)
    if pool and dataset:
        raise SlimdiffError(
            f"Both --pool '{pool}' and --dataset '{dataset}' were given; expected one. "
            "Leave one out."
        )
    texts = dataset_captions(dataset, column, split, limit) if dataset else pool_of(model, pool)
    open_to_choice = candidates(texts, num_prompts)
    kept = [text for _, text in split_pool(texts, 1)[1]]
    say(f"Choosing {num_prompts} of {len(open_to_choice)} prompts; {len(kept)} are held out")
    found = select_prompts(
        opening.open(model), texts, num_prompts, method=method, batch_size=batch_size
    )
    if held_out:
        write_text(held_out, _lines(kept))
    write_text(output, _lines(found.prompts))
    _show(found)
    say(f"Prompts in {output}")


def _lines(texts: list[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def _show(found: Selection) -> None:
    count = len(found.prompts)
    table = Table("prompts", "coverage", title="Coverage")
    table.add_row(f"chosen {count}", f"{found.coverage[-1]:.4f}")
    table.add_row(f"first {count}", f"{found.first:.4f}")
    table.add_row(f"random {count}", f"{found.random:.4f}")
    out.print(table)
