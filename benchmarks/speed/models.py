"""Denoisers of published configurations with random weights, and statistics made up for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from slimdiff import Sampling, Statistics, families
from slimdiff.decomposition import Basis
from slimdiff.denoiser import output_of
from slimdiff.gains import Call
from slimdiff.recording import TokenSampling
from slimdiff.sites import Site
from slimdiff.statistics import Gain, Header, Source

__all__ = ["FLOOR", "SD15", "call_of", "made_up", "sd15"]

FLOOR = 0.4
"""Share of its width below which no site is cut."""

_FORBIDDEN = 1e6

SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""Stable Diffusion 1.5's U-Net; what is not named here is the class's default."""


def sd15(dtype: torch.dtype) -> Any:
    """Random weights in the shapes of Stable Diffusion 1.5."""
    torch.manual_seed(0)
    return UNet2DConditionModel(**SD15).to(dtype=dtype).eval()


def call_of(model: Any, resolution: int, batch: int) -> Call:
    """One call on noise for ``batch`` rows of pictures of ``resolution`` pixels."""
    torch.manual_seed(1)
    side = resolution // 8
    latents = torch.randn(batch, model.config.in_channels, side, side, dtype=model.dtype)
    text = torch.randn(batch, 77, model.config.cross_attention_dim, dtype=model.dtype)
    kwargs = {"sample": latents, "timestep": torch.tensor(500), "encoder_hidden_states": text}
    with torch.no_grad():
        return Call((), kwargs, output_of(model(**kwargs)))


def made_up(model: Any) -> Statistics:
    """Statistics by which a cut costs the parameters it removes, and no site goes below FLOOR.

    Random weights have no errors worth weighing, so the plan for a time is the one that keeps the
    most parameters.
    """
    sites = tuple(families.find(model).sites(model))
    whole = model.num_parameters()
    gains = {s.name: Gain(0, s.parameters() / whole) for s in sites}
    bases = {s.name: Basis({}, _errors(s)) for s in sites}
    source = Source("SD 1.5 shapes", "", type(model).__name__, "", _name(model.dtype), whole)
    header = Header(
        source, Sampling(steps=1), TokenSampling(), ((0, ""),), sites, done=1, gains=gains
    )
    return Statistics(header, {}, bases)


def _errors(site: Site) -> torch.Tensor:
    """1 at width 0, falling in proportion to the width, forbidding below the floor."""
    lost = 1 - torch.arange(site.width + 1, dtype=torch.float64) / site.width
    lost[1 : int(-(-FLOOR * site.width // 1))] += _FORBIDDEN
    return lost


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
