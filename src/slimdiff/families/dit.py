"""``DiTTransformer2DModel``: DiT, which draws classes of ImageNet."""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from . import Family, register
from .blocks import shared_block_sites


def _tiny() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([500, 500]),
        "class_labels": torch.tensor([1, 10]),
    }
    return model.eval(), inputs


register(Family("dit", ("DiTTransformer2DModel",), shared_block_sites, _tiny))
