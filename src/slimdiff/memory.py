"""Batches that do not fit into memory are halved, aloud, instead of ending the job."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from .sampling import IndexedPrompt

__all__ = ["OUT_OF_MEMORY", "halved", "halving"]

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)

Result = TypeVar("Result")


def halved(size: int, error: BaseException) -> int:
    """Half of a batch of ``size`` that met ``error``, said so and memory given back.

    Raises ``error`` if the batch was a single prompt.
    """
    if size <= 1:
        raise error
    logging.getLogger(__name__).warning(
        "Out of memory with %d prompts a batch; going on with %d. Pass --batch-size %d next time.",
        *(size, size // 2, size // 2),
    )
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2


def halving(
    batches: Iterable[Sequence[IndexedPrompt]],
    work: Callable[[Sequence[IndexedPrompt]], Result],
) -> Iterator[tuple[Sequence[IndexedPrompt], Result]]:
    """Every batch and ``work`` of it, which must not add up outside.

    A batch that does not fit into memory is done again in halves, and so are all that follow.
    """
    fitting = sys.maxsize
    for batch in batches:
        start = 0
        while start < len(batch):
            part = batch[start : start + fitting]
            try:
                result = work(part)
            except OUT_OF_MEMORY as error:
                # Frames would keep the tensors of the batch alive.
                fitting = halved(len(part), error.with_traceback(None))
            else:
                yield part, result
                start += len(part)
