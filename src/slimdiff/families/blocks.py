"""Reads the attention and feed-forward modules that diffusers shares between models into sites."""

from __future__ import annotations

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn

from ..sites import Part, Role, Site

__all__ = ["attention_sites", "feed_forward_sites", "shared_block_sites"]

_GATED = {"GEGLU", "SwiGLU"}
_PLAIN = {"GELU", "ApproximateGELU", "LinearActivation"}


def shared_block_sites(model: nn.Module) -> list[Site]:
    """Sites of every shared ``Attention`` and ``FeedForward`` of ``model``, in module order."""
    modules = dict(model.named_modules())
    sites: list[Site] = []
    for name, module in modules.items():
        if isinstance(module, Attention):
            sites += attention_sites(name, module, _stream(name, modules))
        elif isinstance(module, FeedForward):
            sites += feed_forward_sites(name, module, _stream(name, modules))
    return sites


def attention_sites(name: str, attn: Attention, stream: str) -> list[Site]:
    """The query-key and the value-output site of one attention."""
    assert attn.to_k is not None
    assert attn.to_v is not None
    out: nn.Linear = attn.to_out[0]  # pyright: ignore
    heads = attn.heads
    query_key, value = (w.out_features // heads for w in (attn.to_k, attn.to_v))
    reason = _attention_lock(attn)
    qk = (
        _rows("query", f"{name}.to_q", attn.to_q),
        _rows("key", f"{name}.to_k", attn.to_k),
    )
    vo = (
        _rows("value", f"{name}.to_v", attn.to_v),
        _columns("output", f"{name}.to_out.0", out),
    )
    qk_reason = reason or _query_key_lock(attn)
    return [
        Site(f"{name}.qk", "qk", name, stream, heads, query_key, qk, qk_reason),
        Site(f"{name}.vo", "vo", name, stream, heads, value, vo, reason),
    ]


def feed_forward_sites(name: str, ff: FeedForward, stream: str) -> list[Site]:
    """The site of one feed-forward, gated or plain."""
    activation, down = ff.net[0], ff.net[2]
    assert isinstance(down, nn.Linear)
    up: nn.Linear = activation.proj  # pyright: ignore
    kind, width, up_name = type(activation).__name__, down.in_features, f"{name}.net.0.proj"
    parts: tuple[Part, ...] = (_rows("up", up_name, up, 0, width),)
    if kind in _GATED:
        parts += (_rows("gate", up_name, up, width, width),)
    parts += (_columns("down", f"{name}.net.2", down),)
    known = kind in _GATED | _PLAIN
    reason = None if known else f"activation {kind} is not known to act channel by channel"
    return [Site(f"{name}.ffn", "ffn", name, stream, 1, width, parts, reason)]


def _rows(
    role: Role, name: str, linear: nn.Linear, start: int = 0, size: int | None = None
) -> Part:
    size = linear.out_features if size is None else size
    return Part(role, name, start, size, linear.in_features, linear.bias is not None)


def _columns(role: Role, name: str, linear: nn.Linear) -> Part:
    return Part(role, name, 0, linear.in_features, linear.out_features, linear.bias is not None)


def _attention_lock(attn: Attention) -> str | None:
    if attn.added_kv_proj_dim is not None:
        return "added key/value projections (Kandinsky, DeepFloyd) are not supported"
    if attn.to_k is None or attn.to_q.out_features != attn.to_k.out_features:
        return "queries and keys of different widths are not supported"
    return None


def _query_key_lock(attn: Attention) -> str | None:
    if attn.norm_q is not None or attn.norm_k is not None:
        return "queries and keys are normalised after their projection"
    width = attn.to_q.out_features // attn.heads
    if abs(attn.scale - width**-0.5) > 1e-6 * attn.scale:
        return f"attention scale {attn.scale:.4g} is not 1/sqrt(head width)"
    return None


def _stream(name: str, modules: dict[str, nn.Module]) -> str:
    """Name of the norm whose input is the residual stream, by diffusers' block convention."""
    parent, _, leaf = name.rpartition(".")
    norm = {"attn1": "norm1", "attn2": "norm2", "ff": "norm3"}.get(leaf)
    candidate = f"{parent}.{norm}" if norm else ""
    return candidate if modules.get(candidate) is not None else ""
