"""Statistics and a budget -> a plan. Numbers only: no model is needed and nothing is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch

from .budget import Budget
from .errors import SlimdiffError
from .grid import Grid, blocks, tied
from .latency import LatencyTable
from .plan import Plan
from .policies import POLICIES, Costs, Group, Option, Policy
from .policies.ara import stream_share
from .policies.shapes import Block, merged, price_of, sets_of_blocks, shapes_of
from .prices import PriceList, fixed, price_lists
from .sites import Site, free_sites, pool_parameters, refuse_locked
from .statistics import Statistics

__all__ = [
    "allocate",
    "check_budget",
    "check_policy",
    "grid_for",
    "kept_shares",
    "least",
    "predicted_error",
    "prices_of",
    "reprice",
]

DEFAULT_POLICY = "measured"

SHAPES = 8
"""Most shapes of a repeated block: `torch.compile` keeps as many programs of one."""


def allocate(
    stats: Statistics,
    budget: Budget,
    *,
    latency: LatencyTable | None = None,
    policy: str = DEFAULT_POLICY,
    multiple: int = 8,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    shapes: int = SHAPES,
) -> Plan:
    """Choose a width for every site such that the denoiser keeps at most ``budget``.

    ``latency`` are the times that a latency budget is planned with. ``policy``: ``measured``
    minimises the predicted output error, ``ara`` the spectral one, ``uniform`` keeps one common
    share. Widths are multiples of ``multiple`` (or whole), query-key and value-output widths of an
    attention are equal. Sites that match no pattern of ``only``, or one of ``skip``, stay whole.
    Blocks of one kind have at most ``shapes`` different shapes, unless the dense ones have more
    (:mod:`slimdiff.policies.shapes`).

    Raises SlimdiffError for an unknown policy, statistics without gains, or a budget out of reach.
    """
    header = stats.header
    check_policy(policy)
    if not stats.complete:
        raise SlimdiffError(
            f"The statistics of '{header.source.name}' are incomplete or were merged: "
            f"{header.done} of {len(header.prompts)} prompts summed, {len(header.gains)} gains. "
            "Run slimdiff finish after a merge, else slimdiff calibrate with the same settings."
        )
    sites, prices = header.sites, prices_of(stats, latency)
    grid = grid_for(budget, multiple=multiple, only=only, skip=skip)
    check_budget(prices, sites, budget, grid)
    ceilings, error = budget.ceilings(prices), ERRORS[policy]
    units = [prices[name] for name in ceilings]
    together = tied(sites)
    groups = [
        Group(
            name, tuple(_option(stats, members, ws, units, error) for ws in grid.widths(members))
        )
        for name, members in together
    ]
    every = [members for _, members in together]
    room = [most - fixed(prices[name], every) for name, most in ceilings.items()]
    chosen = _choose(POLICIES[policy], groups, tuple(room), blocks(together, grid), shapes)
    widths = {name: width for option in chosen for name, width in option.widths.items()}
    free = free_sites(sites)
    return Plan(
        widths={site.name: widths[site.name] for site in free},
        full={site.name: site.width for site in free},
        per_unit={site.name: site.parameters(1) for site in free},
        predicted={s.name: predicted_error(stats, s.name, widths[s.name]) for s in free},
        parameters=header.source.parameters,
        pool=pool_parameters(sites),
        budget=asdict(budget),
        policy=policy,
        multiple=multiple,
        method=header.method,
        denoiser=header.source.denoiser,
        model_hash=header.source.hash,
        kept=kept_shares(prices, sites, widths),
        calibration=_provenance(stats),
    )


def _choose(
    policy: Policy, groups: Sequence[Group], room: Costs, blocks: Sequence[Block], shapes: int
) -> list[Option]:
    """What ``policy`` picks, with alike blocks cut alike where there would be too many shapes."""
    chosen = policy(groups, room)
    if shapes_of(blocks, chosen) <= shapes:
        return chosen
    price = price_of(groups, chosen, room)
    return policy(merged(groups, sets_of_blocks(groups, blocks, shapes, price, room)), room)


def check_policy(policy: str) -> None:
    """Raise SlimdiffError unless there is a policy of that name."""
    if policy not in POLICIES:
        raise SlimdiffError(f"Unknown policy '{policy}'; expected one of {', '.join(POLICIES)}.")


def grid_for(
    budget: Budget,
    *,
    multiple: int = 8,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    **others: object,
) -> Grid:
    """The widths that the options of :func:`allocate` leave to choose from."""
    return Grid(multiple, tuple(only), tuple(skip), timed=budget.latency is not None)


def prices_of(stats: Statistics, latency: LatencyTable | None = None) -> dict[str, PriceList]:
    """The price lists that statistics, and times if there are any, hold."""
    source = stats.header.source
    return price_lists(
        source.parameters, stats.header.sites, source.dtype, stats.header.macs, latency
    )


def kept_shares(
    prices: Mapping[str, PriceList], sites: Sequence[Site], widths: Mapping[str, int]
) -> dict[str, float]:
    """What ``widths`` keep of the dense denoiser, as a share, in each unit with prices."""
    together = [members for _, members in tied(sites)]

    def share(unit: PriceList) -> float:
        left = sum(unit.of(members, widths) for members in together)
        return (fixed(unit, together) + left) / max(unit.total, 1e-300)

    return {name: share(unit) for name, unit in prices.items()}


def check_budget(
    prices: Mapping[str, PriceList], sites: Sequence[Site], budget: Budget, grid: Grid
) -> None:
    """Raise SlimdiffError with the least reachable figures if ``budget`` cannot be met.

    Patterns that match no site are refused too: a typing error must not cut what it should save.
    """
    refuse_locked(sites)
    for pattern in grid.only + grid.skip:
        if not any(fnmatch(site.name, pattern) for site in sites):
            raise SlimdiffError(
                f"Pattern '{pattern}' (--only / --skip) matches no site; expected names like "
                f"'{sites[0].name}' or '*.ffn'. See slimdiff inspect."
            )
    for name, most in budget.ceilings(prices).items():
        stays = least(prices[name], sites, grid)
        if stays > most:
            whole = prices[name].total
            reachable = ", ".join(
                f"{other}={_rounded_up(least(prices[other], sites, grid) / prices[other].total)}"
                for other in dict.fromkeys([name, *_shown_with(name)])
            )
            raise SlimdiffError(
                f"Budget {budget} is out of reach: it leaves {_amount(name, most)} of "
                f"{_amount(name, whole)}{_UNITS[name]}, but at least {_amount(name, stays)} stay "
                f"({reachable}) with widths in multiples of {grid.multiple}. Raise the budget, "
                "lower --multiple or drop --only/--skip."
            )


def least(prices: PriceList, sites: Sequence[Site], grid: Grid) -> float:
    """What stays of the denoiser's cost when every site is cut as far as ``grid`` allows."""
    together = [members for _, members in tied(sites)]
    narrowest = (prices.of(members, grid.widths(members)[0]) for members in together)
    return fixed(prices, together) + sum(narrowest)


_UNITS = {
    "params": " parameters",
    "pool": " slimmable parameters",
    "macs": " multiply-adds",
    "bytes": " bytes",
    "latency": " a step",
}


def _shown_with(name: str) -> tuple[str, ...]:
    """Parameters are told both ways: of the whole and of the pool."""
    return ("params", "pool") if name in ("params", "pool") else ()


def _amount(name: str, amount: float) -> str:
    return f"{1e3 * amount:.1f} ms" if name == "latency" else f"{math.floor(amount + 1e-6):,}"


def _rounded_up(share: float) -> str:
    """Four digits that are within reach."""
    return f"{math.ceil(share * 1e4 - 1e-9) / 1e4:.4f}"


def predicted_error(stats: Statistics, site: str, width: int) -> float:
    """Output error expected from cutting ``site`` to ``width``: its gain times its curve."""
    gain, curve = stats.header.gains[site], stats.bases[site].errors
    reference = float(curve[gain.width])
    return gain.error * float(curve[width]) / reference if reference > 0 else 0.0


def spectral_error(stats: Statistics, site: str, width: int) -> float:
    """Error put on the residual stream by cutting ``site`` to ``width`` (policy ``ara``)."""
    return stream_share(stats.bases[site].errors, stats.sums[site]["energy"], width)


ERRORS: dict[str, Callable[[Statistics, str, int], float]] = {
    "uniform": predicted_error,
    "ara": spectral_error,
    "measured": predicted_error,
}


def reprice(plan: Plan, stats: Statistics) -> Plan:
    """``plan`` with all that follows from its widths and ``stats`` worked out anew.

    A measured time stays as long as the widths do.
    """
    sites = stats.header.sites
    free = {site.name: site for site in free_sites(sites)}
    known = [name for name in plan.widths if name in free]
    predicted = {name: predicted_error(stats, name, plan.widths[name]) for name in known}
    widths = {name: site.width for name, site in free.items()} | dict(plan.widths)
    kept = kept_shares(prices_of(stats), sites, widths)
    if predicted == dict(plan.predicted) and "latency" in plan.kept:
        kept["latency"] = plan.kept["latency"]
    return replace(
        plan,
        full={name: free[name].width for name in known},
        per_unit={name: free[name].parameters(1) for name in known},
        predicted=predicted,
        parameters=stats.header.source.parameters,
        pool=pool_parameters(sites),
        kept=kept,
        calibration=_provenance(stats),
    )


def _option(
    stats: Statistics,
    members: Sequence[Site],
    widths: dict[str, int],
    units: Sequence[PriceList],
    error: Callable[[Statistics, str, int], float],
) -> Option:
    return Option(
        widths,
        tuple(prices.of(members, widths) for prices in units),
        sum(error(stats, site.name, widths[site.name]) for site in members),
        min(widths[site.name] / site.width for site in members),
    )


def _provenance(stats: Statistics) -> dict[str, object]:
    header = stats.header
    return {
        "model": header.source.name,
        "dtype": header.source.dtype,
        "prompts": header.done + len(header.gain_prompts),
        "seconds": round(header.seconds, 2),
        "peak_mib": round(header.peak_mib, 1),
        "device": header.device,
        "tokens": header.tokens.tokens,
        "timestep_weights": header.timestep_weights,
        "sampling": header.sampling.to_dict(),
        "steps": header.sampling.calibrating.steps,
        "versions": dict(header.versions),
    }
