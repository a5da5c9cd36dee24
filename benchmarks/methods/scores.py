"""What pictures are worth, by metrics of torchmetrics and by the embedded judge, a small CLIP.

``psnr_db``, ``ssim``  against the dense model's picture of the same prompt and noise
``clip``               CLIP score: 100 times the cosine of picture and prompt, at least 0
``r_at_1``             share of pictures whose own prompt the judge ranks first among all prompts
                       of the pool, told in the same artist's style (chance is one in 640)
``kid``                kernel distance to the dense pictures in the judge's image embedding

Everything is averaged over the prompts. The judge was trained on drawings, not on pictures of any
method here. LPIPS is not computed: its weights are not at hand offline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.multimodal import CLIPScore
from training.emoji.common import Drawing
from training.emoji.retrieval import Judge, load_judge

from slimdiff.errors import SlimdiffError

__all__ = ["Scorer", "bootstrap_ratio"]

PSNR_CAP = 100.0
_RESAMPLES = 10_000
_KID_SUBSETS = 100
_MARK = " style emoji"


class Scorer:
    """Scores pictures, uint8, shape (n, 3, H, W), of one list of prompts."""

    def __init__(self, judge: Path, pool: Sequence[str], prompts: Sequence[str]) -> None:
        self.folder, self.prompts = judge, list(prompts)
        self.judge = Judge(judge, [_drawing(prompt) for prompt in pool])

    def score(self, pictures: Tensor, dense: Tensor) -> dict[str, Any]:
        """All scores, and under ``hits`` whether the judge ranked each picture's prompt first."""
        hits = self.judge.ranks(pictures, [_drawing(p) for p in self.prompts]) == 0
        psnr, ssim = _likeness(pictures, dense)
        return {
            "psnr_db": psnr,
            "ssim": ssim,
            "clip": self._clip(pictures),
            "r_at_1": hits.float().mean().item(),
            "kid": self._kid(pictures, dense),
            "lpips": None,
            "hits": hits.int().tolist(),
        }

    def _clip(self, pictures: Tensor) -> float:
        metric = CLIPScore(lambda: load_judge(self.folder))  # pyright: ignore
        for part, texts in zip(pictures.split(64), _chunks(self.prompts, 64), strict=True):
            metric.update(list(part), texts)
        return float(metric.compute())

    def _kid(self, pictures: Tensor, dense: Tensor) -> float:
        """Mean over random halves, drawn alike for every method."""
        metric = KernelInceptionDistance(
            feature=_ImageTower(self.judge), subsets=_KID_SUBSETS, subset_size=len(pictures) // 2
        )
        metric.update(dense, real=True)
        metric.update(pictures, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            mean, _ = metric.compute()
        return float(mean)


class _ImageTower(nn.Module):
    """The judge's image embedding, in the form KernelInceptionDistance takes."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.embed = judge.embed_pictures

    def forward(self, pictures: Tensor) -> Tensor:
        return self.embed(pictures)


def bootstrap_ratio(
    hits: Sequence[int], dense: Sequence[int], seed: int = 0
) -> dict[str, float] | None:
    """Share of hits relative to the dense model's, with a paired 95 % bootstrap interval.

    Prompts are resampled, both models' hits on a prompt together. None where the dense model has
    no hit, nor in resamples without one.
    """
    ours, theirs = np.array(hits, dtype=float), np.array(dense, dtype=float)
    if theirs.sum() == 0:
        return None
    picks = np.random.default_rng(seed).integers(0, len(ours), (_RESAMPLES, len(ours)))
    above, below = ours[picks].sum(1), theirs[picks].sum(1)
    ratios = above[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"ratio": float(ours.sum() / theirs.sum()), "low": float(low), "high": float(high)}


def _likeness(pictures: Tensor, dense: Tensor) -> tuple[float, float]:
    """Mean PSNR (dB, at most 100) and SSIM."""
    psnr, ssim = [], []
    for a, b in zip(pictures.split(1), dense.split(1), strict=True):
        a, b = a.float() / 255, b.float() / 255
        value = float(peak_signal_noise_ratio(a, b, data_range=1.0))
        psnr.append(PSNR_CAP if math.isinf(value) else min(value, PSNR_CAP))
        similarity = structural_similarity_index_measure(a, b, data_range=1.0)
        assert isinstance(similarity, Tensor)
        ssim.append(float(similarity))
    return sum(psnr) / len(psnr), sum(ssim) / len(ssim)


def _drawing(prompt: str) -> Drawing:
    """A prompt as the judge's retrieval takes it: what is drawn, and whose style."""
    label, _, style = prompt.rpartition(", ")
    artist = style.removesuffix(_MARK)
    if not label or artist == style:
        raise SlimdiffError(
            f"Prompt '{prompt}' does not end in ', ARTIST{_MARK}'; the judge expects the embedded "
            "pipeline's prompts."
        )
    return Drawing(artist, prompt, label)


def _chunks(texts: list[str], size: int) -> list[list[str]]:
    return [texts[i : i + size] for i in range(0, len(texts), size)]
