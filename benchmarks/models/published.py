"""The published configurations of what people run, as data, and one call of each.

Numbers are those of the models' ``config.json``; whatever is not said has the class's own default.
A call is one sample, at the size a model was made for: latents, then text tokens as its pipeline
pads them. Nothing here has weights: everything is meant for the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

__all__ = ["PUBLISHED", "Published"]

Inputs = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Published:
    """One model: its class, its configuration, one call, and what that call draws."""

    kind: str
    config: Mapping[str, Any]
    inputs: Inputs
    draws: str

    def build(self) -> nn.Module:
        """The model on the meta device."""
        with torch.device("meta"):
            return getattr(diffusers, self.kind)(**self.config).eval()

    def call(self) -> dict[str, Tensor]:
        """Keyword arguments of one call, on the meta device."""
        with torch.device("meta"):
            return self.inputs()


def _unet(size: int, context: int, **added: Any) -> Inputs:
    def inputs() -> dict[str, Any]:
        made = {name: torch.empty(1, width) for name, width in added.items()}
        return {
            "sample": torch.empty(1, 4, size, size),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, 77, context),
            **({"added_cond_kwargs": made} if made else {}),
        }

    return inputs


def _pixart() -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(1, 4, 128, 128),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, 300, 4096),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _dit() -> dict[str, Tensor]:
    return {
        "hidden_states": torch.empty(1, 4, 32, 32),
        "timestep": torch.empty(1),
        "class_labels": torch.empty(1, dtype=torch.long),
    }


def _sd3() -> dict[str, Tensor]:
    return {
        "hidden_states": torch.empty(1, 16, 128, 128),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, 77 + 256, 4096),
        "pooled_projections": torch.empty(1, 2048),
    }


def _flux() -> dict[str, Tensor]:
    return {
        "hidden_states": torch.empty(1, 64 * 64, 64),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
        "pooled_projections": torch.empty(1, 768),
        "timestep": torch.empty(1),
        "guidance": torch.empty(1),
        "img_ids": torch.empty(64 * 64, 3),
        "txt_ids": torch.empty(512, 3),
    }


def _wan() -> dict[str, Tensor]:
    return {
        "hidden_states": torch.empty(1, 16, 21, 60, 104),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
    }


_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_XL2 = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
}
_PIXART = {
    **_XL2,
    "sample_size": 128,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "use_additional_conditions": False,
    "interpolation_scale": 2,
}
_SD3 = {
    "sample_size": 128,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_SD35_MEDIUM = {
    **_SD3,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
_SD35_LARGE = {
    **_SD3,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
_WAN_SMALL = {
    "num_attention_heads": 12,
    "num_layers": 30,
    "ffn_dim": 8960,
    "text_dim": 4096,
}
_UNET, _SD, _VIDEO = "UNet2DConditionModel", "SD3Transformer2DModel", "WanTransformer3DModel"

PUBLISHED: dict[str, Published] = {
    "SD 1.5": Published(_UNET, {"cross_attention_dim": 768}, _unet(64, 768), "512 px"),
    "SD 2.1": Published(
        _UNET,
        {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        _unet(96, 1024),
        "768 px",
    ),
    "SDXL": Published(_UNET, _SDXL, _unet(128, 2048, text_embeds=1280, time_ids=6), "1024 px"),
    "DiT-XL/2": Published("DiTTransformer2DModel", {**_XL2, "sample_size": 32}, _dit, "256 px"),
    "PixArt-Sigma": Published("PixArtTransformer2DModel", _PIXART, _pixart, "1024 px"),
    "SD3-medium": Published(_SD, _SD3, _sd3, "1024 px"),
    "SD3.5-medium": Published(_SD, _SD35_MEDIUM, _sd3, "1024 px"),
    "SD3.5-large": Published(_SD, _SD35_LARGE, _sd3, "1024 px"),
    "FLUX.1-dev": Published(
        "FluxTransformer2DModel",
        {"pooled_projection_dim": 768, "guidance_embeds": True},
        _flux,
        "1024 px",
    ),
    "Wan2.1-1.3B": Published(_VIDEO, _WAN_SMALL, _wan, "832 x 480 px, 81 frames"),
    "Wan2.1-14B": Published(_VIDEO, {"text_dim": 4096}, _wan, "832 x 480 px, 81 frames"),
}
