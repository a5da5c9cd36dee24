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
from .markdown import markdown
from .page import write_page
from .pictures import before_after, save_pairs, shown_first
from .plan import Plan
from .prompts import HELD_OUT_FROM
from .sampling import IndexedPrompt, Sampling
from .statistics import Statistics

__all__ = ["Report", "Saving", "compare", "refuse_other_model"]

_POINTS = 48


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
    its weights at equal dtype; times are of one denoiser call at the calibration's batch.
    ``curves`` are the error curves the plan was made from, site by site, if they were at hand."""

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
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        plan, time = self.plan, self.step_time
        return {
            "model": plan.calibration.get("model") or plan.denoiser,
            "denoiser": plan.denoiser,
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
            "method": plan.method,
            "multiple": plan.multiple,
            "calibration": _calibration(plan),
            "evaluation": {"prompts": len(self.pictures.prompts), **self.sampling.to_dict()},
            "seed": self.sampling.seed,
            "versions": versions(),
            "device": self.device,
            "sites": [
                {"name": s, "full": b, "width": a, "parameters": n, "share": e}
                for s, b, a, n, e in plan.rows()
            ],
            "curves": dict(self.curves),
            "pictures": self._shown(),
        }

    def __str__(self) -> str:
        f, p, t = self.fidelity, self.params, self.step_time
        return (
            f"{p.slim / 1e6:.2f} M of {p.dense / 1e6:.2f} M parameters ({p.kept:.1%}; "
            f"{self.pool.kept:.1%} of the pool), {self.macs.kept:.1%} of the multiply-adds, "
            f"step time x{t.ratio:.2f}; error {f.noise_rel_mse:.2e}, PSNR {f.psnr_db:.1f} dB, "
            f"SSIM {f.ssim:.3f}"
        )

    def _shown(self) -> list[dict[str, Any]]:
        """Prompts and scores of the pictures that are kept: the first and the most changed."""
        samples, prompts = self.fidelity.samples, self.pictures.prompts
        return [
            {"prompt": prompts[i], "number": i, **{k: v[i] for k, v in samples.items()}}
            for i in shown_first(samples["ssim"])
        ]

    def save(self, folder: str | Path) -> None:
        """Write report.html, report.json, report.md, before_after.png and pictures/ there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", self.to_dict())
        write_text(folder / "report.md", markdown(self))
        title = (
            f"{self.plan.calibration.get('model', 'dense')} before, and after slimming to "
            f"{self.params.kept:.0%} of the denoiser's parameters: same prompts, same noise"
        )
        before_after(self.pictures, title).save(folder / "before_after.png")
        save_pairs(self.pictures, shown_first(self.fidelity.samples["ssim"]), folder)
        write_page(folder)


def compare(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    prompts: Sequence[str] | Sequence[IndexedPrompt],
    *,
    sampling: Sampling | None = None,
    statistics: Statistics | None = None,
) -> Report:
    """Compare a slim pipeline with the dense one it came from, on prompts it was not cut by.

    Both draw the same prompts from the same noise; prompts without an index are numbered from
    ``HELD_OUT_FROM``, as those that ``slim`` holds out. With ``statistics``, the report shows the
    error curves the plan was made from. Raises SlimdiffError if ``slim`` is not
    slim or was cut from another model than ``dense``, or if there are no prompts.
    """
    plan, sampling = plan_of(slim), sampling or Sampling()
    before, after = denoiser(dense), denoiser(slim)
    if plan is None:
        raise SlimdiffError("The second pipeline is not slim: its denoiser records no plan.")
    refuse_slim(before)
    refuse_other_model(before, plan)
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
        curves=_curves(statistics, plan),
    )


def refuse_other_model(dense: Any, plan: Plan) -> None:
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


def _calibration(plan: Plan) -> dict[str, Any]:
    """How the plan's statistics were gathered, on one level."""
    found = {**plan.calibration.get("sampling", {}), **plan.calibration}
    wanted = ("model", "prompts", "seconds", "peak_mib", "steps", "guidance", "seed", "tokens")
    return {k: found.get(k) for k in (*wanted, "timestep_weights", "dtype", "device")}


def _curves(statistics: Statistics | None, plan: Plan) -> dict[str, dict[str, Any]]:
    """Share of the site's own output lost at up to ``_POINTS`` widths, the chosen one among them.

    Statistics of another model, or unfinished ones, have nothing to say.
    """
    if statistics is None or not statistics.complete:
        return {}
    if statistics.header.source.hash != plan.model_hash:
        return {}
    found = {}
    for site, width in plan.widths.items():
        errors, full = statistics.bases[site].errors, plan.full[site]
        widths = sorted({*range(0, full + 1, -(-full // _POINTS)), width, full})
        found[site] = {"widths": widths, "errors": [float(errors[w]) for w in widths]}
    return found
