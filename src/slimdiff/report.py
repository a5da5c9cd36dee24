"""Dense against slim: what was saved, what it cost, shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from .compression import plan_of
from .cost import StepTime, multiply_adds, step_times, weight_bytes
from .denoiser import denoiser, fingerprint, refuse_slim
from .environment import device_name, versions
from .errors import SlimdiffError
from .fidelity import Fidelity, Pictures, measure_fidelity
from .files import write_json, write_text
from .gains import one_call
from .pictures import before_after
from .plan import Plan
from .prompts import HELD_OUT_FROM
from .sampling import IndexedPrompt, Sampling

__all__ = ["Report", "Saving", "compare"]


@dataclass(frozen=True)
class Saving:
    """A figure of the dense and of the slim model."""

    dense: int
    slim: int

    @property
    def kept(self) -> float:
        return self.slim / max(1, self.dense)


@dataclass(frozen=True)
class Report:
    """What :func:`compare` found. ``params``, ``pool`` and ``macs`` are of the denoiser, ``bytes``
    its weights at equal dtype; times are of one denoiser call at the calibration's batch."""

    params: Saving
    pool: Saving
    macs: Saving
    bytes: Saving
    step_time: StepTime
    fidelity: Fidelity
    plan: Plan
    sampling: Sampling
    device: str
    pictures: Pictures = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        plan, time = self.plan, self.step_time
        wanted = ("prompts", "steps", "seconds", "peak_mib")
        calibration = {**plan.calibration.get("sampling", {}), **plan.calibration}
        return {
            "params": _saving(self.params),
            "pool": _saving(self.pool),
            "macs": _saving(self.macs),
            "bytes": _saving(self.bytes),
            "step_time": {
                "dense_ms": time.dense_ms,
                "slim_ms": time.slim_ms,
                "ratio": time.ratio,
                "runs": time.runs,
            },
            "fidelity": vars(self.fidelity),
            "predicted_noise_rel_mse": plan.predicted_error,
            "budget": {k: v for k, v in plan.budget.items() if v is not None},
            "policy": plan.policy,
            "calibration": {k: calibration.get(k) for k in wanted},
            "evaluation": {"prompts": len(self.pictures.prompts), **self.sampling.to_dict()},
            "seed": self.sampling.seed,
            "versions": versions(),
            "device": self.device,
        }

    def __str__(self) -> str:
        f, p, t = self.fidelity, self.params, self.step_time
        return (
            f"{p.slim / 1e6:.2f} M of {p.dense / 1e6:.2f} M parameters ({p.kept:.1%}; "
            f"{self.pool.kept:.1%} of the pool), {self.macs.kept:.1%} of the multiply-adds, "
            f"step time x{t.ratio:.2f}; error {f.noise_rel_mse:.2e}, PSNR {f.psnr_db:.1f} dB, "
            f"SSIM {f.ssim:.3f}"
        )

    def save(self, folder: str | Path) -> None:
        """Write report.json, report.md and before_after.png into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", self.to_dict())
        write_text(folder / "report.md", _markdown(self))
        title = (
            f"{self.plan.calibration.get('model', 'dense')} before, and after slimming to "
            f"{self.params.kept:.0%} of the denoiser's parameters: same prompts, same noise"
        )
        before_after(self.pictures, title).save(folder / "before_after.png")


def compare(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    prompts: Sequence[str] | Sequence[IndexedPrompt],
    *,
    sampling: Sampling | None = None,
) -> Report:
    """Compare a slim pipeline with the dense one it came from, on prompts it was not cut by.

    Both draw the same prompts from the same noise; prompts without an index are numbered from
    ``HELD_OUT_FROM``, as those that ``slim`` holds out. Raises SlimdiffError if ``slim`` is not
    slim or was cut from another model than ``dense``, or if there are no prompts.
    """
    plan, sampling = plan_of(slim), sampling or Sampling()
    before, after = denoiser(dense), denoiser(slim)
    if plan is None:
        raise SlimdiffError("The second pipeline is not slim: its denoiser records no plan.")
    refuse_slim(before)
    _refuse_other_model(before, plan)
    if not prompts:
        raise SlimdiffError("No prompts to compare on: expected at least one. Give more prompts.")
    indexed = [(HELD_OUT_FROM + i, p) if isinstance(p, str) else p for i, p in enumerate(prompts)]
    call = one_call(dense, indexed, sampling)
    return Report(
        params=Saving(plan.parameters, after.num_parameters()),
        pool=Saving(plan.pool, plan.pool - plan.removed),
        macs=Saving(multiply_adds(before, call), multiply_adds(before, call, dict(plan.widths))),
        bytes=Saving(weight_bytes(before), weight_bytes(after)),
        step_time=step_times(before, after, call),
        **_quality(dense, slim, indexed, sampling),
        plan=plan,
        sampling=sampling,
        device=device_name(torch.device(after.device)),
    )


def _refuse_other_model(dense: Any, plan: Plan) -> None:
    """Raise SlimdiffError unless ``plan`` was made for ``dense`` (same hash if same dtype)."""
    same = dense.num_parameters() == plan.parameters
    if same and str(dense.dtype) == f"torch.{plan.calibration.get('dtype')}":
        same = fingerprint(dense) == plan.model_hash
    if not same:
        raise SlimdiffError(
            f"The slim pipeline was cut from another denoiser ({plan.denoiser}, "
            f"{plan.parameters:,} parameters, hash {plan.model_hash[:12]}) than the first "
            f"pipeline has ({dense.num_parameters():,} parameters). Compare it with its dense "
            "original."
        )


def _quality(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
) -> dict[str, Any]:
    fidelity, pictures = measure_fidelity(dense, slim, prompts, sampling)
    return {"fidelity": fidelity, "pictures": pictures}


def _saving(saving: Saving) -> dict[str, float | int]:
    return {"dense": saving.dense, "slim": saving.slim, "kept": saving.kept}


def _markdown(report: Report) -> str:
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
        f"| {f.noise_rel_mse:.2e} |",
        f"| final latents, relative squared error | {f.latent_rel_mse:.2e} |",
        f"| PSNR of the pictures (dB) | {f.psnr_db:.1f} |",
        f"| SSIM of the pictures | {f.ssim:.3f} |",
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


def _circumstances(report: Report) -> list[str]:
    calibration: Mapping[str, Any] = report.plan.calibration
    s = report.sampling
    return [
        f"Compared on {len(report.pictures.prompts)} held-out prompts, {s.steps} steps, guidance "
        f"{s.guidance if s.guidance is not None else 'default'}, batch {s.batch_size}, seed "
        f"{s.seed}, on {report.device}. Multiply-adds leave out norms, activations, softmax.",
        "",
        f"Calibrated on {calibration.get('prompts')} prompts in {calibration.get('seconds')} s, "
        f"peak memory {calibration.get('peak_mib')} MiB, on {calibration.get('device')}.",
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".",
    ]
