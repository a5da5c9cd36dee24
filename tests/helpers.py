"""Tiny float64 modules, samples and statistics that the tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from hypothesis import strategies as st
from torch import Tensor, nn

from slimdiff import families
from slimdiff.decomposition import EXACT, Basis
from slimdiff.families.blocks import shared_block_sites
from slimdiff.recording import Sums, TokenSampling, empty_sums, recording
from slimdiff.sampling import Sampling
from slimdiff.sites import Site
from slimdiff.statistics import Gain, Header, Source, Statistics
from slimdiff.surgery import reader_weights

seeds = st.integers(0, 2**31 - 1)


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal float64 values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def samples(seed: int, count: int, width: int, rank: int | None = None) -> Tensor:
    """Correlated rows with a mean, shape (count, width); their centred moment has ``rank``."""
    rank = width if rank is None else rank
    mixed = normal(seed, count, rank) @ normal(seed + 1, rank, width)
    return mixed + normal(seed + 2, width)


def gram(x: Tensor) -> Tensor:
    """Second moment of the rows of ``x``, summed."""
    return x.mT @ x


def augmented(x: Tensor) -> Tensor:
    """Second moment of the rows of ``[x, 1]``, summed."""
    return gram(with_one(x))


def with_one(x: Tensor) -> Tensor:
    """``[x, 1]``."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


def energy(x: Tensor) -> float:
    """Sum of squares."""
    return float(x.square().sum())


def spread(x: Tensor) -> float:
    """Sum of squares about the mean row."""
    return energy(x - x.mean(0))


class Alone(nn.Module):
    """A denoiser that is one block; its sites are called ``block.*``."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, timestep: float = 1.0, **kwargs: Any) -> Tensor:
        return self.block(x, **kwargs)


def attention(seed: int, *, heads: int = 2, width: int = 4, **options: Any) -> Alone:
    """A diffusers ``Attention`` of random float64 weights on streams of 6 channels."""
    block = Attention(6, heads=heads, dim_head=width, **options)
    return _randomised(Alone(block), seed)


def feed_forward(seed: int, *, width: int = 8, activation: str = "geglu", bias: bool = True):
    """A diffusers ``FeedForward`` of random float64 weights on a stream of 6 channels."""
    block = FeedForward(6, inner_dim=width, activation_fn=activation, bias=bias)
    return _randomised(Alone(block), seed)


def tiny_unet() -> tuple[nn.Module, dict[str, Tensor]]:
    """The family's own tiny UNet and one call of it, in float64."""
    (family,) = [f for f in families.families() if f.name == "unet"]
    model, inputs = family.tiny()
    return model.double(), {k: v.double() for k, v in inputs.items()}


def site_of(model: nn.Module, kind: str) -> Site:
    """The first site of one kind."""
    return next(site for site in shared_block_sites(model) if site.kind == kind)


def record(
    model: nn.Module,
    calls: Sequence[dict[str, Any]],
    sites: Sequence[Site] | None = None,
    **options: Any,
) -> Sums:
    """Sums over ``calls``, each the keyword arguments of one call of the model."""
    sites = shared_block_sites(model) if sites is None else sites
    sums = empty_sums(sites, torch.device("cpu"))
    options = {"tokens": TokenSampling(), **options}
    with recording(model, sites, sums, **options), torch.no_grad():
        for call in calls:
            model(**{"timestep": 1.0, **call})
    return sums


def decomposed(model: nn.Module, site: Site, sums: Sums) -> Basis:
    """The ordered basis of one site of a model."""
    return EXACT[site.kind].decompose(sums[site.name], reader_weights(model, site))


def statistics(first: int = 0, count: int = 4, **header: Any) -> Statistics:
    """Complete statistics of the tiny UNet with made-up sums, for ``count`` prompts."""
    model, _ = tiny_unet()
    sites = tuple(shared_block_sites(model))
    sums = empty_sums(sites, torch.device("cpu"))
    for i, name in enumerate(sums):
        for j, total in enumerate(sums[name].values()):
            total += normal(100 * first + 10 * i + j, *total.shape).abs()
    bases, gains = {}, {}
    for i, site in enumerate(sites):
        errors = torch.linspace(1, 0, site.width + 1, dtype=torch.float64) ** (2 + i % 3)
        bases[site.name] = Basis({"order": torch.arange(site.width)}, errors)
        gains[site.name] = Gain(site.width // 2, 0.01 / (i + 1))
    source = Source("tiny", "Pipe", "UNet2DConditionModel", "abc", "float64", _parameters(model))
    made = Header(
        source,
        Sampling(steps=3),
        TokenSampling(16),
        tuple((first + i, f"prompt {first + i}") for i in range(count)),
        sites,
        done=count,
        gains=gains,
        seconds=1.5,
        peak_mib=100.0,
    )
    return Statistics(replace(made, **header), sums, bases)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _randomised(model: Alone, seed: int) -> Alone:
    """Weights of order 1, biases too, so that no term hides behind a small one."""
    model = model.double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(seed + 7 * i, *parameter.shape) * 0.6)
    return model
