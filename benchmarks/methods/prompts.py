"""Which prompts calibrate, which compare and which are drawn. No prompt does two of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from slimdiff.errors import SlimdiffError
from slimdiff.prompts import HELD_OUT_FROM, split
from slimdiff.sampling import IndexedPrompt

__all__ = ["FIRST", "calibration_prompts", "held_out_prompts", "picture_prompts"]

FIRST = 1024
"""Prompt numbers of seed s start at ``FIRST * s``: other seeds see other noise too."""


def calibration_prompts(pool: Sequence[str], seed: int, count: int) -> list[IndexedPrompt]:
    """The first ``count`` of what is not held out, shuffled by ``seed``; fewer are among more."""
    rest, _ = split(pool, len(pool))
    if count > min(len(rest), FIRST):
        raise SlimdiffError(
            f"{count} calibration prompts asked, {min(len(rest), FIRST)} there. Ask for fewer."
        )
    shuffled = random.Random(seed).sample(rest, len(rest))
    return list(enumerate(shuffled[:count], FIRST * seed))


def held_out_prompts(pool: Sequence[str], count: int) -> list[IndexedPrompt]:
    """The first ``count`` prompts that :func:`slimdiff.prompts.split` holds out."""
    _, held_out = split(pool, 1)
    if count > len(held_out):
        raise SlimdiffError(
            f"{count} held-out prompts asked, {len(held_out)} there. Ask for fewer."
        )
    return held_out[:count]


def picture_prompts(
    pool: Sequence[str], calibration: Sequence[IndexedPrompt], count: int
) -> list[IndexedPrompt]:
    """Held-out prompts, then prompts of the pool that ``calibration`` left out."""
    rest, held_out = split(pool, len(pool))
    used = {text for _, text in calibration}
    unseen = [text for _, text in held_out] + [text for text in rest if text not in used]
    if count > len(unseen):
        raise SlimdiffError(f"{count} picture prompts asked, {len(unseen)} there. Ask for fewer.")
    return list(enumerate(unseen[:count], HELD_OUT_FROM))
