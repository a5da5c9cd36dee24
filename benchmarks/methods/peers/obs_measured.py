"""``obs`` with ranks chosen as ours are, which its publication does not do.

Shows what of a difference lies in the closed forms and what in the ranks. Each attention and each
feed-forward layer is pruned alone to half its groups and the error of the denoiser's output is
measured, as :mod:`slimdiff.gains` does. The sum of its removal costs, exact for its own output,
carries that over to other counts, and slimdiff's own policy ``measured`` chooses.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from slimdiff.gains import Call, output_error
from slimdiff.policies.measured import measured
from slimdiff.policies.options import Group, Option
from slimdiff.sites import Site

from .channels import linear_of
from .moments import Moments
from .obs import attentions, group_size, neurons, prune, slim_group_, width_of
from .pool import Width, parameters_left, spendable

__all__ = ["curve_of", "price", "slim_"]


def price(
    model: nn.Module, sites: Sequence[Site], moments: Moments, calls: Sequence[Call]
) -> dict[str, float]:
    """Error of the output with each unit alone at half its groups. ``model`` stays as it is."""
    found = {}
    for name, (members, width) in _units(sites).items():
        cut = copy.deepcopy(model)
        slim_group_(cut, members, moments, _half(width))
        found[name] = output_error(cut, calls)
    return found


def slim_(
    model: nn.Module,
    sites: Sequence[Site],
    moments: Moments,
    share: float,
    prices: Mapping[str, float],
) -> int:
    """Remove heads and neurons where ``prices`` say that it costs least; returns what is left."""
    units = _units(sites)
    groups = [
        _group(name, width, _curve(model, members, moments), prices[name])
        for name, (members, width) in units.items()
    ]
    chosen = measured(groups, (float(spendable(sites, share)),))
    for group, option in zip(groups, chosen, strict=True):
        members, width = units[group.name]
        if option.widths[group.name] < width.full:
            slim_group_(model, members, moments, option.widths[group.name])
    return parameters_left(model, sites, round(sum(option.costs[0] for option in chosen)))


def _units(sites: Sequence[Site]) -> dict[str, tuple[list[Site], Width]]:
    """What is pruned together and in how many groups: attentions by head, layers by neuron."""
    by_name = {site.name: site for site in sites}
    heads = {name: (members, width_of(members)) for name, members in attentions(sites).items()}
    return heads | {name: ([by_name[name]], width) for name, width in neurons(sites).items()}


def _half(width: Width) -> int:
    return max(1, int(width.full) // 2)


def _curve(model: nn.Module, members: Sequence[Site], moments: Moments) -> Tensor:
    """Error of the unit's own output with 1, 2, ... all groups kept; shape (groups,)."""
    (part,) = (part for part in members[0].parts if part.reads)
    weight = linear_of(model, part).weight.detach()
    costs = prune(weight, moments[part.linear].to(weight.device), group_size(members[0]), 1).costs
    return curve_of(costs)


def curve_of(costs: Tensor) -> Tensor:
    """Error with 1, 2, ... all groups kept, shape (n,), from what each removal cost, (n - 1,)."""
    return torch.cat([costs.cumsum(0).flip(0), costs.new_zeros(1)])


def _group(name: str, width: Width, curve: Tensor, error: float) -> Group:
    """Every count of a unit as an option; ``error`` is that at half the groups."""
    scale = error / max(float(curve[_half(width) - 1]), 1e-300)
    options = [
        Option(
            {name: keep},
            (float(keep * width.cost),),
            scale * float(curve[keep - 1]),
            keep / width.full,
        )
        for keep in range(1, int(width.full) + 1)
    ]
    return Group(name, tuple(options))
