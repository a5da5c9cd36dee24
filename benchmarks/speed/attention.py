"""What the processor for unequal widths costs where widths are equal, beside the stock one."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from slimdiff.attention import SlimAttnProcessor
from slimdiff.timing import in_turn, median_ratio

__all__ = ["overhead"]

_SHAPES = ((320, 4096), (640, 1024), (1280, 256))
"""Channels and tokens of Stable Diffusion 1.5's levels at 512 pixels; 8 heads each."""


def overhead(dtype: torch.dtype, seconds: float) -> list[dict[str, Any]]:
    """Time of our processor to the stock one's, equal widths, both on the same weights."""
    rows = []
    for channels, tokens in _SHAPES:
        torch.manual_seed(0)
        attn = Attention(channels, heads=8, dim_head=channels // 8).to(dtype=dtype).eval()
        x = torch.randn(2, tokens, channels, dtype=dtype)
        stock, ours = AttnProcessor2_0(), SlimAttnProcessor()
        rounds = in_turn(
            [lambda p=p, a=attn, x=x: p(a, x) for p in (stock, ours)],
            least=15,
            most=200,
            seconds=seconds,
        )
        rows.append(
            {
                "channels": channels,
                "tokens": tokens,
                "ratio": median_ratio(rounds, 1, 0),
                "fastest": min(r[1] for r in rounds) / min(r[0] for r in rounds),
                "rounds": len(rounds),
            }
        )
    return rows
