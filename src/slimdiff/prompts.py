"""Prompt pools: what to calibrate on, and what to hold out for comparison."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import SlimdiffError
from .sampling import IndexedPrompt

__all__ = [
    "HELD_OUT_FROM",
    "NUM_PROMPTS",
    "dataset_captions",
    "part_of",
    "read_prompts",
    "split",
]

HELD_OUT_FROM = 1_000_000

NUM_PROMPTS = 256
"""Calibration prompts by default, after ``benchmarks.calibration``."""

_HELD_OUT_SHARE = 10
_HELD_OUT_LEAST = 8


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a text file, one a line; empty lines and lines that start with # are skipped."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise SlimdiffError(
            f"No prompt file at '{path}'; expected a text file, one prompt a line."
        ) from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise SlimdiffError(
            f"'{path}' is not a prompt file ({error}); expected UTF-8 text, one prompt a line."
        ) from None
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise SlimdiffError(f"Prompt file '{path}' is empty; expected at least one prompt a line.")
    return prompts


def split(
    pool: Sequence[str], num_prompts: int, held_out: Sequence[str] | None = None
) -> tuple[list[str], list[IndexedPrompt]]:
    """Calibration prompts, and held-out prompts with the index that seeds them.

    Held out are ``held_out`` if given, else the last tenth of the pool, at least 8; the first
    ``num_prompts`` of what remains calibrate. No text is in both, and held-out prompts are
    numbered from ``HELD_OUT_FROM``, so that their seeds are the same in every run and none
    calibrated.
    """
    if num_prompts < 1:
        raise SlimdiffError(f"--num-prompts is {num_prompts}; expected 1 or more.")
    if held_out is None:
        count = max(_HELD_OUT_LEAST, len(pool) // _HELD_OUT_SHARE)
        if count >= len(pool):
            raise SlimdiffError(
                f"The prompt pool has {len(pool)} prompts, but {count} are held out to compare; "
                f"expected at least {count + 1}. Give more prompts, or --eval-prompts FILE."
            )
        pool, held_out = pool[:-count], pool[-count:]
    kept_apart = set(held_out)
    calibration = [prompt for prompt in pool if prompt not in kept_apart][:num_prompts]
    if not calibration:
        raise SlimdiffError(
            "Every calibration prompt is also held out to compare; expected different prompts. "
            "Give more --prompts, or other --eval-prompts."
        )
    return calibration, list(enumerate(held_out, HELD_OUT_FROM))


def part_of(prompts: Sequence[str], part: str | None) -> tuple[int, list[str]]:
    """The K-th of N consecutive parts of ``prompts``, and the index of its first; None is all.

    Raises SlimdiffError unless ``part`` is K/N with 1 <= K <= N and no part is empty.
    """
    if part is None:
        return 0, list(prompts)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    k, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= k <= n <= len(prompts):
        raise SlimdiffError(
            f"Part '{part}' is not a part of {len(prompts)} prompts; expected K/N like 1/4, with "
            "K from 1 to N and at least one prompt a part."
        )
    start, end = (len(prompts) * i // n for i in (k - 1, k))
    return start, list(prompts[start:end])


def dataset_captions(name: str, column: str, split: str, limit: int) -> list[str]:
    """Captions in the first ``limit`` rows of a dataset on the Hugging Face hub, streamed.

    Where a row has a list of captions the first counts. White space becomes single spaces; empty
    captions, repeated ones and those that start with #, comments in a prompt file, are left out.
    """
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SlimdiffError(
            f"Dataset '{name}' needs the library 'datasets', which is not installed. "
            "Run: pip install 'slimdiff[datasets]', or give --pool FILE."
        ) from None
    found: dict[str, None] = {}
    try:
        for row in load_dataset(name, split=split, streaming=True).take(limit):
            if caption := _caption(name, column, row):
                found[caption] = None
    except SlimdiffError:
        raise
    except Exception as error:  # whatever the library, the network or the dataset's files raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise SlimdiffError(
            f"Dataset '{name}' (split '{split}') cannot be read: {reason}. Check its name on the "
            "hub and --split, or give --pool FILE."
        ) from error
    return list(found)


def _caption(name: str, column: str, row: dict[str, Any]) -> str | None:
    if column not in row:
        raise SlimdiffError(
            f"Dataset '{name}' has no column '{column}'; it has {', '.join(row)}. "
            "Name one of text with --column."
        )
    value = row[column]
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str | None):
        raise SlimdiffError(
            f"Column '{column}' of dataset '{name}' holds {type(value).__name__}; expected text. "
            f"Its columns are {', '.join(row)}: name one of text with --column."
        )
    text = " ".join((value or "").split())
    return None if text.startswith("#") else text
