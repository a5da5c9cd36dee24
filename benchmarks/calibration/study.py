"""Calibrates, cuts and measures one variant."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.methods.bench import Bench
from slimdiff import Budget, Statistics, calibrate, finish, merge
from slimdiff.calibration import prepare
from slimdiff.denoiser import denoiser
from slimdiff.errors import SlimdiffError
from slimdiff.feedback import repair_
from slimdiff.gains import output_error
from slimdiff.gathering import SAVE_EVERY, gather, resumed
from slimdiff.prompts import split
from slimdiff.recipe import cut
from slimdiff.sampling import Sampling
from slimdiff.slimset import select_prompts
from slimdiff.weighting import timestep_weighting

from .variants import Variant

__all__ = ["measure"]

_FIRST = 1024
"""Prompt numbers of seed s start at ``_FIRST * s``: other seeds see other noise too."""


def measure(bench: Bench, variant: Variant, pool: float) -> dict[str, Any]:
    """Error of the pipeline slimmed to ``pool`` from this calibration, and its seconds."""
    stats = _statistics(bench, variant)
    at = time.perf_counter()
    slim = cut(bench.dense, stats, Budget(pool=pool))
    if variant.rounds:
        repair_(bench.dense, slim, stats, variant.rounds)
    seconds = time.perf_counter() - at
    return {
        **asdict(variant),
        "noise_rel_mse": output_error(denoiser(slim).eval(), bench.reference.calls),
        "parameters": denoiser(slim).num_parameters(),
        "calibration_seconds": round(stats.header.seconds, 1),
        "cut_seconds": round(seconds, 1),
    }


def _statistics(bench: Bench, variant: Variant) -> Statistics:
    if variant.pick == "random" and variant.weights == "uniform":
        return _nested(bench, variant)
    return calibrate(
        bench.dense,
        _prompts(bench, variant),
        sampling=_sampling(bench, variant),
        start=_FIRST * variant.seed,
        timestep_weights=variant.weights,
        folder=_folder(bench, variant.name),
    )


def _nested(bench: Bench, variant: Variant) -> Statistics:
    """More random prompts hold the fewer: doubling chunks are summed once, merged and finished."""
    folder = _folder(bench, f"random-{variant.prompts}x{variant.steps}-{variant.seed}")
    if Statistics.exists(folder):
        return Statistics.load(folder)
    texts = _prompts(bench, replace(variant, prompts=_most(bench)))
    parts, at, size = [], 0, 2
    while at < variant.prompts:
        parts.append(_summed(bench, variant, texts[at : at + size], at))
        at += size
        size = at
    if at != variant.prompts:
        raise SlimdiffError(f"{variant.prompts} prompts asked; expected a power of two.")
    finish(bench.dense, merge(parts)).save(folder)
    return Statistics.load(folder)


def _summed(bench: Bench, variant: Variant, texts: Sequence[str], at: int) -> Statistics:
    """The sums of one chunk; what follows from sums is found for whole sets only."""
    folder = _folder(bench, f"random-{variant.steps}-{variant.seed}-{at}")
    prompts = list(enumerate(texts, _FIRST * variant.seed + at))
    fresh = prepare(bench.dense, prompts, _sampling(bench, variant))
    stats = resumed(fresh, folder)
    if stats.header.done < len(stats.header.prompts):
        weights = timestep_weighting(bench.dense, stats.header)
        gather(bench.dense, stats, folder, weights, SAVE_EVERY)
    return Statistics.load(folder)  # sums are read when used


def _sampling(bench: Bench, variant: Variant) -> Sampling:
    return replace(bench.sampling, calibration_steps=variant.steps)


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
