"""Later sites repair what earlier ones broke: readers refitted to the dense model's outputs.

The output and down projections of the slim model are taken in order of execution, in groups. For
a group, both models run on the dense model's latents, the slim one with all earlier groups already
refitted, and every projection is fitted anew by least squares on what it now reads,

    min_W sum_t w_t |[z~, 1] W - y|^2 + ridge |W - W_0|^2,

``z~``: its input in the slim model, (N, n); ``y``: its output in the dense model, (N, D); ``W_0``:
the map it had. The solution is

    W = W_0 + (G + ridge I)^{-1} (C - G W_0),   G = sum [z~,1]^T [z~,1],   C = sum [z~,1]^T y.

Sequential fitting against the dense outputs is known from language models (SparseGPT, Frantar and
Alistarh, 2023, arXiv 2301.00774, among others); the paper has no counterpart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm import tqdm

from .compression import plan_of, record_plan_
from .denoiser import denoiser, timestep_of
from .environment import float64, float64_device
from .errors import SlimdiffError
from .gains import one_call
from .recording import Weighting
from .sampling import batches, sample_latents
from .shadow import shadowing
from .sites import free_sites
from .statistics import Statistics
from .tally import wide
from .weighting import timestep_weighting

__all__ = ["repair_"]

_RIDGE = 1e-3


@dataclass
class _Reader:
    """One projection to refit: its sums, and the dense run's half of the current call."""

    linear: str
    site: str
    gram: Tensor
    cross: Tensor
    wanted: Tensor | None = None


def repair_(
    dense: DiffusionPipeline, slim: DiffusionPipeline, stats: Statistics, rounds: int
) -> None:
    """Refit the slim denoiser's output and down projections in ``rounds`` groups, in place.

    ``slim`` was cut from ``dense`` by ``stats``, on whose prompts both are run; each round costs
    the time of sampling them with both. Raises SlimdiffError for fewer than one round or a
    pipeline that is not slim.
    """
    if rounds < 1:
        raise SlimdiffError(f"rounds={rounds}; expected 1 or more.")
    plan, header = plan_of(slim), stats.header
    if plan is None:
        raise SlimdiffError("The second pipeline is not slim: its denoiser records no plan.")
    weights = timestep_weighting(dense, header)
    order = _in_order(dense, stats)
    for k in range(rounds):
        group = order[k * len(order) // rounds : (k + 1) * len(order) // rounds]
        if group:
            readers = [_reader(denoiser(slim), *names) for names in group]
            _gather(dense, slim, stats, readers, weights, f"round {k + 1} of {rounds}")
            for reader in readers:
                _refit_(denoiser(slim).get_submodule(reader.linear), reader)
    record_plan_(slim, replace(plan, calibration={**plan.calibration, "rounds": rounds}))


def _in_order(dense: DiffusionPipeline, stats: Statistics) -> list[tuple[str, str]]:
    """Reader and site names of all unlocked sites, as the denoiser runs through them."""
    names = {
        part.linear: (part.linear, site.name)
        for site in free_sites(stats.header.sites)
        for part in site.parts
        if part.reads
    }
    call = one_call(dense, stats.header.prompts[:1], stats.header.sampling)
    seen: dict[str, None] = {}
    model = denoiser(dense)
    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(
                lambda module, args, name=name: seen.setdefault(name)
            )
            hooks.callback(handle.remove)
        model(*call.args, **call.kwargs)
    return [names[name] for name in seen]


def _reader(model: nn.Module, linear: str, site: str) -> _Reader:
    weight = model.get_submodule(linear).weight
    assert isinstance(weight, Tensor)
    outputs, inputs = weight.shape

    place = float64_device(weight.device)

    def zeros(columns: int) -> Tensor:
        return torch.zeros(inputs + 1, columns, dtype=torch.float64, device=place)

    return _Reader(linear, site, zeros(inputs + 1), zeros(outputs))


def _gather(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    stats: Statistics,
    readers: Sequence[_Reader],
    weights: Weighting,
    title: str,
) -> None:
    """Sum the readers' moments over the calibration prompts."""
    header = stats.header
    sampling = header.sampling.calibrating
    with (
        _watching(denoiser(dense), denoiser(slim), readers, stats, weights),
        shadowing(denoiser(dense), denoiser(slim), lambda ours, theirs: None),
        tqdm(total=len(header.prompts), desc=title, unit="prompt", disable=None) as bar,
    ):
        for batch in batches(header.prompts, sampling.batch_size):
            sample_latents(dense, batch, sampling)
            bar.update(len(batch))


@contextmanager
def _watching(
    dense: nn.Module,
    slim: nn.Module,
    readers: Sequence[_Reader],
    stats: Statistics,
    weights: Weighting,
) -> Iterator[None]:
    """Hooks: the dense run leaves what is wanted, the slim run takes it and adds to the sums."""
    now = {"timestep": 0.0}

    def follow(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        now["timestep"] = timestep_of(args, kwargs)

    with ExitStack() as hooks:
        handle = dense.register_forward_pre_hook(follow, with_kwargs=True)
        hooks.callback(handle.remove)
        for reader in readers:
            for handle in _hooks(dense, slim, reader, stats, weights, now):
                hooks.callback(handle.remove)
        yield


def _hooks(
    dense: nn.Module,
    slim: nn.Module,
    reader: _Reader,
    stats: Statistics,
    weights: Weighting,
    now: dict[str, float],
) -> Iterator[Any]:
    def rows(x: Tensor) -> Tensor:
        """The picked tokens, (B n, features)."""
        x = wide(x).reshape(x.shape[0], -1, x.shape[-1])
        picked = stats.header.tokens.pick(x.shape[1], now["timestep"], x.device)
        return (x if picked is None else x.index_select(1, picked)).flatten(0, 1)

    def dense_output(module: nn.Module, args: Any, out: Tensor) -> None:
        reader.wanted = rows(out)

    def slim_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert reader.wanted is not None
        read = rows(args[0])
        read = torch.cat([read, read.new_ones(len(read), 1)], 1)
        weight = weights(reader.site, now["timestep"])
        reader.gram += weight * float64(read.mT @ read)
        reader.cross += weight * float64(read.mT @ reader.wanted)

    yield dense.get_submodule(reader.linear).register_forward_hook(dense_output)
    yield slim.get_submodule(reader.linear).register_forward_pre_hook(slim_input)


def _refit_(linear: nn.Module, reader: _Reader) -> None:
    assert isinstance(linear, nn.Linear)
    bias = linear.bias is not None
    gram, cross = (x if bias else x[:-1] for x in (reader.gram, reader.cross))
    gram = gram[:, : len(gram)]
    start = float64(linear.weight.detach()).T
    if bias:
        start = torch.cat([start, float64(linear.bias.detach())[None]])
    found = refitted(gram, cross, start, _RIDGE)
    with torch.no_grad():
        linear.weight.copy_(found[: linear.in_features].T)
        if bias:
            linear.bias.copy_(found[-1])


def refitted(gram: Tensor, cross: Tensor, start: Tensor, ridge: float) -> Tensor:
    """Least squares that stays near ``start``: ``start + (G + ridge I)^{-1} (C - G start)``.

    ``gram``: (n, n); ``cross`` and ``start``: (n, D); ``ridge`` is relative to the mean diagonal.
    """
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    return start + torch.linalg.solve(damped, cross - gram @ start)
