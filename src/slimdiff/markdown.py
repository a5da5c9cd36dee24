"""A report as Markdown: tables with units, for terminals and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .environment import versions
from .fidelity import Fidelity

if TYPE_CHECKING:
    from .report import Report, Saving

__all__ = ["markdown"]


def markdown(report: Report) -> str:
    """The report for people, tables with units."""
    r, f, t = report, report.fidelity, report.step_time
    rows = [
        ("parameters", f"{r.params.dense:,}", f"{r.params.slim:,}", f"{r.params.kept:.1%}"),
        ("slimmable pool", f"{r.pool.dense:,}", f"{r.pool.slim:,}", f"{r.pool.kept:.1%}"),
        ("multiply-adds a step (G)", *_pair(r.macs, 1e9), f"{r.macs.kept:.1%}"),
        ("weights (MiB, equal dtype)", *_pair(r.bytes, 2**20), f"{r.bytes.kept:.1%}"),
        ("time a step (ms)", f"{t.dense_ms:.1f}", f"{t.slim_ms:.1f}", f"{t.ratio:.1%}"),
    ]
    budget = ", ".join(f"{k}={v}" for k, v in r.plan.budget.items() if v is not None)
    lines = [
        f"# {r.plan.calibration.get('model', r.plan.denoiser)}, slimmed",
        "",
        f"Asked: {budget}, policy {r.plan.policy}, widths in multiples of {r.plan.multiple}.",
        "",
        "![before and after](before_after.png)",
        "",
        "| | dense | slim | kept |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "| error against the dense pipeline | |",
        "|---|---|",
        f"| denoiser output, relative squared error (predicted {r.plan.predicted_error:.2e}) "
        f"| {f.noise_rel_mse:.2e}{_between(f, 'noise_rel_mse', '.2e')} |",
        f"| final latents, relative squared error "
        f"| {f.latent_rel_mse:.2e}{_between(f, 'latent_rel_mse', '.2e')} |",
        f"| PSNR of the pictures (dB) | {f.psnr_db:.1f}{_between(f, 'psnr_db', '.1f')} |",
        f"| SSIM of the pictures | {f.ssim:.3f}{_between(f, 'ssim', '.3f')} |",
        "",
        "In brackets: 95 % bootstrap intervals over prompts.",
        "",
        *_circumstances(report),
        "",
        "| site | width | parameters kept | share of predicted error |",
        "|---|---|---|---|",
        *(f"| {s} | {b} -> {a} | {p:,} | {e:.1%} |" for s, b, a, p, e in r.plan.rows()),
    ]
    return "\n".join(lines) + "\n"


def _pair(saving: Saving, unit: float) -> tuple[str, str]:
    return f"{saving.dense / unit:.2f}", f"{saving.slim / unit:.2f}"


def _between(fidelity: Fidelity, name: str, form: str) -> str:
    """The interval of a figure in brackets, or nothing for a single prompt."""
    found = fidelity.intervals.get(name)
    return f" [{found[0]:{form}}, {found[1]:{form}}]" if found else ""


def _circumstances(report: Report) -> list[str]:
    calibration: Mapping[str, Any] = report.plan.calibration
    s = report.sampling
    return [
        f"Compared on {len(report.pictures.prompts)} held-out prompts, {s.steps} steps, guidance "
        f"{s.guidance if s.guidance is not None else 'default'}, batch {s.batch_size}, seed "
        f"{s.seed}, on {report.device}. Multiply-adds leave out norms, activations, softmax.",
        "",
        f"Calibrated on {calibration.get('prompts')} prompts x {calibration.get('steps')} steps "
        f"in {calibration.get('seconds')} s, peak memory {calibration.get('peak_mib')} MiB, on "
        f"{calibration.get('device')}.",
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".",
    ]
