"""Tables and messages. Standard output carries results, standard error what is going on."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..files import LEFTOVER
from ..plan import Plan
from ..report import Report
from ..sites import Site, free_sites, pool_parameters
from ..statistics import Statistics

__all__ = ["out", "plan_table", "report_table", "say", "site_table", "what_remains"]

out = Console()
_err = Console(stderr=True)


def say(message: str) -> None:
    """Tell what is going on."""
    _err.print(message, style="dim", highlight=False, soft_wrap=True, markup=False)


def what_remains(statistics: Path) -> str:
    """What an interrupted calibration can resume from."""
    if any(statistics.glob(f"{LEFTOVER}-pa*")):
        return f"What was sampled is kept in {statistics}: run the same command to resume there."
    if not Statistics.exists(statistics):
        return "Stopped before the first save. Run the command again."
    header = Statistics.load(statistics).header
    return (
        f"{header.done} of {len(header.prompts)} prompts are kept in {statistics}: run the same "
        "command to resume there."
    )


def site_table(sites: list[Site]) -> None:
    """What can be cut and what is locked."""
    table = Table("site", "kind", "heads", "width", "parameters", "locked", title="Sites")
    for s in sites:
        table.add_row(
            s.name, s.kind, str(s.heads), str(s.width), f"{s.parameters():,}", s.locked or ""
        )
    out.print(table)
    free = free_sites(sites)
    out.print(
        f"{len(free)} sites can be cut, {len(sites) - len(free)} are locked; "
        f"{pool_parameters(sites):,} slimmable parameters",
        soft_wrap=True,
    )
    for reason in dict.fromkeys(s.locked for s in sites if s.locked):
        held = [s for s in sites if s.locked == reason]
        total = sum(s.parameters() for s in held)
        line = f"{len(held)} locked, {total:,} parameters: {reason}"
        out.print(line, highlight=False, soft_wrap=True)


def plan_table(plan: Plan) -> None:
    """Widths before and after."""
    table = Table("site", "width", "parameters", "error share", title=f"Plan ({plan.policy})")
    for site, before, after, parameters, share in plan.rows():
        table.add_row(site, f"{before} -> {after}", f"{parameters:,}", f"{share:.1%}")
    out.print(table)
    out.print(str(plan).splitlines()[-1], highlight=False, soft_wrap=True)


def report_table(report: Report) -> None:
    """The headline figures."""
    table = Table("", "dense", "slim", "kept", title="Dense against slim")
    r, t = report, report.step_time
    table.add_row(
        "parameters", f"{r.params.dense:,}", f"{r.params.slim:,}", f"{r.params.kept:.1%}"
    )
    table.add_row("slimmable pool", f"{r.pool.dense:,}", f"{r.pool.slim:,}", f"{r.pool.kept:.1%}")
    macs = [f"{x / 1e9:.3f} G" for x in (r.macs.dense, r.macs.slim)]
    table.add_row("multiply-adds a step", *macs, f"{r.macs.kept:.1%}")
    sizes = [f"{x / 2**20:.1f} MiB" for x in (r.bytes.dense, r.bytes.slim)]
    table.add_row("weights", *sizes, f"{r.bytes.kept:.1%}")
    table.add_row("time a step", f"{t.dense_ms:.1f} ms", f"{t.slim_ms:.1f} ms", f"{t.ratio:.1%}")
    out.print(table)
    out.print(str(r.plan).splitlines()[-1], highlight=False, soft_wrap=True)
    f = report.fidelity
    out.print(
        f"error of the denoiser {f.noise_rel_mse:.2e} (predicted {r.plan.predicted_error:.2e}), "
        f"of the latents {f.latent_rel_mse:.2e}; pictures: PSNR {f.psnr_db:.1f} dB, "
        f"SSIM {f.ssim:.3f}",
        highlight=False,
        soft_wrap=True,
    )
