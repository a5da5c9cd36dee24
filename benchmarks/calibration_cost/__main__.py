"""``python -m benchmarks.calibration_cost``: the command line and the tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.models import random_model
from slimdiff import Sampling, families
from slimdiff.environment import device_name, versions
from slimdiff.errors import SlimdiffError
from slimdiff.files import write_json, write_text
from slimdiff.pipelines import EMOJI, open_pipeline, preset
from slimdiff.prompts import read_prompts

from .cutting import cutting_cost
from .study import sampling_cost, token_loss

_PARTS = ("sampling", "loss", "cutting")
_SUBSETS = (None, 0.5, 0.25, 0.125)


def main(argv: list[str] | None = None) -> None:
    """Measure, then write one JSON file and one table a part."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration_cost", description=main.__doc__
    )
    parser.add_argument("--work", type=Path, help="folder for results (default: ~/.cache/...)")
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see it work")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    work = args.work or Path.home() / ".cache" / "slimdiff" / "calibration-cost"
    measures = {"sampling": _sampling, "loss": _loss, "cutting": _cutting}
    for part in args.parts:
        rows = measures[part](args.quick)
        device = device_name(torch.device("cpu"))
        write_json(work / f"{part}.json", {"device": device, "versions": versions(), "rows": rows})
        lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
        lines += [f"| {' | '.join(map(_text, row.values()))} |" for row in rows]
        write_text(work / f"{part}.md", "\n".join(lines) + "\n")
        print("\n".join(lines), flush=True)


def _sampling(quick: bool) -> list[dict[str, Any]]:
    sampling = Sampling(steps=1 if quick else 20, guidance=2.0, batch_size=1 if quick else 8)
    subsets = _SUBSETS[:2] if quick else _SUBSETS
    return sampling_cost(open_pipeline(EMOJI), sampling, subsets, rounds=1 if quick else 5)


def _loss(quick: bool) -> list[dict[str, Any]]:
    found = preset(EMOJI)
    assert found is not None
    pool, pipe = read_prompts(found.prompts), open_pipeline(EMOJI)
    sampling = Sampling(steps=1 if quick else 20, guidance=2.0, batch_size=1 if quick else 8)
    if quick:
        return token_loss(pipe, pool, 1, 1, sampling, (None, 64), share=0.9)
    return token_loss(pipe, pool, 64, 24, sampling, _SUBSETS, share=0.6)


def _cutting(quick: bool) -> list[dict[str, Any]]:
    if not quick:
        return [cutting_cost(lambda: random_model("SD 1.5", torch.float32), 0.88)]
    unet = next(f for f in families.families() if f.name == "unet")
    return [cutting_cost(lambda: unet.tiny()[0], 0.9)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2e}"
    if value is None:
        return "all"
    return value if isinstance(value, str) else f"{value:,}"


if __name__ == "__main__":
    try:
        main()
    except SlimdiffError as error:
        raise SystemExit(str(error)) from None
