"""The model card of a slim pipeline: where it comes from, what was cut, what it cost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCardData

from .environment import versions
from .plan import Plan

__all__ = ["model_card"]

_LICENCE = ("license", "license_name", "license_link")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(pipe: DiffusionPipeline, plan: Plan, summary: str = "") -> str:
    """Markdown with front matter. ``summary`` are the figures of a report, if there is one.

    The licence is that of the card beside the dense model; without one it is left to be said.
    """
    source = str(plan.calibration.get("model") or "")
    front: dict[str, Any] = {
        "library_name": "diffusers",
        "tags": ["slimdiff", "pruned"],
        **_licence(str(getattr(pipe, "name_or_path", "") or "")),
    }
    if _HUB_ID.fullmatch(source) and not Path(source).exists():
        front |= {"base_model": source, "base_model_relation": "quantized"}
    return f"---\n{ModelCardData(**front).to_yaml()}\n---\n\n" + _text(source, plan, summary)


def _licence(folder: str) -> dict[str, Any]:
    """The licence entries of the front matter in ``folder``'s README.md, if any."""
    path = Path(folder) / "README.md"
    if not folder or not path.is_file():
        return {}
    parts = path.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    lines = (line.partition(":") for line in parts[1].splitlines())
    return {k: v.strip() for k, _, v in lines if k in _LICENCE and v.strip()}


def _text(source: str, plan: Plan, summary: str) -> str:
    calibration, name = plan.calibration, source or plan.denoiser
    sampling = calibration.get("sampling", {})
    budget = ", ".join(f"{k}={v}" for k, v in plan.budget.items() if v is not None)
    lines = [
        f"# {Path(name).name}, slimmed",
        "",
        f"The {plan.denoiser} of `{name}` with narrower attention and feed-forward layers: "
        f"{plan.parameters - plan.removed:,} of {plan.parameters:,} parameters "
        f"({plan.params_kept:.1%}), {plan.pool_kept:.1%} of those that can be cut. Made by "
        "slimdiff without training.",
        "",
        *([summary, ""] if summary else []),
        "## Loading",
        "",
        "```python",
        "import slimdiff  # registers the loader",
        "from diffusers import DiffusionPipeline",
        "",
        'pipe = DiffusionPipeline.from_pretrained("this folder or repository")',
        "```",
        "",
        "LoRAs made for the dense model are carried over by `pipe.load_lora_weights`.",
        "",
        "## How it was made",
        "",
        f"Asked: {budget}, policy {plan.policy}, method {plan.method}, widths in multiples of "
        f"{plan.multiple}. Calibrated on {calibration.get('prompts', '?')} prompts, "
        f"{calibration.get('steps', '?')} steps, guidance "
        f"{sampling.get('guidance') or 'default'}, seed {sampling.get('seed', '?')}, dtype "
        f"{calibration.get('dtype', '?')}, on {calibration.get('device') or 'an unnamed device'}. "
        f"Dense weights: {plan.model_hash[:16]}. All widths: `slimdiff_plan.json`.",
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".",
        "",
        "## Limits",
        "",
        "What holds for the dense model holds here, its licence too. Runtimes that expect stock "
        "shapes (ComfyUI, A1111, stable-diffusion.cpp) do not load it; `slimdiff export --dense` "
        "pads it for them.",
    ]
    return "\n".join(lines) + "\n"
