"""Reads the attention and feed-forward modules that diffusers shares between models into sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn

from ..attention import is_attention
from ..sites import Part, Role, Site

__all__ = [
    "attention_sites",
    "columns",
    "feed_forward_sites",
    "query_key_site",
    "rows",
    "shared_block_sites",
    "value_output_site",
]

_GATED = {"GEGLU", "SwiGLU"}
_PLAIN = {"GELU", "ApproximateGELU", "LinearActivation"}
_LEAVES = {
    "query": ("to_q", "add_q_proj"),
    "key": ("to_k", "add_k_proj"),
    "value": ("to_v", "add_v_proj"),
    "output": ("to_out.0", "to_add_out"),
}
_BASIC_NORMS = {"attn1": "norm1", "attn2": "norm2", "ff": "norm3"}


def shared_block_sites(model: nn.Module, norms: Mapping[str, str] = _BASIC_NORMS) -> list[Site]:
    """Sites of every attention and ``FeedForward`` of ``model``, in module order.

    ``norms``: name of an attention or feed-forward within its block -> name of the norm there
    whose input is the residual stream. The default is that of ``BasicTransformerBlock``. An
    attention without an output projection is left to the family, which knows who reads it.
    """
    modules = dict(model.named_modules())
    sites: list[Site] = []
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        stream = f"{parent}.{norms[leaf]}" if leaf in norms else ""
        stream = stream if modules.get(stream) is not None else ""
        if is_attention(module) and _linears(module, "output"):
            sites += attention_sites(name, module, stream)
        elif isinstance(module, FeedForward):
            sites += feed_forward_sites(name, module, stream)
    return sites


def attention_sites(name: str, attn: Any, stream: str) -> list[Site]:
    """The query-key and the value-output site of one attention, with all streams it joins."""
    readers = tuple(
        columns("output", f"{name}.{leaf}", linear, reader=i)
        for i, (leaf, linear) in enumerate(_linears(attn, "output"))
    )
    return [
        query_key_site(name, attn, stream),
        value_output_site(name, attn, stream, readers),
    ]


def query_key_site(name: str, attn: Any, stream: str) -> Site:
    """The query-key inner product, over all streams of the attention."""
    parts = _writers(name, attn, "query") + _writers(name, attn, "key")
    reason = _attention_lock(attn) or _query_key_lock(attn)
    width = parts[-1].size // attn.heads
    return Site(f"{name}.qk", "qk", name, stream, attn.heads, width, parts, reason)


def value_output_site(name: str, attn: Any, stream: str, readers: tuple[Part, ...]) -> Site:
    """The value-output path, over all streams of the attention, read by ``readers``."""
    values = _writers(name, attn, "value")
    reason = _attention_lock(attn)
    width = readers[0].size // attn.heads
    return Site(f"{name}.vo", "vo", name, stream, attn.heads, width, values + readers, reason)


def feed_forward_sites(name: str, ff: FeedForward, stream: str) -> list[Site]:
    """The site of one feed-forward, gated or plain."""
    activation, down = ff.net[0], ff.net[2]
    assert isinstance(down, nn.Linear)
    up: nn.Linear = activation.proj  # pyright: ignore
    kind, width, up_name = type(activation).__name__, down.in_features, f"{name}.net.0.proj"
    parts: tuple[Part, ...] = (rows("up", up_name, up, 0, width),)
    if kind in _GATED:
        parts += (rows("gate", up_name, up, width, width),)
    parts += (columns("down", f"{name}.net.2", down),)
    known = kind in _GATED | _PLAIN
    reason = None if known else f"activation {kind} is not known to act channel by channel"
    return [Site(f"{name}.ffn", "ffn", name, stream, 1, width, parts, reason)]


def rows(
    role: Role, name: str, linear: nn.Linear, start: int = 0, size: int | None = None
) -> Part:
    """A slab of output rows, by default all of them."""
    size = linear.out_features if size is None else size
    return Part(role, name, start, size, linear.in_features, linear.bias is not None)


def columns(
    role: Role,
    name: str,
    linear: nn.Linear,
    start: int = 0,
    size: int | None = None,
    reader: int = 0,
) -> Part:
    """A slab of input columns, by default all of them."""
    size = linear.in_features if size is None else size
    return Part(role, name, start, size, linear.out_features, linear.bias is not None, reader)


def _writers(name: str, attn: Any, role: Role) -> tuple[Part, ...]:
    return tuple(rows(role, f"{name}.{leaf}", linear) for leaf, linear in _linears(attn, role))


def _linears(attn: Any, role: Role) -> list[tuple[str, nn.Linear]]:
    """Those Linears of ``role`` that this attention has, by name."""
    found = ((leaf, _find(attn, leaf)) for leaf in _LEAVES[role])
    return [(leaf, linear) for leaf, linear in found if linear is not None]


def _find(attn: Any, leaf: str) -> nn.Linear | None:
    """The named Linear; None where the attention was built without it."""
    head, _, index = leaf.partition(".")
    found = getattr(attn, head, None)
    return found[int(index)] if found is not None and index else found


def _attention_lock(attn: Any) -> str | None:
    added = attn.added_kv_proj_dim is not None
    if isinstance(attn, Attention) and added and attn.context_pre_only is None:
        return "added key/value projections (Kandinsky, DeepFloyd) are not supported"
    if attn.to_k is None or attn.to_q.out_features != attn.to_k.out_features:
        return "queries and keys of different widths are not supported"
    return None


def _query_key_lock(attn: Any) -> str | None:
    if attn.norm_q is not None or attn.norm_k is not None:
        return "queries and keys are normalised after their projection"
    width = attn.to_q.out_features // attn.heads
    if abs(attn.scale - width**-0.5) > 1e-6 * attn.scale:
        return f"attention scale {attn.scale:.4g} is not 1/sqrt(head width)"
    return None
