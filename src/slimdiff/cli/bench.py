"""``slimdiff bench``: is it really faster on this machine?"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ..bench import Bench, Duel
from ..bench import bench as run_bench
from ..denoiser import denoiser, dtype_name
from ..environment import peak_mib
from ..files import refuse_existing, write_json
from ..sampling import Sampling, draw
from ..store import require_slim
from .display import out, say
from .opening import Opening, model_options
from .options import PATH, force_option

__all__ = ["bench"]


@click.command()
@click.argument("dense")
@click.argument("slim")
@click.option("--resolution", type=click.IntRange(8), help="Width and height. Default: its own.")
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures at once."
)
@click.option(
    "--steps", type=click.IntRange(1), default=20, show_default=True, help="Steps a picture."
)
@click.option("--guidance", type=float, help="Guidance scale. Default: the pipeline's own.")
@click.option("--compile", is_flag=True, help="Compile both denoisers first.")
@click.option(
    "--seconds", type=float, default=20.0, show_default=True, help="Time to spend on either duel."
)
@click.option("-o", "--output", type=PATH, help="JSON file for the figures.")
@model_options
@force_option
def bench(
    dense: str,
    slim: str,
    resolution: int | None,
    batch: int,
    steps: int,
    guidance: float | None,
    compile: bool,
    seconds: float,
    output: Path | None,
    force: bool,
    opening: Opening,
) -> None:
    """Time DENSE and SLIM in turn: a step, whole pictures, memory, size.

    Peak memory is that of a process of its own that loads the pipeline and draws once.

    Example: slimdiff bench emoji emoji-slim
    """
    if output:
        refuse_existing(output, force)
    require_slim(Path(slim))
    sampling = Sampling(
        steps=steps, guidance=guidance, height=resolution, width=resolution, batch_size=batch
    )
    first = opening.open(dense)
    dtype = dtype_name(denoiser(first))
    second = opening.open(slim, dtype)
    found = run_bench(first, second, sampling=sampling, compile=compile, seconds=seconds)
    del first, second
    say("Measuring the memory of each")
    peaks = tuple(_peak(opening, model, dtype, sampling) for model in (dense, slim))
    if output:
        write_json(output, {**found.to_dict(), "peak_mib": peaks})
    _show(found, peaks)


def _peak(opening: Opening, model: str, dtype: str, sampling: Sampling) -> float:
    """MiB at most of a fresh process that draws one batch."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_draw_once, (opening, model, dtype, sampling))


def _draw_once(opening: Opening, model: str, dtype: str, sampling: Sampling) -> float:
    pipe = opening.open(model, dtype)
    draw(pipe, [(i, "a picture") for i in range(sampling.batch_size)], sampling)
    return peak_mib(pipe.device)


def _show(found: Bench, peaks: tuple[float, ...]) -> None:
    table = Table("", "dense", "slim", "slim / dense", title=f"{found.device}, {found.dtype}")
    table.add_row(f"step on {found.inputs}", *_row(found.step))
    table.add_row(f"{found.sampling.steps} steps and decoding", *_row(found.picture))
    for name, pair in (("peak memory", peaks), ("weights", [b / 2**20 for b in found.bytes])):
        sizes = [f"{value:,.1f} MiB" for value in pair]
        table.add_row(name, *sizes, f"{pair[1] / pair[0]:.3f}")
    out.print(table)
    out.print(
        f"medians and interquartile ranges of {found.step.rounds} steps and "
        f"{found.picture.rounds} pictures in turn, batch {found.sampling.batch_size}"
        f"{', compiled' if found.compiled else ''}",
        highlight=False,
        soft_wrap=True,
    )


def _row(duel: Duel) -> tuple[Any, ...]:
    times = ((duel.dense, duel.dense_spread), (duel.slim, duel.slim_spread))
    return *(f"{1e3 * t:.1f} ms ± {1e3 * s / 2:.1f}" for t, s in times), f"{duel.ratio:.3f}"
