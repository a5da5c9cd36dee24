"""Draws one prompt with several pipelines: dense, slim, and cut anew to a share of the pool."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..allocation import allocate
from ..budget import Budget
from ..classes import takes_classes
from ..compression import compress_, plan_of
from ..denoiser import denoiser, refuse_slim
from ..errors import SlimdiffError
from ..fidelity import picture_scores
from ..memory import OUT_OF_MEMORY
from ..plan import Plan
from ..recipe import copy_pipeline
from ..report import refuse_other_model
from ..sampling import Sampling, draw
from ..statistics import Statistics
from .controls import Slider, checked

__all__ = ["Drawing", "Studio"]

_PICTURES, _PIPELINES = 64, 3
_DENSE, _SLIM = "dense", "slim"


@dataclass(frozen=True)
class _Cut:
    """A pipeline still to be cut; two of the same widths are one."""

    widths: tuple[tuple[str, int], ...]
    plan: Plan = field(compare=False)


@dataclass(frozen=True)
class Drawing:
    """One picture (3, H, W) in [0, 1], and the ``seconds`` it took, text and decoding included.

    ``parameters`` are the denoiser's and ``predicted`` its expected error; ``scores`` say how
    like the dense picture it is, by the names of :class:`slimdiff.fidelity.Fidelity`.
    """

    picture: Tensor
    seconds: float
    parameters: int
    predicted: float | None
    scores: dict[str, float] = field(default_factory=dict)


class Studio:
    """Pipelines that draw for a page, and what they drew last.

    Not for several threads at once: a pipeline keeps state while it draws. Without ``statistics``
    there are two pictures of a prompt and never a third.
    """

    def __init__(
        self,
        dense: DiffusionPipeline,
        slim: DiffusionPipeline,
        sampling: Sampling,
        statistics: Statistics | None = None,
    ) -> None:
        plan = plan_of(slim)
        if plan is None:
            raise SlimdiffError("The second pipeline is not slim: its denoiser records no plan.")
        refuse_slim(denoiser(dense))
        refuse_other_model(denoiser(dense), plan)
        self.plan, self.sampling = plan, replace(sampling, batch_size=1)
        self.device = torch.device(denoiser(dense).device)
        self.takes_classes = takes_classes(dense)
        self.slider = None if statistics is None else Slider.over(statistics, plan)
        self._dense, self._slim, self._statistics = dense, slim, statistics
        self._ending = False
        self._warm: set[str | _Cut] = set()
        self._cut = lru_cache(_PIPELINES)(self._cut_anew)
        self._drawn: dict[tuple[str | _Cut, str, int], Drawing] = {}

    def titles(self, share: float | None) -> list[str]:
        """What the pictures are called, in the order they are drawn in."""
        kept = [self.plan.pool_kept, *([share] if self._moved(share) else [])]
        names = [f"{100 * part:.0f} % of the pool" for part in kept if part is not None]
        return ["Dense", f"Slim, {names[0]}", *names[1:]]

    def drawings(
        self, prompt: str, seed: float | None, share: float | None = None
    ) -> Iterator[Drawing]:
        """Dense, slim and, where the slider was moved to ``share``, what that leaves; in turn.

        What was drawn lately is not drawn again. Raises SlimdiffError for what cannot be drawn.
        """
        prompt, seed = checked(prompt, seed)
        whole = self._draw(_DENSE, prompt, seed)
        yield whole
        found = self._draw(_SLIM, prompt, seed)
        yield replace(found, scores=_likeness(found, whole))
        if self._moved(share):
            found = self._draw(self._other(share), prompt, seed)
            yield replace(found, scores=_likeness(found, whole))

    def knows(self, prompt: str, seed: float | None) -> bool:
        """Whether the dense picture of this prompt is at hand."""
        return (_DENSE, (prompt or "").strip(), seed) in self._drawn

    def stop(self) -> None:
        """End what is being drawn at its next step; may be called from any thread."""
        self._ending = True

    def _moved(self, share: float | None) -> bool:
        return self.slider is not None and share is not None and self.slider.moved(share)

    def _other(self, share: float | None) -> str | _Cut:
        """What keeps ``share`` of the pool, by the policy and grid of the slim one."""
        assert self._statistics is not None
        options = {"policy": self.plan.policy, "multiple": self.plan.multiple}
        plan = allocate(self._statistics, Budget(pool=share), **options)
        return _Cut(tuple(plan.widths.items()), plan) if plan.removed else _DENSE

    def _cut_anew(self, cut: _Cut) -> Any:
        assert self._statistics is not None
        pipe = copy_pipeline(self._dense)
        compress_(pipe, self._statistics, cut.plan)
        return pipe

    def _draw(self, which: str | _Cut, prompt: str, seed: int) -> Drawing:
        key = which, prompt, seed
        if key not in self._drawn:
            self._drawn[key] = self._draw_anew(*key)
            while len(self._drawn) > _PICTURES:
                del self._drawn[next(iter(self._drawn))]
        return self._drawn[key]

    def _draw_anew(self, which: str | _Cut, prompt: str, seed: int) -> Drawing:
        """A picture, timed; a first call, which pays for what later ones have, comes before."""
        sampling = replace(self.sampling, seed=seed)
        try:
            pipe = self._pipeline(which)
            with self._stoppable(denoiser(pipe)):
                if which not in self._warm:
                    draw(pipe, [(0, prompt)], replace(sampling, steps=1))
                    self._warm.add(which)
                begin = time.perf_counter()
                pictures, _ = draw(pipe, [(0, prompt)], sampling)
                seconds = time.perf_counter() - begin
        except OUT_OF_MEMORY:
            self._forget()
            raise
        plan, size = plan_of(pipe), denoiser(pipe).num_parameters()
        return Drawing(pictures[0], seconds, size, plan and plan.predicted_error)

    def _pipeline(self, which: str | _Cut) -> Any:
        if isinstance(which, _Cut):
            return self._cut(which)
        return self._dense if which == _DENSE else self._slim

    @contextmanager
    def _stoppable(self, model: Any) -> Iterator[None]:
        def look(*args: Any) -> None:
            if self._ending:
                raise SlimdiffError("The demo is ending. Start it again.")

        hook = model.register_forward_pre_hook(look)
        try:
            yield
        finally:
            hook.remove()

    def _forget(self) -> None:
        """Give back the memory of the pipelines that can be cut again."""
        self._cut.cache_clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _likeness(found: Drawing, whole: Drawing) -> dict[str, float]:
    """PSNR and SSIM of a picture against the dense one."""
    scores = picture_scores(whole.picture[None], found.picture[None])
    return {name: values[0] for name, values in scores.items()}
