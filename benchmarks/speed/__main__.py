"""``python -m benchmarks.speed``: the command line and the tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from slimdiff import Sampling
from slimdiff.environment import device_name, versions
from slimdiff.errors import SlimdiffError
from slimdiff.files import write_json, write_text

from .attention import overhead
from .emoji import asked_and_got
from .frontier import frontier
from .models import call_of, random_model
from .team import throughput
from .uniform import uniform_step

_PARTS = ("attention", "emoji", "frontier", "sdxl", "team")


def main(argv: list[str] | None = None) -> None:
    """Measure, then write one JSON file and one table a part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=main.__doc__)
    parser.add_argument("--work", type=Path, help="folder for results (default: ~/.cache/...)")
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see it work")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--resolution", type=int, default=512, help="pixels, frontier and sdxl")
    parser.add_argument("--reductions", nargs="+", default=["-50M", "-100M", "-140M"])
    parser.add_argument("--rounds", type=int, default=5, help="rounds, frontier and sdxl")
    parser.add_argument("--asked", type=float, default=0.8, help="share of the time, emoji")
    parser.add_argument("--statistics", type=Path, help="folder of the emoji's statistics")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    work = args.work or Path.home() / ".cache" / "slimdiff" / "speed"
    measures = {
        "attention": _attention,
        "emoji": _emoji,
        "frontier": _frontier,
        "sdxl": _sdxl,
        "team": _team,
    }
    for part in args.parts:
        found, lines = measures[part](args, work)
        device = device_name(torch.device("cpu"))
        write_json(work / f"{part}.json", {"device": device, "versions": versions(), **found})
        write_text(work / f"{part}.md", "\n".join(lines) + "\n")
        print("\n".join(lines), flush=True)


Found = tuple[dict[str, Any], list[str]]


def _attention(args: argparse.Namespace, work: Path) -> Found:
    rows = overhead(torch.float32, 0.5 if args.quick else 10.0)
    table = _table(
        ("ours / stock, median", "fastest", "channels", "tokens", "rounds"),
        [(r["ratio"], r["fastest"], r["channels"], r["tokens"], r["rounds"]) for r in rows],
    )
    return {"rows": rows}, table


def _emoji(args: argparse.Namespace, work: Path) -> Found:
    quick = args.quick
    sampling = Sampling(steps=2 if quick else 20, guidance=2.0, batch_size=1 if quick else 8)
    found = asked_and_got(
        0.95 if quick else args.asked,
        repeats=1 if quick else 3,
        prompts=2 if quick else 64,
        held_out=1 if quick else 24,
        sampling=sampling,
        folder=args.statistics or work / "statistics",
    )
    lines = _table(
        ("asked", "planned", "got"), [(r["asked"], r["planned"], r["got"]) for r in found["runs"]]
    )
    names = ("budget", "time", "params", "macs", "noise_rel_mse")
    lines += ["", *_table(names, [[r[name] for name in names] for r in found["equal_time"]])]
    return found, lines


def _frontier(args: argparse.Namespace, work: Path) -> Found:
    resolution = 64 if args.quick else args.resolution
    model = random_model("SD 1.5", torch.bfloat16)
    reductions = ["-100M"] if args.quick else args.reductions
    rounds = 1 if args.quick else args.rounds
    rows = frontier(model, call_of(model, resolution, 2), reductions, rounds)
    names = ("plan", "time", "macs", "params", "parameters", "narrowest")
    settings = {"resolution": resolution, "batch": 2, "dtype": "bfloat16", "rounds": rounds}
    return {**settings, "rows": rows}, _table(names, [[r[name] for name in names] for r in rows])


def _sdxl(args: argparse.Namespace, work: Path) -> Found:
    model = random_model("SDXL", torch.bfloat16)
    resolution = 64 if args.quick else args.resolution
    rounds = 1 if args.quick else args.rounds
    found = uniform_step(model, call_of(model, resolution, 2), 0.6, rounds)
    names = ("time", "macs", "time / macs", "params")
    settings = {"resolution": resolution, "batch": 2, "dtype": "bfloat16", "rounds": rounds}
    return {**settings, "pool": 0.6, **found}, _table(names, [[found[name] for name in names]])


def _team(args: argparse.Namespace, work: Path) -> Found:
    found = throughput(4, 2, 1) if args.quick else throughput(64, 20, 3)
    names = ("sampling", "whole", "prompts", "steps")
    return found, _table(names, [[found[name] for name in names]])


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return lines + [f"| {' | '.join(map(_text, row))} |" for row in rows]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value >= 0.01 else f"{value:.2e}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    try:
        main()
    except SlimdiffError as error:
        raise SystemExit(str(error)) from None
