"""``python -m benchmarks.calibration``: the command line, tables and figure."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.methods.bench import Bench
from benchmarks.methods.cells import once
from benchmarks.methods.settings import FULL as METHODS_FULL
from benchmarks.methods.settings import QUICK as METHODS_QUICK
from slimdiff.errors import SlimdiffError
from slimdiff.files import write_json, write_text

from .study import measure
from .variants import FULL, QUICK, Variant, variants

Answers = dict[str, list[dict[str, Any]]]
"""Question -> the results that answer it."""

_VARIED = {
    "prompts": "prompts",
    "choice": "pick",
    "steps": "steps",
    "split": "steps",
    "weights": "weights",
    "rounds": "rounds",
}
_TITLES = {
    "prompts": "How many prompts",
    "choice": "Which prompts",
    "steps": "How many steps",
    "split": "The same sampling spent on prompts or on steps",
    "weights": "Which timestep weights",
    "rounds": "How many rounds of error feedback",
}


def main(argv: list[str] | None = None) -> None:
    """Measure what has no result yet, then write results.json and table.md."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration", description=main.__doc__
    )
    parser.add_argument("--work", type=Path, help="folder for results (default: ~/.cache/...)")
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see it work")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    cache = Path.home() / ".cache" / "slimdiff" / "calibration"
    work = args.work or (cache / "quick" if args.quick else cache / "full")
    ranges = QUICK if args.quick else FULL
    settings = METHODS_QUICK if args.quick else METHODS_FULL
    bench = Bench(replace(settings, held_out=ranges.held_out), work)
    answers: Answers = {}
    for question, asked in variants(ranges).items():
        answers[question] = []
        for variant in asked:
            path = work / "variants" / f"{variant.name}.json"
            found = once(path, lambda v=variant: measure(bench, v, ranges.pool))
            answers[question].append(found)
            print(f"{variant.name}: {found['noise_rel_mse']:.3e}", flush=True)
    provenance = {**bench.provenance, "ranges": asdict(ranges)}
    write_json(work / "results.json", {"provenance": provenance, "answers": answers})
    write_text(work / "table.md", markdown(answers, provenance))
    print(f"Results in {work}")


def markdown(answers: Answers, origin: dict[str, Any]) -> str:
    """One table a question: error over the seeds, and its ratio to the plain calibration's."""
    plain, settings, versions = origin["ranges"], origin["settings"], origin["versions"]
    lines = [
        "# What calibration must look like",
        "",
        f"Embedded pipeline `{origin['model']}`, pool {plain['pool']:g}, "
        f"{settings['held_out']} held-out prompts, guidance {settings['guidance']:g}; "
        f"{origin['device']}, torch {versions['torch']}, diffusers {versions['diffusers']}. One "
        f"thing at a time is changed of {plain['prompts']} random prompts, {plain['steps']} "
        "steps, uniform weights, no rounds. Errors are relative squared errors of the "
        "denoiser's output, mean over the seeds (least to greatest), "
        f"{len(plain['seeds'])} of them where the prompts change, {len(plain['same_prompts'])} "
        "where they stay the same; the last column is the ratio to the plain calibration of the "
        "same seeds.",
    ]
    for question, results in answers.items():
        lines += ["", f"## {_TITLES[question]}", ""]
        columns = dict.fromkeys([_VARIED[question], "prompts"])
        lines.append(f"| {' | '.join(columns)} | error | to plain |")
        lines.append("|---|---|" + "---|" * len(columns))
        plain_ones = [r for r in results if _is_plain(r, plain)]
        base = fmean(_errors(plain_ones))
        for row in dict.fromkeys(tuple(r[name] for name in columns) for r in results):
            same = [r for r in results if tuple(r[name] for name in columns) == row]
            found = _errors(same)
            spread = f"{fmean(found):.2e}"
            if len(found) > 1:
                spread += f" ({min(found):.2e} to {max(found):.2e})"
            told = " | ".join(map(str, row))
            lines.append(f"| {told} | {spread} | x{fmean(found) / base:.3f} |")
    return "\n".join(lines) + "\n"


def _is_plain(result: dict[str, Any], plain: dict[str, Any]) -> bool:
    """Whether a result is the plain calibration's: nothing about it was changed."""
    variant = Variant(plain["prompts"], plain["steps"], result["seed"])
    return asdict(variant).items() <= result.items()


def _errors(results: list[dict[str, Any]]) -> list[float]:
    return [result["noise_rel_mse"] for result in results]


if __name__ == "__main__":
    try:
        main()
    except SlimdiffError as error:
        raise SystemExit(str(error)) from None
