"""Other people's ways to slim, written anew after their publications.

A peer edits a copy of the dense denoiser in place to the *dense-shaped* equivalent of its slim
model (channels of zeros, products of factors) and returns how many parameters the slim model
would have. All share out the pool uniformly, as their publications do, and take any width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import nn

from slimdiff.gains import Call
from slimdiff.sampling import IndexedPrompt, Sampling
from slimdiff.sites import Site

from . import magnitude, obs, obs_measured, random_channels, svd
from .moments import Moments

__all__ = ["PEERS", "Measured", "Moments", "Peer"]

Slim = Callable[[nn.Module, Sequence[Site], Moments, float, torch.Generator], int]
Gather = Callable[[DiffusionPipeline, Sequence[Site], Sequence[IndexedPrompt], Sampling], Moments]


Price = Callable[[nn.Module, Sequence[Site], Moments, Sequence[Call]], dict[str, float]]
SlimMeasured = Callable[[nn.Module, Sequence[Site], Moments, float, Mapping[str, float]], int]


@dataclass(frozen=True)
class Measured:
    """``price(dense, sites, moments, calls)``, then ``slim_(copy, ..., share, prices)``."""

    price: Price
    slim_: SlimMeasured


@dataclass(frozen=True)
class Peer:
    """``slim_(copy, sites, moments, share, generator)`` and what it needs to see beforehand.

    ``gather`` is None for a peer that looks at weights alone. ``seeded`` tells whether another
    seed gives another model; ``measured`` how it fares with ranks chosen as ours are.
    """

    slim_: Slim
    gather: Gather | None = None
    seeded: bool = True
    measured: Measured | None = None


PEERS: dict[str, Peer] = {
    "random": Peer(random_channels.slim_),
    "magnitude": Peer(magnitude.slim_, seeded=False),
    "obs": Peer(obs.slim_, obs.gather, measured=Measured(obs_measured.price, obs_measured.slim_)),
    "svd": Peer(svd.slim_, svd.gather),
}
