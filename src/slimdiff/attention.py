"""The only forward code of the project: attention whose query-key and value widths differ.

diffusers' stock processors read one head width from the keys (or, Flux, from the module) and call
fused attention with its default scale. Slim attentions keep them wherever both widths are equal
(the scale is folded into the weights, see :mod:`slimdiff.decomposition.qk`). Unequal widths need
the processors below, one a layout: they read each width from its tensor, pass the scale, and pad
the narrower side with zeros, since fused kernels want equal widths (unpadded, CPU attention is 3
to 5 times slower).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

__all__ = [
    "SlimAttnProcessor",
    "SlimJointAttnProcessor",
    "SlimWanAttnProcessor",
    "fit_attention_",
    "is_attention",
    "put_back_",
    "width_settings",
]


def is_attention(module: nn.Module) -> bool:
    """Whether ``module`` is one of diffusers' attentions, which run through a processor."""
    return isinstance(module, (Attention, AttentionModuleMixin))


def fit_attention_(attn: Any, *, rescale: bool) -> None:
    """Make ``attn`` run at the widths its Linears now have, in place.

    ``rescale`` where the query-key width was cut: its maps ask for ``r^-0.5``.
    """
    query_key = attn.to_k.out_features // attn.heads
    value = attn.to_v.out_features // attn.heads
    if rescale:
        attn.scale = query_key**-0.5
    old = attn.processor
    if isinstance(old, _SlimProcessor):
        if query_key == value and old.replaced is not None:
            attn.set_processor(old.replaced)
    elif query_key != value:
        attn.set_processor(_LAYOUTS.get(type(old).__name__, SlimAttnProcessor)(old))


def width_settings(attn: nn.Module) -> dict[str, Any]:
    """What :func:`fit_attention_` may change."""
    return {name: vars(attn)[name] for name in ("scale", "processor") if name in vars(attn)}


def put_back_(attn: nn.Module, settings: Mapping[str, Any]) -> None:
    """Undo :func:`fit_attention_`."""
    for name, value in settings.items():
        setattr(attn, name, value)


class _SlimProcessor:
    """Base: ``replaced`` is the processor to go back to once both widths are equal."""

    _attention_backend = None  # its presence lets set_attention_backend() reach this processor

    def __init__(self, replaced: Any = None) -> None:
        self.replaced = replaced


class SlimAttnProcessor(_SlimProcessor):
    """Scaled dot-product attention with head widths r_qk and r_vo of their own."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
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
        query = _heads(attn, attn.to_q(hidden_states), attn.norm_q)
        key = _heads(attn, attn.to_k(context), attn.norm_k)
        value = _heads(attn, attn.to_v(context))
        out = _attend(self._attention_backend, query, key, value, attn.scale, mask)
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


class SlimJointAttnProcessor(_SlimProcessor):
    """Two streams under one softmax (SD3, Flux), text first; or one stream alone."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Same arguments and result as ``JointAttnProcessor2_0`` and ``FluxAttnProcessor``."""
        query = _heads(attn, attn.to_q(hidden_states), attn.norm_q)
        key = _heads(attn, attn.to_k(hidden_states), attn.norm_k)
        value = _heads(attn, attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            context = encoder_hidden_states
            added_query = _heads(attn, attn.add_q_proj(context), attn.norm_added_q)
            added_key = _heads(attn, attn.add_k_proj(context), attn.norm_added_k)
            query = torch.cat([added_query, query], 1)
            key = torch.cat([added_key, key], 1)
            value = torch.cat([_heads(attn, attn.add_v_proj(context)), value], 1)
        scale = query.shape[-1] ** -0.5
        query, key = _rotated(query, image_rotary_emb), _rotated(key, image_rotary_emb)
        out = _attend(self._attention_backend, query, key, value, scale, attention_mask)
        if encoder_hidden_states is None:
            return out if attn.pre_only else attn.to_out[1](attn.to_out[0](out))
        length = encoder_hidden_states.shape[1]
        context, out = out[:, :length], out[:, length:]
        if not attn.context_pre_only:
            context = attn.to_add_out(context)
        return attn.to_out[1](attn.to_out[0](out)), context


class SlimWanAttnProcessor(_SlimProcessor):
    """Wan: norms across the heads, and image tokens under a softmax of their own."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Same arguments and result as ``WanAttnProcessor``."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        image = None
        if attn.added_kv_proj_dim is not None:
            length = context.shape[1] - _WAN_TEXT_TOKENS
            image, context = context[:, :length], context[:, length:]
        if rotary_emb is not None:  # (1, N, 1, d) each
            rotary_emb = (rotary_emb[0][0, :, 0], rotary_emb[1][0, :, 0])
        query = _rotated(_heads(attn, attn.norm_q(attn.to_q(hidden_states))), rotary_emb)
        key = _rotated(_heads(attn, attn.norm_k(attn.to_k(context))), rotary_emb)
        value = _heads(attn, attn.to_v(context))
        scale, backend = query.shape[-1] ** -0.5, self._attention_backend
        out = _attend(backend, query, key, value, scale, attention_mask)
        if image is not None:
            key = _heads(attn, attn.norm_added_k(attn.add_k_proj(image)))
            value = _heads(attn, attn.add_v_proj(image))
            out = out + _attend(backend, query, key, value, scale, None)
        return attn.to_out[1](attn.to_out[0](out))


_WAN_TEXT_TOKENS = 512
_LAYOUTS: dict[str, type[_SlimProcessor]] = {
    "JointAttnProcessor2_0": SlimJointAttnProcessor,
    "FluxAttnProcessor": SlimJointAttnProcessor,
    "WanAttnProcessor": SlimWanAttnProcessor,
}


def _prepared(attn: Any, mask: Tensor | None, context: Tensor) -> Tensor | None:
    """The additive mask in the shape fused attention wants: (B, H, N or 1, M)."""
    if mask is None:
        return None
    batch, length = context.shape[:2]
    mask = attn.prepare_attention_mask(mask, length, batch)
    assert mask is not None
    return mask.view(batch, attn.heads, -1, mask.shape[-1])


def _heads(attn: Any, x: Tensor, norm: nn.Module | None = None) -> Tensor:
    """(B, N, H r) -> (B, N, H, r), normalised if the attention does that to each head."""
    x = x.unflatten(-1, (attn.heads, -1))
    return x if norm is None else norm(x)


def _rotated(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    if rotary is None:
        return x
    return apply_rotary_emb(x, rotary, sequence_dim=1)  # pyright: ignore


def _attend(
    backend: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> Tensor:
    """Heads side by side, (B, N, H r_vo); query and key (B, ., H, r_qk), value (B, M, H, r_vo)."""
    width, wanted = query.shape[-1], value.shape[-1]
    if width < wanted:
        query, key = F.pad(query, (0, wanted - width)), F.pad(key, (0, wanted - width))
    elif wanted < width:
        value = F.pad(value, (0, width - wanted))
    out = dispatch_attention_fn(query, key, value, attn_mask=mask, scale=scale, backend=backend)
    return out[..., :wanted].flatten(2)
