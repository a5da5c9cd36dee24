"""Pipelines that draw classes: a line of a prompt file is a class number or name there."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

from .denoiser import denoiser
from .errors import SlimdiffError

__all__ = ["class_labels", "class_names", "suited_pool", "takes_classes"]

_SEED = 0


def takes_classes(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline is asked for classes (DiT), not prompts."""
    return "class_labels" in inspect.signature(pipe.__call__).parameters  # pyright: ignore


def class_labels(pipe: DiffusionPipeline, texts: Sequence[str]) -> list[int]:
    """Class numbers of ``texts``. Raises SlimdiffError for what names no class."""
    count, names = _count(pipe), getattr(pipe, "labels", {})

    def number(text: str) -> int:
        found = int(text) if text.isdecimal() else names.get(text)
        if found is None or found >= count:
            known = f"or one of {len(names)} names" if names else "this model has no names"
            raise SlimdiffError(
                f"'{text}' is no class of this {type(pipe).__name__}; expected a number from 0 "
                f"to {count - 1} ({known}), one a line. Give --prompts such a file."
            )
        return found

    return [number(text) for text in texts]


def class_names(pipe: DiffusionPipeline) -> dict[str, str]:
    """Class number -> its names, separated by commas; empty if the pipeline knows none."""
    found: dict[str, list[str]] = {}
    for name, number in getattr(pipe, "labels", {}).items():
        found.setdefault(str(number), []).append(name)
    return {number: ", ".join(names) for number, names in found.items()}


def suited_pool(pipe: DiffusionPipeline, prompts: Sequence[str]) -> list[str]:
    """``prompts``; for a pipeline that draws classes all of these, in a fixed random order."""
    if not takes_classes(pipe):
        return list(prompts)
    generator = torch.Generator().manual_seed(_SEED)
    return [str(i) for i in torch.randperm(_count(pipe), generator=generator).tolist()]


def _count(pipe: DiffusionPipeline) -> int:
    return int(denoiser(pipe).config.num_embeds_ada_norm)
