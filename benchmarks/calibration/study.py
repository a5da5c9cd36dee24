"""Calibrates, cuts and measures one variant."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.methods.bench import Bench
from benchmarks.methods.measure import errors
from slimdiff import Budget, Statistics, calibrate, finish, merge
from slimdiff.denoiser import denoiser
from slimdiff.errors import SlimdiffError
from slimdiff.feedback import repair_
from slimdiff.prompts import split
from slimdiff.recipe import cut
from slimdiff.slimset import select_prompts

from .variants import Variant

__all__ = ["measure"]

_FIRST = 1024
"""Prompt numbers of seed s start at ``_FIRST * s``: other seeds see other noise too."""


def measure(bench: Bench, variant: Variant, pool: float) -> dict[str, Any]:
    """Errors of the pipeline slimmed to ``pool`` from this calibration, and its seconds."""
    stats = _statistics(bench, variant)
    begin = time.perf_counter()
    slim = cut(bench.dense, stats, Budget(pool=pool))
    if variant.rounds:
        repair_(bench.dense, slim, stats, variant.rounds)
    return {
        **asdict(variant),
        **asdict(errors(slim, bench.reference)),
        "parameters": denoiser(slim).num_parameters(),
        "calibration_seconds": round(stats.header.seconds, 1),
        "cut_seconds": round(time.perf_counter() - begin, 1),
    }


def _statistics(bench: Bench, variant: Variant) -> Statistics:
    if variant.pick == "random" and variant.weights == "uniform":
        return _nested(bench, variant)
    texts = _prompts(bench, variant)
    return _calibrate(bench, variant, texts, 0, variant.name)


def _nested(bench: Bench, variant: Variant) -> Statistics:
    """More random prompts hold the fewer: sums of doubling chunks are gathered once and merged."""
    texts = _prompts(bench, replace(variant, prompts=_most(bench)))
    parts, at, size = [], 0, 2
    while at < variant.prompts:
        chunk = texts[at : at + size]
        label = f"random-{variant.steps}-{variant.seed}-{at}"
        parts.append(_calibrate(bench, variant, chunk, at, label))
        at += len(chunk)
        size = at
    if at != variant.prompts:
        raise SlimdiffError(f"{variant.prompts} prompts asked; expected a power of two.")
    return parts[0] if len(parts) == 1 else finish(bench.dense, merge(parts))


def _calibrate(
    bench: Bench, variant: Variant, texts: Sequence[str], at: int, label: str
) -> Statistics:
    return calibrate(
        bench.dense,
        texts,
        sampling=replace(bench.sampling, steps=variant.steps),
        start=_FIRST * variant.seed + at,
        timestep_weights=variant.weights,
        folder=_folder(bench, label),
    )


def _folder(bench: Bench, label: str) -> Path:
    return bench.work / "statistics" / label


def _most(bench: Bench) -> int:
    return len(split(bench.prompts, len(bench.prompts))[0])


def _prompts(bench: Bench, variant: Variant) -> list[str]:
    rest, _ = split(bench.prompts, len(bench.prompts))
    if variant.prompts > len(rest):
        raise SlimdiffError(
            f"{variant.prompts} calibration prompts asked, {len(rest)} there. Ask for fewer."
        )
    shuffled = random.Random(variant.seed).sample(rest, len(rest))
    if variant.pick == "random":
        return shuffled[: variant.prompts]
    # A random half to choose from, so that seeds differ.
    half = shuffled[: max(variant.prompts, len(rest) // 2)]
    found = select_prompts(bench.dense, half, variant.prompts, method=variant.pick)
    return list(found.prompts)
