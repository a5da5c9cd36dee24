"""Hooks that sum second moments while the denoiser runs, and that always come off.

What is summed, per site, over every token of every call, each call weighted by ``w_t`` (H heads,
d head width, F feed-forward width; all sums float64, products float32 or the model's own width
if that is larger):

- qk: ``query`` = sum q q^T and ``key`` = sum k~ k~^T per head, (H, d, d); ``k~`` is the key
  less the mean over its own sequence's unmasked keys, all streams of a joint attention together;
  ``key_mean`` = sum of those means' own products, so that ``key + key_mean`` is the uncentred
  moment.
- vo: ``augmented``, sum of the squares of ``[y, 1]``, (Hd+1, Hd+1); y enters the output
  projection; for the second reader of a joint attention ``augmented.1``; ``value`` = sum v v^T
  per head, (H, d, d).
- ffn: ``augmented``, the same of ``[z, 1]``, (F+1, F+1); z enters the down projection.
- each: ``energy`` = sums of |output|^2, |residual stream|^2 and tokens, (3,), of the first
  reader's stream.

A seeded subset of the tokens can stand for all: it depends on length and timestep only, so sums
over any split of the prompts add up to the same. Weights are scaled up by N / n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .decomposition import of_reader
from .denoiser import output_of, timestep_of
from .environment import float64_device
from .errors import SlimdiffError
from .sites import Part, Site, free_sites
from .tally import Tally, wide
from .token_sampling import TokenSampling

__all__ = [
    "Sums",
    "TokenSampling",
    "Weighting",
    "empty_sums",
    "moment_mib",
    "recording",
    "unweighted",
]

Sums = dict[str, dict[str, Tensor]]
"""Site name -> name of the sum -> tensor. Sums add: over calls, prompts and processes."""


Weighting = Callable[[str, float], float]
"""Site name and timestep -> ``w_t``."""


def unweighted(site: str, timestep: float) -> float:
    """Every step counts 1."""
    return 1.0


def empty_sums(sites: Sequence[Site], device: torch.device) -> Sums:
    """Zeros for every unlocked site; on the CPU where the device has no float64 (MPS)."""
    place = float64_device(device)
    return {site.name: _zeros(site, place) for site in free_sites(sites)}


def moment_mib(sites: Sequence[Site]) -> float:
    """Memory of the sums of all unlocked sites, MiB."""
    sums = empty_sums(sites, torch.device("meta"))
    return sum(total.nbytes for found in sums.values() for total in found.values()) / 2**20


@contextmanager
def recording(
    model: nn.Module,
    sites: Sequence[Site],
    sums: Sums,
    *,
    tokens: TokenSampling,
    weights: Weighting = unweighted,
) -> Iterator[Tally]:
    """Add the moments of every denoiser call inside the ``with`` block to ``sums``, in place.

    To read ``sums`` inside the block, :meth:`Tally.complete` them first.
    ``weights`` gives ``w_t`` for a site and a timestep. Raises SlimdiffError naming site and
    timestep if an activation is not finite, or the timestep if only the output is not. After an
    exception ``sums`` are not whole.
    """
    tally = Tally(sums)
    modules = dict(model.named_modules())
    handles = [
        model.register_forward_pre_hook(_follow(tally), with_kwargs=True),
        model.register_forward_hook(_settle(tally)),
    ]
    try:
        for site in free_sites(sites):
            recorder = _Recorder(site, tokens, weights, tally)
            for handle in recorder.attach(modules):
                handles.append(handle)
        yield tally
        tally.complete()
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


def _follow(tally: Tally) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tally.begin(timestep_of(args, kwargs))

    return hook


def _settle(tally: Tally) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        value = out if isinstance(out, Tensor) else output_of(out)
        finite = bool(torch.isfinite(value).all())
        tally.settle(finite)
        if not finite:
            raise SlimdiffError(
                f"The output of {type(module).__name__} holds NaN or infinity at timestep "
                f"{tally.timestep:g}; expected finite numbers. Try --dtype float32 or bfloat16."
            )

    return hook


class _Recorder:
    """The hooks of one site."""

    def __init__(
        self, site: Site, tokens: TokenSampling, weights: Weighting, tally: Tally
    ) -> None:
        self.site, self.tokens, self.weights, self.tally = site, tokens, weights, tally
        self.mask: Tensor | None = None
        self.keys: list[Tensor] = []

    @property
    def weight(self) -> float:
        return self.weights(self.site.name, self.tally.timestep)

    def attach(self, modules: Mapping[str, nn.Module]) -> Iterator[Any]:
        """Hook by hook, so that those already on are known if a module is missing."""
        site, counted = self.site, self._counted
        readers = [part for part in site.parts if part.reads]
        first = readers[0].linear if readers else site.module
        yield modules[first].register_forward_hook(counted(self._on_output))
        if site.stream:
            yield modules[site.stream].register_forward_pre_hook(counted(self._on_stream))
        if site.kind == "qk":
            attention, on_attention = modules[site.module], counted(self._on_attention)
            yield attention.register_forward_pre_hook(on_attention, with_kwargs=True)
            for part in site.role("query"):
                yield modules[part.linear].register_forward_hook(counted(self._on_query))
            for part in site.role("key"):
                yield modules[part.linear].register_forward_hook(counted(self._on_key))
        for part in site.role("value"):
            yield modules[part.linear].register_forward_hook(counted(self._on_value))
        for part in readers:
            on_reader = counted(partial(self._on_reader, part))
            yield modules[part.linear].register_forward_pre_hook(on_reader)

    def _counted(self, hook: Callable[..., None]) -> Callable[..., None]:
        """``hook``, left out of calls that count nothing."""

        def run(*args: Any) -> None:
            if self.weight:
                hook(*args)

        return run

    def _on_attention(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.mask = kwargs.get("attention_mask")
        self.keys.clear()

    def _on_query(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self._add("query", self._picked(out), self._share(out))

    def _on_key(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.keys.append(wide(out))
        if len(self.keys) < len(self.site.role("key")):
            return
        keys = torch.cat(self.keys, 1) if len(self.keys) > 1 else self.keys[0]
        self.keys.clear()
        picked, share = self._picked(keys), self._share(keys)
        if self.mask is None:
            mean, count = keys.mean(1, keepdim=True), keys.shape[1]
            self._add("key", picked - mean, share)
        else:
            unmasked = _unmasked(self.mask, keys)
            count = unmasked.sum(1, keepdim=True)
            mean = (keys * unmasked).sum(1, keepdim=True) / count
            self._add("key", (picked - mean) * self._picked(unmasked), share)
        # Scaled, not repeated: sums of many equal float32 products drift by 1e-6.
        self._add("key_mean", mean * count**0.5)

    def _on_value(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self._add("value", self._picked(out), self._share(out))

    def _on_reader(self, part: Part, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0][..., part.start : part.start + part.size]
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        self._add(of_reader("augmented", part.reader), self._picked(x), self._share(x))

    def _on_output(self, module: nn.Module, args: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        tokens = out.numel() // out.shape[1 if out.dim() == 4 else -1]
        self.tally.add_energy(self.site.name, 0, out, self.weight)
        self.tally.add_tokens(self.site.name, self.weight * tokens)

    def _on_stream(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.tally.add_energy(self.site.name, 1, args[0], self.weight)

    def _picked(self, x: Tensor) -> Tensor:
        """The picked tokens of ``x``, (B, N, features)."""
        picked = self.tokens.pick(x.shape[1], self.tally.timestep, x.device)
        return x if picked is None else x.index_select(1, picked)

    def _share(self, x: Tensor) -> float:
        """How many tokens of ``x``, (B, N, features), each picked one stands for."""
        return x.shape[1] / self.tokens.count(x.shape[1])

    def _add(self, name: str, x: Tensor, share: float = 1.0) -> None:
        self.tally.add(self.site.name, name, wide(x).flatten(0, 1), self.weight * share)


def _unmasked(mask: Tensor, keys: Tensor) -> Tensor:
    """1 for keys that may be attended, shape (B, M, 1); ``mask`` is boolean or a bias.

    A sequence masked as a whole counts as unmasked: softmax does not see a bias all keys share.
    """
    keep = mask if mask.dtype == torch.bool else mask > -1.0
    keep = keep.reshape(len(keys), -1, keep.shape[-1]).any(1)
    keep = keep | ~keep.any(1, keepdim=True)
    return keep.to(keys.dtype)[..., None]
