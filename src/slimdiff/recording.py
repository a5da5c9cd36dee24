"""Hooks that sum second moments while the denoiser runs, and that always come off.

What is summed, per site, over every token of every call, each call weighted by ``w_t`` (H heads,
d head width, F feed-forward width; all sums float64, products float32 or the model's own width
if that is larger):

====  ==============================================================================
qk    ``query`` = sum q q^T and ``key`` = sum k~ k~^T per head, (H, d, d); ``k~`` is the key
      less the mean over its own sequence's unmasked keys, all streams of a joint attention
      together; ``key_mean`` = sum of those means' own products, so that ``key + key_mean``
      is the uncentred moment
vo    ``augmented`` = sum [y, 1][y, 1]^T, (Hd+1, Hd+1); y enters the output projection; for
      the second reader of a joint attention ``augmented.1``;
      ``value`` = sum v v^T per head, (H, d, d)
ffn   ``augmented`` = sum [z, 1][z, 1]^T, (F+1, F+1); z enters the down projection
each  ``energy`` = sums of |output|^2, |residual stream|^2 and tokens, (3,), of the first
      reader's stream
====  ==============================================================================

A seeded subset of the tokens can stand for all: it depends on site and timestep only, so sums
over any split of the prompts add up to the same. Weights are scaled up by N / n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .decomposition import of_reader
from .denoiser import output_of, timestep_of
from .environment import float64_device
from .errors import SlimdiffError
from .sites import Part, Site
from .token_sampling import TokenSampling

__all__ = ["Sums", "TokenSampling", "Weighting", "empty_sums", "recording", "unweighted", "wide"]

Sums = dict[str, dict[str, Tensor]]
"""Site name -> name of the sum -> tensor. Sums add: over calls, prompts and processes."""


Weighting = Callable[[str, float], float]
"""Site name and timestep -> ``w_t``."""


def unweighted(site: str, timestep: float) -> float:
    """Every step counts 1."""
    return 1.0


@dataclass
class _Call:
    """What the hooks need to know of the running denoiser call."""

    timestep: float = 0.0


def empty_sums(sites: Sequence[Site], device: torch.device) -> Sums:
    """Zeros for every unlocked site; on the CPU where the device has no float64 (MPS)."""
    place = float64_device(device)
    return {s.name: _zeros(s, place) for s in sites if s.locked is None}


@contextmanager
def recording(
    model: nn.Module,
    sites: Sequence[Site],
    sums: Sums,
    *,
    tokens: TokenSampling,
    weights: Weighting = unweighted,
) -> Iterator[None]:
    """Add the moments of every denoiser call inside the ``with`` block to ``sums``, in place.

    ``weights`` gives ``w_t`` for a site and a timestep. Raises SlimdiffError naming site and
    timestep if an activation is not finite, or the timestep if only the output is not.
    """
    call = _Call()
    modules = dict(model.named_modules())
    handles = [
        model.register_forward_pre_hook(_follow(call), with_kwargs=True),
        model.register_forward_hook(_check_output(call)),
    ]
    try:
        for site in sites:
            if site.locked is None:
                recorder = _Recorder(site, sums[site.name], tokens, weights, call)
                for handle in recorder.attach(modules):
                    handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zeros(site: Site, device: torch.device) -> dict[str, Tensor]:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    h, d = site.heads, site.width
    if site.kind == "qk":
        names = ("query", "key", "key_mean")
        return {name: zeros(h, d, d) for name in names} | {"energy": zeros(3)}
    readers = [part.reader for part in site.parts if part.reads]
    sums = {of_reader("augmented", i): zeros(h * d + 1, h * d + 1) for i in readers}
    sums["energy"] = zeros(3)
    return sums | {"value": zeros(h, d, d)} if site.kind == "vo" else sums


def _follow(call: _Call) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.timestep = timestep_of(args, kwargs)

    return hook


def _check_output(call: _Call) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        value = out if isinstance(out, Tensor) else output_of(out)
        if not bool(torch.isfinite(value).all()):
            raise SlimdiffError(
                f"The output of {type(module).__name__} holds NaN or infinity at timestep "
                f"{call.timestep:g}; expected finite numbers. Try --dtype float32 or bfloat16."
            )

    return hook


class _Recorder:
    """The hooks of one site."""

    def __init__(
        self,
        site: Site,
        sums: dict[str, Tensor],
        tokens: TokenSampling,
        weights: Weighting,
        call: _Call,
    ) -> None:
        self.site, self.sums, self.tokens, self.call = site, sums, tokens, call
        self.weights = weights
        self.mask: Tensor | None = None
        self.keys: list[Tensor] = []

    @property
    def weight(self) -> float:
        return self.weights(self.site.name, self.call.timestep)

    def attach(self, modules: Mapping[str, nn.Module]) -> Iterator[Any]:
        """Hook by hook, so that those already on are known if a module is missing."""
        site = self.site
        readers = [part for part in site.parts if part.reads]
        first = readers[0].linear if readers else site.module
        yield modules[first].register_forward_hook(self._on_output)
        if site.stream:
            yield modules[site.stream].register_forward_pre_hook(self._on_stream)
        if site.kind == "qk":
            attention = modules[site.module]
            yield attention.register_forward_pre_hook(self._on_attention, with_kwargs=True)
            for part in site.role("query"):
                yield modules[part.linear].register_forward_hook(self._on_query)
            for part in site.role("key"):
                yield modules[part.linear].register_forward_hook(self._on_key)
        for part in site.role("value"):
            yield modules[part.linear].register_forward_hook(self._on_value)
        for part in readers:
            yield modules[part.linear].register_forward_pre_hook(partial(self._on_reader, part))

    def _on_attention(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.mask = kwargs.get("attention_mask")
        self.keys.clear()

    def _on_query(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self._add_gram("query", self._heads(self._picked(out)), self.scale**2)

    def _on_key(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.keys.append(self._heads(out))
        if len(self.keys) < len(self.site.role("key")):
            return
        keys = torch.cat(self.keys, 1)
        self.keys.clear()
        unmasked = _unmasked(self.mask, keys)
        count = unmasked.sum(1, keepdim=True)
        mean = (keys * unmasked).sum(1, keepdim=True) / count
        centred = (self._picked(keys) - mean) * self._picked(unmasked)
        self._add_gram("key", centred, self.scale**2)
        # Scaled, not repeated: sums of many equal float32 products drift by 1e-6.
        self._add_gram("key_mean", mean * count.sqrt())

    def _on_value(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self._add_gram("value", self._heads(self._picked(out)), self.scale**2)

    def _on_reader(self, part: Part, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0][..., part.start : part.start + part.size]
        rows = wide(self._picked(x.reshape(x.shape[0], -1, x.shape[-1])))
        ones = rows.new_ones(*rows.shape[:-1], 1)
        rows = torch.cat([rows, ones], -1).flatten(0, 1)
        self._add(of_reader("augmented", part.reader), rows.mT @ rows, self.scale**2)

    def _on_output(self, module: nn.Module, args: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        tokens = out.numel() // out.shape[1 if out.dim() == 4 else -1]
        self.sums["energy"][0] += self.weight * _energy(out)
        self.sums["energy"][2] += self.weight * tokens

    def _on_stream(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.sums["energy"][1] += self.weight * _energy(args[0])

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, Hd) -> (B, N, H, d)."""
        return wide(x).unflatten(-1, (self.site.heads, self.site.width))

    def _picked(self, x: Tensor) -> Tensor:
        """The picked tokens of ``x``, (B, N, ...); ``scale**2`` tells how many each stands for."""
        picked = self.tokens.pick(x.shape[1], self.site.name, self.call.timestep)
        self.scale = 1.0
        if picked is None:
            return x
        self.scale = (x.shape[1] / len(picked)) ** 0.5
        return x[:, picked.to(x.device)]

    def _add_gram(self, name: str, x: Tensor, scale: float = 1.0) -> None:
        rows = x.flatten(0, 1).transpose(0, 1)
        self._add(name, rows.mT @ rows, scale)

    def _add(self, name: str, gram: Tensor, scale: float = 1.0) -> None:
        # An entry of a Gram is no larger than those of the diagonal that it lies between.
        if not bool(torch.isfinite(gram.diagonal(dim1=-2, dim2=-1)).all()):
            raise SlimdiffError(
                f"Site '{self.site.name}' met NaN or infinity at timestep {self.call.timestep:g}; "
                "expected finite activations. Try --dtype float32 or bfloat16."
            )
        total = self.sums[name]
        total.add_(gram.to(total.device), alpha=self.weight * scale)


def wide(x: Tensor) -> Tensor:
    """``x`` without its graph, at least float32."""
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def _energy(x: Tensor) -> float:
    """Sum of squares."""
    return float(torch.linalg.vector_norm(wide(x))) ** 2


def _unmasked(mask: Tensor | None, keys: Tensor) -> Tensor:
    """1 for keys that may be attended, shape (B, M, 1, 1); ``mask`` is boolean or a bias.

    A sequence masked as a whole counts as unmasked: softmax does not see a bias all keys share.
    """
    batch, length = keys.shape[:2]
    if mask is None:
        return keys.new_ones(1, length, 1, 1).expand(batch, length, 1, 1)
    keep = mask if mask.dtype == torch.bool else mask > -1.0
    keep = keep.reshape(batch, -1, keep.shape[-1]).any(1)
    keep = keep | ~keep.any(1, keepdim=True)
    return keep.to(keys.dtype)[..., None, None]
