"""How far a slim pipeline strays from the dense one, on prompts that calibration did not see.

``noise_rel_mse`` = sum |e_slim - e_dense|^2 / sum |e_dense|^2 over prompts, steps and guidance
branches, ``e`` being the denoiser's raw output, both models fed the dense model's latents.
``latent_rel_mse`` is the same for the final latents, each pipeline going its own way from the
same noise. PSNR and SSIM compare the decoded pictures, averaged over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
from .intervals import Interval, mean_interval, ratio_interval
from .memory import halving
from .sampling import IndexedPrompt, Sampling, batches, draw
from .shadow import shadowing

__all__ = ["Fidelity", "Pictures", "measure_fidelity", "picture_scores"]

_PSNR_CAP = 100.0


@dataclass(frozen=True)
class Fidelity:
    """Errors of the slim pipeline against the dense one; PSNR in dB (at most 100).

    ``intervals`` are 95 % bootstrap intervals over prompts, by name. ``samples`` holds PSNR and
    SSIM of every picture, ``calls`` the relative error of every denoiser call, first to last.
    """

    noise_rel_mse: float
    latent_rel_mse: float
    psnr_db: float
    ssim: float
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    calls: Sequence[float] = ()


@dataclass(frozen=True)
class Pictures:
    """Pictures of both pipelines for the same prompts and noise, each (n, 3, H, W) in [0, 1]."""

    prompts: tuple[str, ...]
    dense: Tensor
    slim: Tensor


@dataclass(frozen=True)
class _Part:
    """What one batch of B prompts gave: |a - b|^2 and |b|^2, float64, and the pictures.

    ``noise`` has shape (calls, B, 2), ``latent`` (B, 2).
    """

    noise: Tensor
    latent: Tensor
    dense: Tensor
    slim: Tensor


def measure_fidelity(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
) -> tuple[Fidelity, Pictures]:
    """Draw every prompt with both pipelines and compare outputs, latents and pictures."""
    parts: list[_Part] = []

    def work(batch: Sequence[IndexedPrompt]) -> _Part:
        return _drawn(dense, slim, batch, sampling)

    with tqdm(total=len(prompts), desc="compare", unit="prompt", disable=None) as bar:
        for batch, part in halving(batches(prompts, sampling.batch_size), work):
            parts.append(part)
            bar.update(len(batch))
    pictures = Pictures(
        tuple(text for _, text in prompts),
        torch.cat([part.dense for part in parts]),
        torch.cat([part.slim for part in parts]),
    )
    return _summed(parts, pictures), pictures


def picture_scores(dense: Tensor, slim: Tensor) -> dict[str, list[float]]:
    """PSNR (dB, at most 100) and SSIM of every slim picture against its dense one.

    Both have shape (n, 3, H, W) and values in [0, 1].
    """
    scores: dict[str, list[float]] = {"psnr_db": [], "ssim": []}
    for a, b in zip(slim.split(1), dense.split(1), strict=True):
        value = float(peak_signal_noise_ratio(a, b, data_range=1.0))
        if math.isnan(value):
            raise SlimdiffError(
                "A picture holds NaN; expected values in [0, 1]. Try --dtype float32 or bfloat16."
            )
        scores["psnr_db"].append(min(value, _PSNR_CAP))
        similarity = structural_similarity_index_measure(a, b, data_range=1.0)
        assert isinstance(similarity, Tensor)
        scores["ssim"].append(float(similarity))
    return scores


def _drawn(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    batch: Sequence[IndexedPrompt],
    sampling: Sampling,
) -> _Part:
    noise: list[Tensor] = []
    with shadowing(
        denoiser(dense),
        denoiser(slim),
        lambda ours, theirs: noise.append(_energies(ours, theirs, len(batch))),
    ):
        dense_images, dense_latents = draw(dense, batch, sampling)
    slim_images, slim_latents = draw(slim, batch, sampling)
    latent = _energies(slim_latents, dense_latents, len(batch))
    return _Part(torch.stack(noise), latent, dense_images, slim_images)


def _energies(a: Tensor, b: Tensor, prompts: int) -> Tensor:
    """|a - b|^2 and |b|^2 of every prompt, shape (prompts, 2), float64.

    Guidance stacks its branches along the batch, the prompts in the same order in each.
    """
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    rows = [x.to(wide).square().flatten(1).sum(1) for x in (a.to(wide) - b.to(wide), b)]
    return torch.stack(rows, -1).unflatten(0, (-1, prompts)).sum(0).cpu().double()


def _summed(parts: Sequence[_Part], pictures: Pictures) -> Fidelity:
    noise = torch.cat([part.noise.sum(0) for part in parts])
    latent = torch.cat([part.latent for part in parts])
    calls = torch.stack([part.noise.sum(1) for part in parts]).sum(0)
    samples = picture_scores(pictures.dense, pictures.slim)
    intervals = {
        "noise_rel_mse": ratio_interval(*noise.T.tolist()),
        "latent_rel_mse": ratio_interval(*latent.T.tolist()),
        **{name: mean_interval(values) for name, values in samples.items()},
    }
    return Fidelity(
        _ratio(noise),
        _ratio(latent),
        *(sum(values) / len(values) for values in samples.values()),
        intervals={name: found for name, found in intervals.items() if found},
        samples=samples,
        calls=[_ratio(call) for call in calls],
    )


def _ratio(energies: Tensor) -> float:
    """sum |a - b|^2 / sum |b|^2."""
    error, energy = energies.reshape(-1, 2).sum(0).tolist()
    return error / max(energy, 1e-300)
