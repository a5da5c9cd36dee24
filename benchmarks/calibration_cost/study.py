"""Sampling with and without hooks in turn, and the error that a token subset costs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from diffusers import DiffusionPipeline

from slimdiff import Budget, Sampling, calibrate, families
from slimdiff.denoiser import denoiser
from slimdiff.fidelity import measure_fidelity
from slimdiff.prompts import split
from slimdiff.recipe import cut
from slimdiff.recording import TokenSampling, empty_sums, recording
from slimdiff.sampling import sample_latents
from slimdiff.timing import in_turn, median_ratio

__all__ = ["sampling_cost", "token_loss"]


def sampling_cost(
    pipe: DiffusionPipeline, sampling: Sampling, tokens: Sequence[int | float | None], rounds: int
) -> list[dict[str, Any]]:
    """Time of sampling a batch under hooks to that without, for each size of the token subset."""
    model = denoiser(pipe)
    sites = families.find(model).sites(model)
    prompts = [(i, "a picture") for i in range(sampling.batch_size)]
    sums = empty_sums(sites, model.device)

    def plain() -> None:
        sample_latents(pipe, prompts, sampling)

    def watched(count: int | None) -> None:
        with recording(model, sites, sums, tokens=TokenSampling(count)):
            sample_latents(pipe, prompts, sampling)

    runs = [plain, *(lambda c=count: watched(c) for count in tokens)]
    times = in_turn(runs, least=rounds, seconds=0.0)
    return [
        {
            "tokens": count,
            "ratio": median_ratio(times, i, 0),
            "fastest": min(r[i] for r in times) / min(r[0] for r in times),
            "seconds": median(r[i] for r in times),
            "rounds": len(times),
        }
        for i, count in enumerate(tokens, 1)
    ]


def token_loss(
    pipe: DiffusionPipeline,
    pool: Sequence[str],
    prompts: int,
    held_out: int,
    sampling: Sampling,
    tokens: Sequence[int | float | None],
    share: float,
) -> list[dict[str, Any]]:
    """Error on held-out prompts after calibrating on each subset, at one share of the pool.

    The first of ``tokens`` is what the others are set beside.
    """
    texts, compared = split(pool, prompts)
    rows: list[dict[str, Any]] = []
    for count in tokens:
        stats = calibrate(pipe, texts, sampling=sampling, tokens=count)
        slim = cut(pipe, stats, Budget(pool=share))
        fidelity, _ = measure_fidelity(pipe, slim, compared[:held_out], sampling)
        error = fidelity.noise_rel_mse
        base = rows[0]["noise_rel_mse"] if rows else error
        rows.append({"tokens": count, "noise_rel_mse": error, "loss": error / base - 1})
    return rows
