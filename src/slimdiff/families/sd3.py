"""``SD3Transformer2DModel``: Stable Diffusion 3 and 3.5, two streams under one softmax.

Each stream has projections of its own, but heads share one basis over both. 3.5 normalises queries
and keys, which locks their inner product, and has a second attention in some blocks.
"""

from __future__ import annotations

from functools import partial

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from . import Family, register
from .blocks import shared_block_sites

_NORMS = {"attn": "norm1", "attn2": "norm1", "ff": "norm2", "ff_context": "norm2_context"}


def _tiny(**options: object) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        **options,  # pyright: ignore[reportArgumentType]
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
    }
    return model.eval(), inputs


_sites = partial(shared_block_sites, norms=_NORMS)
_tiny_35 = partial(_tiny, qk_norm="rms_norm", dual_attention_layers=(0,))

register(Family("sd3", ("SD3Transformer2DModel",), _sites, _tiny, {"sd3.5": _tiny_35}))
