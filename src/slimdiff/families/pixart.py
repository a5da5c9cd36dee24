"""``PixArtTransformer2DModel``: PixArt-alpha and PixArt-Sigma."""

from __future__ import annotations

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn

from . import Family, register
from .blocks import shared_block_sites


def _tiny() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    mask = torch.ones(2, 5)
    mask[1, 3:] = 0
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "encoder_attention_mask": mask,
    }
    return model.eval(), inputs


register(Family("pixart", ("PixArtTransformer2DModel",), shared_block_sites, _tiny))
