"""Denoisers of published configurations with random weights, and statistics made up for them."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.models.published import PUBLISHED
from slimdiff import Sampling, Statistics, families
from slimdiff.decomposition import Basis
from slimdiff.denoiser import output_of
from slimdiff.gains import Call
from slimdiff.recording import TokenSampling
from slimdiff.sites import Site
from slimdiff.statistics import Gain, Header, Source

__all__ = ["FLOOR", "call_of", "made_up", "random_model"]

FLOOR = 0.4
"""Share of its width below which no site is cut."""

_FORBIDDEN = 1e6


def random_model(name: str, dtype: torch.dtype) -> Any:
    """Random weights in the shapes of a published model (:mod:`benchmarks.models.published`)."""
    torch.manual_seed(0)
    model: Any = PUBLISHED[name].build().to(dtype).to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.detach().normal_(0, 0.02)
    return model


def call_of(model: Any, resolution: int, batch: int) -> Call:
    """One call on noise for ``batch`` rows of pictures of ``resolution`` pixels."""
    torch.manual_seed(1)
    side, config = resolution // 8, model.config

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, dtype=model.dtype)

    kwargs: dict[str, Any] = {
        "sample": noise(config.in_channels, side, side),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": noise(77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        times = 6 * config.addition_time_embed_dim
        pooled = config.projection_class_embeddings_input_dim - times
        kwargs["added_cond_kwargs"] = {"text_embeds": noise(pooled), "time_ids": noise(6)}
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
