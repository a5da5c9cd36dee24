"""What pictures are worth, by torchmetrics; what cannot be computed here says why.

``psnr``, ``ssim``  each slim picture against the dense one of the same prompt and noise
``lpips``           the same, by a network's features
``clip``            100 times the cosine of picture and prompt in the judge's embedding, at least 0
``fid``, ``kid``    distance of all slim pictures from all dense ones in that embedding: near 0 if
                    both draw alike, whether or not they draw well
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SlimdiffError
from .fidelity import picture_scores
from .intervals import mean_interval
from .judge import ImageTower, judge_place, load_judge

__all__ = ["METRICS", "Drawn", "NotComputed", "compute", "known_metrics"]

_KID_SUBSETS = 100
_CHUNK = 32


class NotComputed(Exception):
    """Why a metric has no value."""


@dataclass(frozen=True)
class Drawn:
    """Pictures of both pipelines, uint8, shape (n, 3, H, W), and who judges them."""

    prompts: Sequence[str]
    dense: Tensor
    slim: Tensor
    judge: str | None = None

    @cached_property
    def judging(self) -> tuple[Any, Any]:
        """Model and processor of the judge."""
        if self.judge is None:
            raise NotComputed("no judge was named; pass --judge")
        return load_judge(judge_place(self.judge))

    @cached_property
    def scores(self) -> dict[str, list[float]]:
        """PSNR and SSIM of every picture."""
        found: dict[str, list[float]] = {}
        sides = (self.dense.split(_CHUNK), self.slim.split(_CHUNK))
        for dense, slim in zip(*sides, strict=True):
            part = picture_scores(dense.float() / 255, slim.float() / 255)
            for name, values in part.items():
                found.setdefault(name, []).extend(values)
        return found


Metric = Callable[[Drawn], dict[str, Any]]


def known_metrics(names: Sequence[str]) -> list[str]:
    """``names`` as they stand. Raises SlimdiffError for one that does not exist."""
    for name in names:
        if name not in METRICS:
            raise SlimdiffError(
                f"Unknown metric '{name}'; expected some of {', '.join(METRICS)}, comma-separated."
            )
    return list(dict.fromkeys(names))


def compute(names: Sequence[str], drawn: Drawn) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by name, and for those that could not be computed the reason."""
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name in known_metrics(names):
        try:
            values = METRICS[name](drawn)
            if not math.isfinite(values["value"]):
                raise NotComputed("the value is not finite: too few pictures, or all alike")
            found[name] = values
        except NotComputed as reason:
            missing[name] = str(reason)
    return found, missing


def _of_every_picture(name: str) -> Metric:
    def metric(drawn: Drawn) -> dict[str, Any]:
        return _mean(drawn.scores[name])

    return metric


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return {"value": sum(values) / len(values), "interval": mean_interval(values)}


def _lpips(drawn: Drawn) -> dict[str, Any]:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    except (ModuleNotFoundError, OSError) as error:
        raise NotComputed(f"its network is not at hand ({str(error).splitlines()[0]})") from None
    values = []
    for a, b in zip(drawn.slim.split(1), drawn.dense.split(1), strict=True):
        metric.reset()
        metric.update(a.float() / 255, b.float() / 255)
        values.append(float(metric.compute()))
    return _mean(values)


def _clip(drawn: Drawn) -> dict[str, Any]:
    """Of the slim pictures, of the dense ones, and their difference prompt by prompt."""
    from torchmetrics.multimodal import CLIPScore

    loaded = drawn.judging
    metric = CLIPScore(lambda: loaded)  # pyright: ignore
    scores: dict[str, list[float]] = {}
    for side, pictures in (("slim", drawn.slim), ("dense", drawn.dense)):
        scores[side] = []
        for picture, prompt in zip(pictures, drawn.prompts, strict=True):
            metric.reset()
            metric.update([picture], [prompt])
            scores[side].append(float(metric.compute()))
    change = [a - b for a, b in zip(scores["slim"], scores["dense"], strict=True)]
    return {
        **_mean(scores["slim"]),
        "dense": _mean(scores["dense"]),
        "change": _mean(change),
    }


def _fid(drawn: Drawn) -> dict[str, Any]:
    from torchmetrics.image.fid import FrechetInceptionDistance

    tower = _tower(drawn, 2)
    metric = FrechetInceptionDistance(feature=tower)
    _fill(metric, drawn)
    return {"value": float(metric.compute()), "features": tower.num_features}


def _kid(drawn: Drawn) -> dict[str, Any]:
    """Mean over random halves, the same in every run; ``spread`` is their standard deviation."""
    from torchmetrics.image.kid import KernelInceptionDistance

    half = len(drawn.slim) // 2
    metric = KernelInceptionDistance(
        feature=_tower(drawn, 4), subsets=_KID_SUBSETS, subset_size=half
    )
    _fill(metric, drawn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, spread = metric.compute()
    return {"value": float(mean), "spread": float(spread), "subset": half}


def _tower(drawn: Drawn, least: int) -> ImageTower:
    if len(drawn.slim) < least:
        raise NotComputed(f"{len(drawn.slim)} pictures are too few; it takes {least}")
    return ImageTower(*drawn.judging)


def _fill(metric: nn.Module, drawn: Drawn) -> None:
    for pictures, real in ((drawn.dense, True), (drawn.slim, False)):
        for part in pictures.split(_CHUNK):
            metric.update(part, real=real)  # pyright: ignore[reportCallIssue]


METRICS: dict[str, Metric] = {
    "psnr": _of_every_picture("psnr_db"),
    "ssim": _of_every_picture("ssim"),
    "lpips": _lpips,
    "clip": _clip,
    "fid": _fid,
    "kid": _kid,
}
