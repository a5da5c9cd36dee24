"""SlimSet: the few prompts of a pool that stand in for all of it.

Problem: calibration draws a picture for every prompt, so it can afford tens of prompts, not the
thousands that a model is used for. Which N of a pool come closest to all of them?

Every prompt i becomes a unit vector e_i: what the pipeline's own text encoders make of it. A set
S is as good as its coverage, the mean over the pool of the cosine to the nearest chosen prompt:

    coverage(S) = 1/n sum_i max_{j in S} <e_i, e_j>

- :func:`facility_location` adds the prompt that raises coverage most. Greedy comes within
  1 - 1/e of the best set, coverage counted from -1, where every cosine starts (Nemhauser, Wolsey,
  Fisher, "An analysis of approximations for maximizing submodular set functions", 1978). Gains
  only shrink as S grows, so old gains bound new ones and few are computed again (Minoux,
  "Accelerated greedy algorithms", 1978).
- :func:`k_center` adds the prompt that is farthest from S. The largest distance |e_i - e_j| of
  any prompt to S is at most twice the least possible (Gonzalez, "Clustering to minimize the
  maximum intercluster distance", 1985).

Both are greedy: the first N of a longer answer are the answer for N. SlimDiff (arXiv 2509.21498)
names SlimSet "a semantic coreset" and no more; that it is these two is our reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .errors import SlimdiffError
from .prompts import split

__all__ = [
    "METHODS",
    "Cover",
    "Selection",
    "candidates",
    "coverage",
    "dataset_captions",
    "embed_prompts",
    "facility_location",
    "k_center",
    "select_prompts",
]

# What two sums of the same numbers in another order differ by, and more; less is a tie.
_TIE = 1e-12
_BLOCK = 64
_RANDOM_SETS = 10
_LONGEST = 256  # tokens; text encoders without a limit of their own


@dataclass(frozen=True)
class Cover:
    """Rows in the order they were chosen, and the coverage after each.

    ``order`` is (count,) int64, ``coverage`` (count,) float64.
    """

    order: Tensor
    coverage: Tensor


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


def coverage(embeddings: Tensor, chosen: Tensor) -> float:
    """Mean over the (n, D) unit rows of the largest cosine to the ``chosen`` ones, (k,) int64."""
    nearest = [(rows @ embeddings[chosen].T).amax(1) for rows in embeddings.split(_BLOCK)]
    return float(torch.cat(nearest).mean())


def facility_location(embeddings: Tensor, count: int) -> Cover:
    """Greedy for coverage: each row chosen is the one that adds most, ties to the first.

    ``embeddings``: (n, D) float64, unit rows. Takes memory for n x 64 cosines, never n x n.
    """
    nearest = _start(embeddings, count)
    bound = torch.cat([_gains(embeddings, nearest, j) for j in _blocks(embeddings)])
    chosen = _Chosen(embeddings, nearest)
    for _ in range(count):
        pick = _largest_gain(embeddings, nearest, bound)
        bound[pick] = -torch.inf
        chosen.add(pick)
    return chosen.cover()


def k_center(embeddings: Tensor, count: int) -> Cover:
    """Farthest first: each row chosen is the one least like those before, ties to the first.

    The first is the one most like all others. ``embeddings``: (n, D) float64, unit rows.
    """
    chosen = _Chosen(embeddings, _start(embeddings, count))
    free = embeddings.new_zeros(len(embeddings))
    score = embeddings @ embeddings.mean(0)
    for _ in range(count):
        pick = _first_largest(score + free)
        free[pick] = -torch.inf
        chosen.add(pick)
        score = -chosen.nearest
    return chosen.cover()


METHODS: dict[str, Callable[[Tensor, int], Cover]] = {
    "facility": facility_location,
    "k-center": k_center,
}


class _Chosen:
    """Rows chosen so far; ``nearest`` (n,) holds every row's cosine to the nearest of them."""

    def __init__(self, embeddings: Tensor, nearest: Tensor) -> None:
        self.embeddings, self.nearest = embeddings, nearest
        self._order: list[int] = []
        self._coverage: list[float] = []

    def add(self, row: int) -> None:
        cosines = self.embeddings @ self.embeddings[row]
        torch.maximum(self.nearest, cosines, out=self.nearest)
        self._order.append(row)
        self._coverage.append(float(self.nearest.mean()))

    def cover(self) -> Cover:
        return Cover(torch.tensor(self._order), torch.tensor(self._coverage, dtype=torch.float64))


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


def _start(embeddings: Tensor, count: int) -> Tensor:
    """Cosine of every row to the nearest of no rows: the least there is."""
    if not 1 <= count <= len(embeddings):
        raise SlimdiffError(
            f"{count} prompts of {len(embeddings)} were asked for; expected 1 to "
            f"{len(embeddings)}. Give a larger pool."
        )
    return embeddings.new_full((len(embeddings),), -1.0)


def _blocks(embeddings: Tensor) -> tuple[Tensor, ...]:
    return torch.arange(len(embeddings)).split(_BLOCK)


def _gains(embeddings: Tensor, nearest: Tensor, rows: Tensor) -> Tensor:
    """What each of ``rows`` (k,) would add to the coverage, (k,)."""
    cosines = embeddings @ embeddings[rows].T
    return (cosines - nearest[:, None]).clamp(min=0).mean(0)


def _largest_gain(embeddings: Tensor, nearest: Tensor, bound: Tensor) -> int:
    """The row of largest gain; ``bound`` holds gains that may be too large and is brought down.

    Every row whose bound reaches the largest fresh gain is computed afresh, so none is missed.
    """
    fresh = torch.full_like(bound, -torch.inf)
    while True:
        waiting = (fresh == -torch.inf) & (bound >= fresh.max() - _TIE) & (bound > -torch.inf)
        rows = waiting.nonzero()[:, 0]
        if not len(rows):
            return _first_largest(fresh)
        rows = rows[bound[rows].argsort(descending=True)[:_BLOCK]]
        fresh[rows] = bound[rows] = _gains(embeddings, nearest, rows)


def _first_largest(score: Tensor) -> int:
    return int((score >= score.max() - _TIE).nonzero()[0])


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
