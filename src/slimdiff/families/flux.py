"""``FluxTransformer2DModel``: FLUX.1, blocks of two streams, then blocks of one.

A block of one stream runs attention and feed-forward side by side; its ``proj_out`` reads both,
the heads' outputs first and the hidden channels after them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from ..sites import Site
from . import Family, register
from .blocks import columns, query_key_site, rows, shared_block_sites, value_output_site

_NORMS = {"attn": "norm1", "ff": "norm2", "ff_context": "norm2_context"}


def _sites(model: nn.Module) -> list[Site]:
    double = shared_block_sites(model, _NORMS)
    names = [name for name, _ in model.named_modules() if name.endswith(".proj_mlp")]
    single = [_single_sites(name.rpartition(".")[0], model) for name in names]
    return double + [site for sites in single for site in sites]


def _single_sites(name: str, model: nn.Module) -> list[Site]:
    """Last slab of ``proj_out`` first: cutting it leaves the heads' columns where they are."""
    block: Any = model.get_submodule(name)
    attn, stream = block.attn, f"{name}.norm"
    heads = columns("output", f"{name}.proj_out", block.proj_out, 0, attn.to_v.out_features)
    hidden = block.proj_mlp.out_features
    ffn = (
        rows("up", f"{name}.proj_mlp", block.proj_mlp),
        columns("down", f"{name}.proj_out", block.proj_out, heads.size, hidden),
    )
    return [
        query_key_site(f"{name}.attn", attn, stream),
        Site(f"{name}.ffn", "ffn", name, stream, 1, hidden, ffn),
        value_output_site(f"{name}.attn", attn, stream, (heads,)),
    ]


def _tiny() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2),
    )
    inputs = {
        "hidden_states": torch.randn(2, 16, 4),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([0.5, 0.5]),
        "guidance": torch.tensor([3.5, 3.5]),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
        "txt_ids": torch.zeros(5, 3),
    }
    return model.eval(), inputs


register(Family("flux", ("FluxTransformer2DModel",), _sites, _tiny))
