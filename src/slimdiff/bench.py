"""Dense against slim by the clock: a step and a whole picture, warm and in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.utils.benchmark import Measurement, TaskSpec

from .cost import weight_bytes
from .denoiser import denoiser, dtype_name
from .environment import device_name, versions
from .gains import Call
from .profiling import timed_call
from .sampling import IndexedPrompt, Sampling, draw
from .timing import in_turn, median_ratio

__all__ = ["Bench", "Duel", "bench"]

_PROMPT = "a picture"


@dataclass(frozen=True)
class Duel:
    """Seconds of the same work by both pipelines: medians, interquartile ranges, their ratio.

    ``ratio`` is the median of slim to dense, round by round; ``rounds`` of each were run in turn.
    """

    dense: float
    slim: float
    dense_spread: float
    slim_spread: float
    ratio: float
    rounds: int


@dataclass(frozen=True)
class Bench:
    """What :func:`bench` found. ``bytes``: stored weights of the denoisers, dense and slim."""

    step: Duel
    picture: Duel
    bytes: tuple[int, int]
    inputs: str
    sampling: Sampling
    compiled: bool
    dtype: str
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the versions they were measured with."""
        return {**asdict(self), "versions": versions()}


def bench(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    *,
    sampling: Sampling | None = None,
    compile: bool = False,
    seconds: float = 20.0,
) -> Bench:
    """Time one denoiser call and one whole batch of pictures of both pipelines, in turn.

    ``compile`` runs both denoisers through ``torch.compile`` first; the warm-up pays for it. At
    least five rounds are run of steps and three of pictures, more if ``seconds`` allow.
    """
    sampling = sampling or Sampling(batch_size=1)
    call = timed_call(dense, sampling)
    models = [denoiser(pipe) for pipe in (dense, slim)]
    if compile:
        for model in models:
            model.compile()
    prompts: list[IndexedPrompt] = [(i, _PROMPT) for i in range(sampling.batch_size)]
    steps = in_turn([_step(model, call) for model in models], seconds=seconds)
    pictures = in_turn(
        [_picture(pipe, prompts, sampling) for pipe in (dense, slim)], least=3, seconds=seconds
    )
    return Bench(
        step=_duel(steps),
        picture=_duel(pictures),
        bytes=(weight_bytes(models[0]), weight_bytes(models[1])),
        inputs=", ".join("x".join(map(str, t.shape)) for t in _tensors(call)),
        sampling=sampling,
        compiled=compile,
        dtype=dtype_name(models[0]),
        device=device_name(torch.device(models[0].device)),
    )


def _step(model: Any, call: Call) -> Callable[[], Any]:
    return lambda: model(*call.args, **call.kwargs)


def _picture(
    pipe: DiffusionPipeline, prompts: Sequence[IndexedPrompt], sampling: Sampling
) -> Callable[[], Any]:
    return lambda: draw(pipe, prompts, sampling)


def _duel(rounds: Sequence[tuple[float, ...]]) -> Duel:
    dense, slim = (Measurement(1, [row[i] for row in rounds], TaskSpec("", "")) for i in (0, 1))
    return Duel(
        dense.median,
        slim.median,
        dense.iqr,
        slim.iqr,
        median_ratio(list(rounds), 1, 0),
        len(rounds),
    )


def _tensors(call: Call) -> list[torch.Tensor]:
    values = [*call.args, *call.kwargs.values()]
    return [v for v in values if isinstance(v, torch.Tensor) and v.dim() > 1]
