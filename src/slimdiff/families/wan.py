"""``WanTransformer3DModel``: Wan 2.x, which draws videos."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from . import Family, register
from .blocks import shared_block_sites

_NORMS = {"attn1": "norm1", "attn2": "norm2", "ffn": "norm3"}


def _tiny(image_width: int | None = None) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
        image_dim=image_width,
        added_kv_proj_dim=None if image_width is None else 24,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 8, 8),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 12),
    }
    if image_width is not None:
        # Attention takes the last 512 tokens for text, whatever their number.
        inputs["encoder_hidden_states"] = torch.randn(2, 512, 12)
        inputs["encoder_hidden_states_image"] = torch.randn(2, 3, image_width)
    return model.eval(), inputs


_sites = partial(shared_block_sites, norms=_NORMS)
_tiny_i2v = partial(_tiny, 10)

register(Family("wan", ("WanTransformer3DModel",), _sites, _tiny, {"wan-i2v": _tiny_i2v}))
