"""Statistics and a budget -> a plan. Numbers only: no model is needed and nothing is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch

from .budget import Budget
from .errors import SlimdiffError
from .plan import Plan
from .policies import POLICIES, Group, Option
from .policies.ara import stream_share
from .sites import Site, pool_parameters, refuse_locked
from .statistics import Statistics

__all__ = [
    "Grid",
    "allocate",
    "check_budget",
    "least_parameters",
    "predicted_error",
    "reprice",
    "tied",
]

DEFAULT_POLICY = "measured"


def allocate(
    stats: Statistics,
    budget: Budget,
    *,
    policy: str = DEFAULT_POLICY,
    multiple: int = 8,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> Plan:
    """Choose a width for every site such that the denoiser keeps at most ``budget``.

    ``policy``: ``measured`` minimises the predicted output error, ``ara`` the spectral one,
    ``uniform`` keeps one common share. Widths are multiples of ``multiple`` (or whole), query-key
    and value-output widths of an attention are equal. Sites that match no pattern of ``only``, or
    one of ``skip``, stay whole.

    Raises SlimdiffError for an unknown policy, statistics without gains, or a budget out of reach.
    """
    header = stats.header
    if policy not in POLICIES:
        raise SlimdiffError(f"Unknown policy '{policy}'; expected one of {', '.join(POLICIES)}.")
    if not stats.complete:
        raise SlimdiffError(
            f"The statistics of '{header.source.name}' are incomplete or were merged: "
            f"{header.done} of {len(header.prompts)} prompts summed, {len(header.gains)} gains. "
            "Run slimdiff calibrate with the same settings to finish them."
        )
    parameters, sites = header.source.parameters, header.sites
    grid = Grid(multiple, tuple(only), tuple(skip))
    check_budget(parameters, sites, budget, grid)
    error = ERRORS[policy]
    groups = [
        Group(name, tuple(_option(stats, members, ws, error) for ws in grid.widths(members)))
        for name, members in tied(sites)
    ]
    kept = parameters - sum(site.parameters() for site in sites if site.locked is None)
    chosen = POLICIES[policy](groups, budget.ceiling(parameters, sites) - kept)
    found = {name: width for option in chosen for name, width in option.widths.items()}
    free = [site for site in sites if site.locked is None]
    return Plan(
        widths={site.name: found[site.name] for site in free},
        full={site.name: site.width for site in free},
        per_unit={site.name: site.parameters(1) for site in free},
        predicted={s.name: predicted_error(stats, s.name, found[s.name]) for s in free},
        parameters=parameters,
        pool=pool_parameters(sites),
        budget=asdict(budget),
        policy=policy,
        multiple=multiple,
        method=header.method,
        denoiser=header.source.denoiser,
        model_hash=header.source.hash,
        calibration=_provenance(stats),
    )


class Grid:
    """The widths that sites may take."""

    def __init__(
        self, multiple: int, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()
    ) -> None:
        if multiple < 1:
            raise SlimdiffError(f"multiple={multiple} is out of range; expected 1 or more.")
        self.multiple, self.only, self.skip = multiple, only, skip

    def movable(self, site: Site) -> bool:
        """Whether the patterns let ``site`` shrink."""
        chosen = not self.only or any(fnmatch(site.name, p) for p in self.only)
        return chosen and not any(fnmatch(site.name, p) for p in self.skip)

    def widths(self, members: Sequence[Site]) -> list[dict[str, int]]:
        """Width settings of sites that shrink together, ascending, the last one whole."""
        if not all(self.movable(site) for site in members):
            # A pattern that names one of two tied sites frees only that one from the tie.
            moving = [site for site in members if self.movable(site)]
            rest = {site.name: site.width for site in members if not self.movable(site)}
            return [ws | rest for ws in self.widths(moving)] if moving else [rest]
        full = members[0].width
        steps = [*range(self.multiple, full, self.multiple), full]
        return [{site.name: width for site in members} for width in steps]


def tied(sites: Iterable[Site]) -> list[tuple[str, list[Site]]]:
    """Unlocked sites in groups that shrink together: those of one module and one width."""
    groups: dict[tuple[str, int], list[Site]] = {}
    for site in sites:
        if site.locked is None:
            groups.setdefault((site.module, site.width), []).append(site)
    return [(module, members) for (module, _), members in groups.items()]


def check_budget(parameters: int, sites: Sequence[Site], budget: Budget, grid: Grid) -> None:
    """Raise SlimdiffError with the least reachable figure if ``budget`` cannot be met.

    Patterns that match no site are refused too: a typing error must not cut what it should save.
    """
    refuse_locked(sites)
    for pattern in grid.only + grid.skip:
        if not any(fnmatch(site.name, pattern) for site in sites):
            raise SlimdiffError(
                f"Pattern '{pattern}' (--only / --skip) matches no site; expected names like "
                f"'{sites[0].name}' or '*.ffn'. See slimdiff inspect."
            )
    least, ceiling = least_parameters(parameters, sites, grid), budget.ceiling(parameters, sites)
    if least > ceiling:
        pool, saved = pool_parameters(sites), parameters - least
        raise SlimdiffError(
            f"Budget {budget} is out of reach: it leaves {ceiling:,} of {parameters:,} "
            f"parameters, but at least {least:,} stay (params={least / parameters:.4f}, "
            f"pool={(pool - saved) / max(1, pool):.4f}) with widths in multiples of "
            f"{grid.multiple}. Raise the budget, lower --multiple or drop --only/--skip."
        )


def least_parameters(parameters: int, sites: Sequence[Site], grid: Grid) -> int:
    """What is left of ``parameters`` when every site is cut as far as ``grid`` allows."""
    return parameters - sum(
        site.parameters() - site.parameters(grid.widths(members)[0][site.name])
        for _, members in tied(sites)
        for site in members
    )


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
    """``plan`` with all that follows from its widths and ``stats`` worked out anew."""
    free = {site.name: site for site in stats.header.sites if site.locked is None}
    known = [name for name in plan.widths if name in free]
    return replace(
        plan,
        full={name: free[name].width for name in known},
        per_unit={name: free[name].parameters(1) for name in known},
        predicted={name: predicted_error(stats, name, plan.widths[name]) for name in known},
        parameters=stats.header.source.parameters,
        pool=pool_parameters(stats.header.sites),
        calibration=_provenance(stats),
    )


def _option(
    stats: Statistics,
    members: Sequence[Site],
    widths: dict[str, int],
    error: Callable[[Statistics, str, int], float],
) -> Option:
    return Option(
        widths,
        sum(site.parameters(widths[site.name]) for site in members),
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
        "versions": dict(header.versions),
    }
