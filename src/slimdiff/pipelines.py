"""Opens whatever ``MODEL`` stands for: ``emoji``, a folder, a checkpoint file, a hub id."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import nn

from .denoiser import check_finite
from .errors import SlimdiffError
from .files import check_safetensors, read_json
from .placing import place
from .store import saved_dtype

__all__ = ["EMOJI", "Preset", "open_pipeline", "preset", "resolve_device"]

EMOJI = "emoji"


@dataclass(frozen=True)
class Preset:
    """What belongs to an embedded pipeline: folder, prompts, how it likes to be sampled."""

    folder: Path
    prompts: Path
    guidance: float


def preset(model: str) -> Preset | None:
    """The embedded pipeline of that name, or None."""
    if model != EMOJI:
        return None
    assets = Path(str(files("slimdiff") / "assets"))
    return Preset(assets / "emoji", assets / "emoji-prompts.txt", 2.0)


def resolve_device(name: str | None) -> torch.device:
    """The named device, or the best there is: CUDA, then MPS, then CPU.

    Of several processes that a launcher started on one machine, each gets a GPU of its own.
    """
    if name is None:
        if torch.cuda.is_available():
            own = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
            return (
                torch.device("cuda", own) if "LOCAL_RANK" in os.environ else torch.device("cuda")
            )
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SlimdiffError(
            f"Device '{name}' cannot be used ({reason}). Try --device cpu."
        ) from None


def open_pipeline(
    model: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    variant: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offload: bool = False,
    device_map: str | None = None,
) -> DiffusionPipeline:
    """Load the pipeline that ``model`` names, dense or slim; its weights must be finite.

    ``dtype`` defaults to what a slim folder was saved in, and for dense models to float32 on a CPU
    and float16 elsewhere. Only safetensors are read; code from a model folder runs only with
    ``trust_remote_code``. ``device_map`` and ``offload`` are for models that exceed a GPU
    (:func:`slimdiff.placing.place`).
    """
    device = device or torch.device("cpu")
    found = preset(model)
    path = Path(found.folder if found else model)
    options: dict[str, Any] = {"use_safetensors": True}
    if path.is_dir():
        _check_folder(path)
        dtype = dtype or saved_dtype(path)
        options |= {"variant": variant, "trust_remote_code": trust_remote_code}
        load, where = DiffusionPipeline.from_pretrained, str(path)
    elif path.is_file():
        if path.suffix != ".safetensors":
            raise SlimdiffError(
                f"'{path}' is not a .safetensors file; pickled checkpoints are not read. "
                "Convert it first."
            )
        check_safetensors(path)
        if device_map:
            raise SlimdiffError(
                f"'{path}' is one file; --device-map needs a pipeline folder or a hub id. Do "
                "without it, or save the pipeline as a folder first."
            )
        load, where = _single_file, str(path)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        options |= {
            "variant": variant,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        load, where = DiffusionPipeline.from_pretrained, model
    else:
        raise SlimdiffError(
            f"Unknown model '{model}'; expected 'emoji', a pipeline folder, a .safetensors file "
            "or a hub id like owner/name. Check the path."
        )
    options |= {"device_map": device_map}
    pipe = _loaded(load, model, where, dtype or _default_dtype(device), options)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            check_finite(part)
    return place(pipe, device, offload=offload)


def _loaded(
    load: Any, model: str, where: str, dtype: torch.dtype, options: dict[str, Any]
) -> DiffusionPipeline:
    options = {name: value for name, value in options.items() if value is not None}
    try:
        return load(where, dtype=dtype, **options)
    except SlimdiffError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if "custom code" in str(error):
            raise SlimdiffError(
                f"Model '{model}' brings code of its own, which was not run. If you trust it, "
                "pass --trust-remote-code."
            ) from None
        reason = str(error).strip().splitlines()[0][:300]
        raise SlimdiffError(
            f"Model '{model}' cannot be loaded: {reason}. Check the path or id, that its weights "
            "are safetensors, and --variant / --revision."
        ) from error


def _single_file(path: str, **options: Any) -> DiffusionPipeline:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    with safe_open(path, framework="pt") as file:
        large = any(name.startswith("conditioner.embedders.1.") for name in file.keys())
    kind = StableDiffusionXLPipeline if large else StableDiffusionPipeline
    return kind.from_single_file(path, **options)


def _check_folder(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise SlimdiffError(
            f"Folder '{folder}' has no model_index.json; expected a diffusers pipeline folder. "
            "Pass the folder that holds it, or a .safetensors file."
        )
    read_json(index, "pipeline index")
    check_safetensors(folder)


def _default_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.float16
