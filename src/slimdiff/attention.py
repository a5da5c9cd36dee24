"""The only forward code of the project: attention whose query-key and value widths differ.

diffusers' stock processor reads one head width from the keys and calls fused attention with its
default scale. Slim attentions keep it wherever both widths are equal (the scale is folded into
the weights, see :mod:`slimdiff.decomposition.qk`). Unequal widths need this processor: it reads
each width from its tensor, passes the scale, and pads the narrower side with zeros, since fused
kernels want equal widths (unpadded, CPU attention is 3 to 5 times slower).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from torch import Tensor

__all__ = ["SlimAttnProcessor", "fit_attention_"]


def fit_attention_(attn: Attention, *, rescale: bool) -> None:
    """Make ``attn`` run at the widths its Linears now have, in place.

    ``rescale`` where the query-key width was cut: its maps ask for ``r^-0.5``.
    """
    assert attn.to_k is not None
    assert attn.to_v is not None
    query_key = attn.to_k.out_features // attn.heads
    value = attn.to_v.out_features // attn.heads
    if rescale:
        attn.scale = query_key**-0.5
    old = attn.processor
    if isinstance(old, SlimAttnProcessor):
        if query_key == value and old.replaced is not None:
            attn.set_processor(old.replaced)
    elif query_key != value:
        attn.set_processor(SlimAttnProcessor(old))  # pyright: ignore


class SlimAttnProcessor:
    """Scaled dot-product attention with head widths r_qk and r_vo of their own.

    ``replaced`` is the processor to go back to once both widths are equal.
    """

    _attention_backend = None  # its presence lets set_attention_backend() reach this processor

    def __init__(self, replaced: Any = None) -> None:
        self.replaced = replaced

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Same arguments and result as diffusers' ``AttnProcessor2_0``."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        shape = hidden_states.shape
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = _prepared(attn, attention_mask, context)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is None:
            context = hidden_states
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        out = _attend(self._attention_backend, attn, hidden_states, context, mask)
        assert attn.to_out is not None
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


def _prepared(attn: Attention, mask: Tensor | None, context: Tensor) -> Tensor | None:
    """The additive mask in the shape fused attention wants: (B, H, N or 1, M)."""
    if mask is None:
        return None
    batch, length = context.shape[:2]
    mask = attn.prepare_attention_mask(mask, length, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1])


def _attend(
    backend: Any, attn: Attention, x: Tensor, context: Tensor, mask: Tensor | None
) -> Tensor:
    """Heads side by side, shape (B, N, H r_vo)."""
    assert attn.to_k is not None
    assert attn.to_v is not None
    query = attn.to_q(x).unflatten(-1, (attn.heads, -1))
    key = attn.to_k(context).unflatten(-1, (attn.heads, -1))
    value = attn.to_v(context).unflatten(-1, (attn.heads, -1))
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    width, wanted = query.shape[-1], value.shape[-1]
    if width < wanted:
        query, key = F.pad(query, (0, wanted - width)), F.pad(key, (0, wanted - width))
    elif wanted < width:
        value = F.pad(value, (0, width - wanted))
    out = dispatch_attention_fn(
        query, key, value, attn_mask=mask, scale=attn.scale, backend=backend
    )
    return out[..., :wanted].flatten(2)
