"""SlimSet: the few prompts of a pool that stand in for all of it.

Problem: calibration draws a picture for every prompt, so it can afford tens of prompts, not the
thousands that a model is used for. Which N of a pool come closest to all of them?

Every prompt becomes a unit vector, what the pipeline's own text encoders make of it, and the
prompts are chosen that cover the others best (:mod:`slimdiff.coverage`). SlimDiff (arXiv
2509.21498) names SlimSet "a semantic coreset" and no more; that it is this is our reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .coverage import METHODS, Cover, coverage
from .errors import SlimdiffError
from .prompts import split

__all__ = [
    "Selection",
    "candidates",
    "embed_prompts",
    "select_prompts",
]

_RANDOM_SETS = 10
_LONGEST = 256  # tokens; text encoders without a limit of their own


@dataclass(frozen=True)
class Selection:
    """Chosen prompts, best first, with ``coverage[i]`` that of the first i + 1.

    ``first`` and ``random`` are what as many prompts cover that were not chosen with care: the
    first of the pool, and the mean of ten random sets with seeds 0 to 9.
    """

    prompts: list[str]
    coverage: list[float]
    first: float
    random: float


def select_prompts(
    pipe: DiffusionPipeline,
    pool: Sequence[str],
    count: int,
    *,
    method: str = "facility",
    batch_size: int = 32,
) -> Selection:
    """The ``count`` prompts of ``pool`` that cover it best, seen by the text encoders of ``pipe``.

    What :func:`slimdiff.prompts.split` holds out of ``pool``, its last tenth and at least 8, is
    neither chosen nor covered, nor is another copy of it: the set can be compared on those.
    """
    choose, texts = _method(method), candidates(pool, count)
    embeddings = embed_prompts(pipe, texts, batch_size)
    cover = choose(embeddings, count)
    return Selection(
        [texts[i] for i in cover.order.tolist()],
        cover.coverage.tolist(),
        coverage(embeddings, torch.arange(count)),
        _random_coverage(embeddings, count),
    )


def candidates(pool: Sequence[str], count: int = 1) -> list[str]:
    """The different prompts that may be chosen, in the pool's order; ``count`` or more."""
    calibration, held_out = split(pool, max(1, len(pool)))
    forbidden = {text for _, text in held_out}
    texts = [text for text in dict.fromkeys(calibration) if text not in forbidden]
    if not 1 <= count <= len(texts):
        raise SlimdiffError(
            f"--num-prompts is {count}; expected 1 to {len(texts)}, the different prompts of the "
            f"pool's {len(pool)} that are not held out. Change it, or give a larger pool."
        )
    return texts


def embed_prompts(pipe: DiffusionPipeline, prompts: Sequence[str], batch_size: int = 32) -> Tensor:
    """Unit rows (n, D) float64 on the CPU: what the pipeline's text encoders make of each prompt.

    A CLIP encoder gives its pooled (or projected) output, any other, such as T5, the mean of its
    last hidden states over the prompt's tokens. Several encoders count alike: each one's vector
    is brought to length 1, then they are joined.
    """
    encoders = _encoders(pipe)
    rows = []
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        parts = [_unit(_pooled(tokenizer, model, batch)) for tokenizer, model in encoders]
        rows.append(_unit(torch.cat(parts, 1)))
    embeddings = torch.cat(rows)
    if not embeddings.isfinite().all():
        raise SlimdiffError(
            f"The text encoders of {type(pipe).__name__} give values that are not finite in "
            f"{encoders[0][1].dtype}; expected finite ones. Try --dtype float32."
        )
    return embeddings


def _method(name: str) -> Callable[[Tensor, int], Cover]:
    if name not in METHODS:
        raise SlimdiffError(f"Unknown --method '{name}'; expected {' or '.join(METHODS)}.")
    return METHODS[name]


def _random_coverage(embeddings: Tensor, count: int) -> float:
    total = 0.0
    for seed in range(_RANDOM_SETS):
        order = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(seed))
        total += coverage(embeddings, order[:count])
    return total / _RANDOM_SETS


def _encoders(pipe: Any) -> list[tuple[Any, Any]]:
    """Tokenizers and text encoders of a pipeline, in its own order."""
    names = [("tokenizer" + end, "text_encoder" + end) for end in ("", "_2", "_3", "_4")]
    pairs = [(getattr(pipe, t, None), getattr(pipe, e, None)) for t, e in names]
    pairs = [(t, e) for t, e in pairs if t is not None and e is not None]
    if not pairs:
        raise SlimdiffError(
            f"{type(pipe).__name__} has no text encoder to choose prompts with; expected a "
            "text-to-image pipeline. Choose the prompts by hand."
        )
    return pairs


@torch.no_grad()
def _pooled(tokenizer: Any, encoder: Any, texts: list[str]) -> Tensor:
    tokens = tokenizer(
        texts,
        padding=True,
        truncation=True,
        max_length=min(tokenizer.model_max_length, _LONGEST),
        return_tensors="pt",
    ).to(encoder.device)
    mask = tokens.attention_mask
    result = encoder(tokens.input_ids, attention_mask=mask)
    for name in ("text_embeds", "pooler_output"):
        if (pooled := getattr(result, name, None)) is not None:
            return pooled.cpu().double()
    states, mask = result.last_hidden_state.cpu().double(), mask.cpu().double()[..., None]
    return (states * mask).sum(1) / mask.sum(1)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
