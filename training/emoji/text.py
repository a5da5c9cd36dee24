"""Captions and batches, prepared ahead because tokenising in the training loop costs time."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from training.emoji.common import MAX_TOKENS, Drawing, random_caption


def tokenise(
    tokenizer: CLIPTokenizer,
    drawings: list[Drawing],
    variants: int,
    rng: random.Random,
    empty: float = 0.1,
) -> Tensor:
    """Several random captions of every drawing: N x variants x MAX_TOKENS."""
    texts = [random_caption(drawing, rng, empty) for drawing in drawings for _ in range(variants)]
    ids = tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    ).input_ids
    return ids.view(len(drawings), variants, -1)


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Indices below `count`, shuffled anew each time round, `size` at a time, forever."""
    pending = torch.empty(0, dtype=torch.long)
    while True:
        while len(pending) < size:
            pending = torch.cat([pending, torch.randperm(count)])
        yield pending[:size]
        pending = pending[size:]
