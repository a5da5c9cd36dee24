"""How far a slim pipeline strays from the dense one, on prompts that calibration did not see.

``noise_rel_mse`` = sum |e_slim - e_dense|^2 / sum |e_dense|^2 over prompts, steps and guidance
branches, ``e`` being the denoiser's raw output, both models fed the dense model's latents.
``latent_rel_mse`` is the same for the final latents, each pipeline going its own way from the
same noise. PSNR and SSIM compare the decoded pictures, averaged over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from tqdm import tqdm

from .denoiser import denoiser
from .errors import SlimdiffError
from .sampling import IndexedPrompt, Sampling, batches, draw
from .shadow import shadowing

__all__ = ["Fidelity", "Pictures", "measure_fidelity"]

_PSNR_CAP = 100.0


@dataclass(frozen=True)
class Fidelity:
    """Errors of the slim pipeline against the dense one; PSNR in dB (at most 100)."""

    noise_rel_mse: float
    latent_rel_mse: float
    psnr_db: float
    ssim: float


@dataclass(frozen=True)
class Pictures:
    """Pictures of both pipelines for the same prompts and noise, each (n, 3, H, W) in [0, 1]."""

    prompts: tuple[str, ...]
    dense: Tensor
    slim: Tensor


def measure_fidelity(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
) -> tuple[Fidelity, Pictures]:
    """Draw every prompt with both pipelines and compare outputs, latents and pictures."""
    noise, latent = _Ratio(), _Ratio()
    pictures: list[tuple[Tensor, Tensor]] = []
    with tqdm(total=len(prompts), desc="compare", unit="prompt", disable=None) as bar:
        for batch in batches(prompts, sampling.batch_size):
            with shadowing(denoiser(dense), denoiser(slim), noise.add):
                dense_images, dense_latents = draw(dense, batch, sampling)
            slim_images, slim_latents = draw(slim, batch, sampling)
            latent.add(slim_latents, dense_latents)
            pictures.append((dense_images, slim_images))
            bar.update(len(batch))
    drawn = Pictures(
        tuple(text for _, text in prompts),
        torch.cat([a for a, _ in pictures]),
        torch.cat([b for _, b in pictures]),
    )
    return Fidelity(noise.value, latent.value, *_picture_scores(drawn)), drawn


class _Ratio:
    """sum |a - b|^2 / sum |b|^2, summed in float64."""

    def __init__(self) -> None:
        self.error = self.energy = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        self.error += float((a.double() - b.double()).square().sum())
        self.energy += float(b.double().square().sum())

    @property
    def value(self) -> float:
        return self.error / max(self.energy, 1e-300)


def _picture_scores(pictures: Pictures) -> tuple[float, float]:
    """Mean PSNR (dB) and SSIM over pictures."""
    psnr, ssim = [], []
    for a, b in zip(pictures.slim.split(1), pictures.dense.split(1), strict=True):
        value = float(peak_signal_noise_ratio(a, b, data_range=1.0))
        if math.isnan(value):
            raise SlimdiffError(
                "A picture holds NaN; expected values in [0, 1]. Try --dtype float32 or bfloat16."
            )
        psnr.append(min(value, _PSNR_CAP))
        score = structural_similarity_index_measure(a, b, data_range=1.0)
        assert isinstance(score, Tensor)
        ssim.append(float(score))
    return sum(psnr) / len(psnr), sum(ssim) / len(ssim)
