"""A slim pipeline on disk: an ordinary diffusers folder, safetensors only, plus its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from .card import model_card
from .compression import plan_of
from .denoiser import component, denoiser
from .errors import SlimdiffError
from .files import check_safetensors, new_folder, write_tensors, write_text
from .placing import place
from .plan import Plan
from .slim_maps import MAPS_FILE, maps_of

__all__ = [
    "PLAN_FILE",
    "is_slim",
    "load",
    "require_slim",
    "save",
    "saved_dtype",
    "statistics_beside",
    "write_into",
]

PLAN_FILE = "slimdiff_plan.json"


def save(pipe: DiffusionPipeline, folder: str | Path, *, force: bool = False) -> None:
    """Write a slim pipeline to ``folder``, whole or not at all.

    Raises SlimdiffError if the pipeline is not slim, or if ``folder`` exists and not ``force``.
    """
    with new_folder(Path(folder), force=force) as work:
        write_into(pipe, work)


def write_into(pipe: DiffusionPipeline, folder: Path, summary: str = "") -> None:
    """Write a slim pipeline into an existing empty folder; ``summary`` goes into its card."""
    plan = plan_of(pipe)
    if plan is None:
        raise SlimdiffError(
            f"This {type(pipe).__name__} is not slim: its denoiser records no plan. Run "
            "slimdiff.compress_ first, or save a dense pipeline with its own save_pretrained."
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    plan.save(folder / PLAN_FILE)
    write_text(folder / "README.md", model_card(pipe, plan, summary))
    write_tensors(folder / MAPS_FILE, maps_of(denoiser(pipe)))


def load(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    offload: bool = False,
    **options: Any,
) -> Any:
    """Load a slim folder as the pipeline that was saved, in the dtype it was saved in.

    With ``offload`` its parts are on ``device`` only while they run. ``options`` go to
    ``DiffusionPipeline.from_pretrained``. Strict: tensors that are missing or of another shape,
    and a plan that disagrees with the denoiser's configuration, are errors.
    """
    folder = Path(folder)
    plan = Plan.load(folder / PLAN_FILE)
    check_safetensors(folder)
    options = {"dtype": getattr(torch, plan.calibration.get("dtype", "float32")), **options}
    try:
        pipe = DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, SlimdiffError):
            raise
        reason = str(error).strip().splitlines()[0][:300]
        raise SlimdiffError(
            f"Slim folder '{folder}' cannot be loaded: {reason}. Apply the plan again."
        ) from error
    recorded = plan_of(pipe)
    if recorded is None or recorded.widths != plan.widths:
        raise SlimdiffError(
            f"'{folder / PLAN_FILE}' and the {component(pipe)} configuration disagree on the "
            f"widths. Edit the plan and apply it to the dense model; a saved one cannot change."
        )
    del denoiser(pipe).hf_quantizer
    return place(pipe, torch.device(device), offload=offload)


def is_slim(folder: Path) -> bool:
    """Whether ``folder`` holds a slim pipeline."""
    return (folder / PLAN_FILE).is_file()


def require_slim(folder: Path) -> None:
    """Raise SlimdiffError unless ``folder`` holds a slim pipeline."""
    if not is_slim(folder):
        raise SlimdiffError(
            f"'{folder}' is not a slim folder: it has no {PLAN_FILE}. Make one with slimdiff "
            "slim; name it second."
        )


def statistics_beside(folder: Path) -> Path:
    """Where the calibration of a slim folder is kept unless another place was named."""
    return folder.with_name(f"{folder.name}-statistics")


def saved_dtype(folder: Path) -> torch.dtype | None:
    """The dtype a slim folder was saved in, or None for a dense one."""
    if not is_slim(folder):
        return None
    calibration = Plan.load(folder / PLAN_FILE).calibration
    return getattr(torch, calibration.get("dtype", "float32"))
