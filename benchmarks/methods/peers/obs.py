"""``obs``: whole attention heads and single feed-forward neurons leave, the rest makes good.

For an output or down projection ``y = W x``, W of shape (m, n), with ``H = E[w_t x x^T]`` the
Hessian of its squared error, ``K = H^{-1}`` over the inputs still there and g a group of inputs
(the columns of one head, or one neuron), Optimal Brain Surgeon says::

    cost_g = tr(W_g (K_gg)^{-1} W_g^T)      W <- W - W_g (K_gg)^{-1} K_g:
                                            K <- K - K_:g (K_gg)^{-1} K_g:

The group of least cost leaves, W and K are updated, and so on. A head takes its query, key and
value rows along, a neuron its up and gate rows. Biases stay as they are.

Publication: Zhu et al., OBS-Diff, 2025 (arXiv 2510.06751), structured: weights ``w_t`` that fall
logarithmically from the first step to the last (early errors accumulate), Hessian damped by 0.01
of its mean diagonal. Heads and neurons keep one common share, heads rounded so that the count is
right; among equal claims the head that costs its output most stays. Simplified: one Hessian from
the dense model serves all layers, where OBS-Diff gathers anew after each of four groups of
layers; groups leave one at a time, where its scripts let neurons go in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from slimdiff.linalg import damped
from slimdiff.sampling import IndexedPrompt, Sampling
from slimdiff.sites import Site, free_sites
from slimdiff.timesteps import log_weights

from .channels import keep_channels_, linear_of
from .moments import Moments, input_moments
from .pool import Width, parameters_left, shared_out, spendable, used

__all__ = [
    "Pruned",
    "attentions",
    "gather",
    "group_size",
    "neurons",
    "prune",
    "slim_",
    "slim_group_",
    "width_of",
]

DAMPING = 0.01


@dataclass(frozen=True)
class Pruned:
    """A projection without some groups of its inputs.

    ``weight``: shape (m, n), columns of zeros for what left; ``kept``: groups still there,
    ascending; ``costs``: what each removal cost, in order.
    """

    weight: Tensor
    kept: Tensor
    costs: Tensor


def prune(
    weight: Tensor, hessian: Tensor, size: int, keep: int, damping: float = DAMPING
) -> Pruned:
    """Remove groups of ``size`` adjacent inputs until ``keep`` are left.

    ``weight``: shape (m, n); ``hessian``: shape (n, n). Time O(n^2) a neuron, O(n^2 size) a head.
    """
    weight = weight.double().clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(hessian.double(), damping)))
    alive = torch.ones(weight.shape[1] // size, dtype=torch.bool, device=weight.device)
    costs = []
    for _ in range(len(alive) - keep):
        cost = torch.where(alive, _costs(weight, inverse, size), torch.inf)
        group = int(cost.argmin())
        costs.append(cost[group])
        _remove_(weight, inverse, slice(group * size, (group + 1) * size))
        alive[group] = False
    return Pruned(weight, alive.nonzero().squeeze(1), torch.tensor(costs, dtype=torch.float64))


def slim_(
    model: nn.Module,
    sites: Sequence[Site],
    moments: Moments,
    share: float,
    generator: torch.Generator,
) -> int:
    """Remove heads, then neurons, and update what reads them; returns the parameters left."""
    limit = spendable(sites, share)
    heads_of, neurons_of = attentions(sites), neurons(sites)
    heads = {name: width_of(members) for name, members in heads_of.items()}
    both = used(heads, {n: int(w.full) for n, w in heads.items()})
    whole = both + used(neurons_of, {n: int(w.full) for n, w in neurons_of.items()})
    kept_heads = shared_out(
        heads, limit * both // whole, _worth(model, heads_of, moments, limit / whole)
    )
    # Heads are coarse: neurons take up what rounding heads down left.
    kept_neurons = shared_out(neurons_of, limit - used(heads, kept_heads))
    for name, members in heads_of.items():
        slim_group_(model, members, moments, kept_heads[name])
    for site in free_sites(sites):
        if site.kind == "ffn":
            slim_group_(model, [site], moments, kept_neurons[site.name])
    return parameters_left(model, sites, used(heads, kept_heads) + used(neurons_of, kept_neurons))


def gather(
    pipe: DiffusionPipeline,
    sites: Sequence[Site],
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
) -> Moments:
    """Input moments of the output and down projections, early steps weighing more."""
    linears = [part.linear for site in free_sites(sites) for part in site.parts if part.reads]
    weights = log_weights(pipe.scheduler, sampling.steps)  # pyright: ignore
    return input_moments(pipe, linears, prompts, sampling, weights)


def _costs(weight: Tensor, inverse: Tensor, size: int) -> Tensor:
    """``tr(W_g (K_gg)^{-1} W_g^T)`` for every group, shape (n / size,); any value where gone."""
    if size == 1:
        return weight.square().sum(0) / inverse.diagonal()
    groups = weight.shape[1] // size
    blocks = inverse.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    gone = (blocks.diagonal(dim1=1, dim2=2) == 0).all(1)
    blocks = blocks + gone[:, None, None] * torch.eye(size).to(blocks)
    columns = weight.view(-1, groups, size).permute(1, 2, 0)
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))


def _remove_(weight: Tensor, inverse: Tensor, group: slice) -> None:
    """One step of the surgeon, in place."""
    share = torch.linalg.solve(inverse[group, group], inverse[group])
    weight.addmm_(weight[:, group].clone(), share, alpha=-1)
    inverse.addmm_(inverse[:, group].clone(), share, alpha=-1)
    weight[:, group] = 0
    inverse[group] = 0
    inverse[:, group] = 0


def attentions(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """The value-output site and, where it is unlocked, the query-key site of each attention."""
    found: dict[str, list[Site]] = {}
    for site in free_sites(sites):
        if site.kind == "vo":
            found[site.module] = [site]
    for site in free_sites(sites):
        if site.kind == "qk" and site.module in found:
            found[site.module].append(site)
    return found


def neurons(sites: Sequence[Site]) -> dict[str, Width]:
    """The feed-forward layers, counted in neurons."""
    return {
        site.name: Width(site.width, site.parameters(1))
        for site in free_sites(sites)
        if site.kind == "ffn"
    }


def width_of(members: Sequence[Site]) -> Width:
    """An attention counted in heads."""
    return Width(members[0].heads, sum(s.parameters() for s in members) // members[0].heads)


def _worth(
    model: nn.Module, heads_of: dict[str, list[Site]], moments: Moments, share: float
) -> dict[str, float]:
    """What rounding down would cost each attention, relative to the energy of its output."""
    found = {}
    for name, members in heads_of.items():
        part = members[0].role("output")[0]
        weight = linear_of(model, part).weight.detach().double()
        hessian = moments[part.linear].to(weight)
        keep = int(share * members[0].heads)
        costs = prune(weight, hessian, members[0].width, keep).costs
        energy = (weight @ hessian * weight).sum()
        found[name] = float(costs[-1] / energy) if len(costs) else 0.0
    return found


@torch.no_grad()
def slim_group_(model: nn.Module, members: Sequence[Site], moments: Moments, keep: int) -> None:
    """Keep ``keep`` groups of the inputs of the first member's reader, and what feeds them."""
    (part,) = (part for part in members[0].parts if part.reads)
    linear = linear_of(model, part)
    moment = moments[part.linear].to(linear.weight.device)
    pruned = prune(linear.weight, moment, group_size(members[0]), keep)
    linear.weight.copy_(pruned.weight)
    for site in members:
        size = group_size(site)
        within = torch.arange(size, device=pruned.kept.device)
        keep_channels_(model, site, (pruned.kept[:, None] * size + within).flatten())


def group_size(site: Site) -> int:
    """Channels that leave together: a head's, or one neuron."""
    return 1 if site.kind == "ffn" else site.width
