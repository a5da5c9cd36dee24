"""Runs the user's own pipeline: its scheduler, its guidance, seeds by prompt index."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from .classes import class_labels, takes_classes
from .denoiser import denoiser
from .errors import SlimdiffError

__all__ = ["CALIBRATION_STEPS", "Sampling", "batches", "draw", "sample_latents"]

CALIBRATION_STEPS = 10
"""Most steps a prompt that calibration takes by default, after ``benchmarks.calibration``."""

IndexedPrompt = tuple[int, str]


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn. None leaves the choice to the pipeline.

    Prompt number i is drawn with seed ``seed + i`` from a CPU generator, so the same prompt gives
    the same noise in any batch, process or device. Sizes are pixels; ``num_frames`` is for videos.
    ``calibration_steps`` is how many steps a prompt calibration takes, by default ``steps`` but 10
    at most: other prompts teach it more than more steps of the same ones.
    """

    steps: int = 20
    guidance: float | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    batch_size: int = 8
    seed: int = 0
    num_frames: int | None = None
    calibration_steps: int | None = None

    def __post_init__(self) -> None:
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise SlimdiffError(f"Guidance is {self.guidance}; expected a finite number.")
        for name in ("steps", "batch_size", "num_frames", "calibration_steps"):
            if (getattr(self, name) or 0) < 1 and getattr(self, name) is not None:
                raise SlimdiffError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if (self.height is None) != (self.width is None):
            raise SlimdiffError(
                f"Size is {self.width} x {self.height}; expected width and height, or neither "
                "(pipelines ignore one without the other). Give both --height and --width."
            )

    def arguments(
        self, pipe: DiffusionPipeline, prompts: Sequence[IndexedPrompt]
    ) -> dict[str, Any]:
        """Keyword arguments of one pipeline call, those it takes."""
        texts = [text for _, text in prompts]
        wanted: dict[str, Any] = {
            "prompt": texts,
            "class_labels": class_labels(pipe, texts) if takes_classes(pipe) else None,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "negative_prompt": [self.negative_prompt] * len(prompts)
            if self.negative_prompt
            else None,
            "height": self.height,
            "width": self.width,
            "num_frames": self.num_frames,
            "generator": [torch.Generator().manual_seed(self.seed + i) for i, _ in prompts],
        }
        accepted = inspect.signature(pipe.__call__).parameters  # pyright: ignore
        return {k: v for k, v in wanted.items() if v is not None and k in accepted}

    @property
    def calibrating(self) -> Sampling:
        """How calibration draws the same pictures: in its own number of steps."""
        steps = self.calibration_steps or min(self.steps, CALIBRATION_STEPS)
        return replace(self, steps=steps, calibration_steps=steps)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def batches(prompts: Sequence[IndexedPrompt], size: int) -> Iterator[Sequence[IndexedPrompt]]:
    """Consecutive groups of at most ``size`` prompts."""
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def sample_latents(
    pipe: DiffusionPipeline, prompts: Sequence[IndexedPrompt], sampling: Sampling
) -> Tensor:
    """Denoise one batch of prompts; returns the final latents without decoding them."""
    seen: list[Tensor] = []
    with _quiet(pipe), _watch_decode(pipe, seen, skip=True):
        result = _run(pipe, sampling.arguments(pipe, prompts), "latent")
    # Some pipelines decode whatever they are asked for.
    return torch.cat(seen) if seen else result[0]


def draw(
    pipe: DiffusionPipeline, prompts: Sequence[IndexedPrompt], sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Draw one batch: pictures (B, 3, H, W) in [0, 1], and the latents decoded to them.

    Of a video the picture is the middle frame; the latents are all of it.
    """
    seen: list[Tensor] = []
    with _quiet(pipe), _watch_decode(pipe, seen):
        result = _run(pipe, sampling.arguments(pipe, prompts), "pt")
    images = result[0]
    if images.dim() == 5:
        images = images[:, images.shape[1] // 2]
    return images.float().cpu(), torch.cat(seen).float().cpu()


def _run(pipe: Any, arguments: dict[str, Any], output_type: str) -> Any:
    """Call the pipeline; what it refuses is said in its words."""
    try:
        with torch.no_grad():
            return pipe(**arguments, output_type=output_type)
    except SlimdiffError:
        raise
    except ValueError as error:
        raise SlimdiffError(
            f"{type(pipe).__name__} refuses to sample: {error}. Check --steps, --height, --width "
            "and the prompts."
        ) from error


@contextmanager
def _watch_decode(pipe: Any, seen: list[Tensor], *, skip: bool = False) -> Iterator[None]:
    """Collect what enters the autoencoder's decoder; with ``skip`` it is not decoded."""
    if getattr(pipe, "vae", None) is None:
        yield
        return
    vae, original = pipe.vae, pipe.vae.decode

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(z.detach())
        return DecoderOutput(z) if skip else original(z, *args, **kwargs)

    vae.decode = decode
    try:
        yield
    finally:
        del vae.decode


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """No progress bar of the pipeline's own, evaluation mode; both put back afterwards."""
    bar = getattr(pipe, "_progress_bar_config", None)
    model = denoiser(pipe)
    training = model.training
    pipe.set_progress_bar_config(disable=True)
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bar
