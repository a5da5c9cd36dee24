"""``UNet2DConditionModel``: Stable Diffusion 1.x, 2.x and SDXL are the same class."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from . import Family, register
from .blocks import shared_block_sites


def _tiny() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=(1, 2),  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
    )
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 5, 12),
    }
    return model.eval(), inputs


register(Family("unet", ("UNet2DConditionModel",), shared_block_sites, _tiny))
