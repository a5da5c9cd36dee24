"""Where a pipeline keeps its denoiser, and how to read one call of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .errors import SlimdiffError

__all__ = [
    "CONFIG_KEY",
    "METHOD",
    "check_finite",
    "component",
    "denoiser",
    "dtype_name",
    "fingerprint",
    "output_of",
    "recorded_plan",
    "refuse_slim",
    "timestep_of",
]

_COMPONENTS = ("transformer", "unet")
CONFIG_KEY = "quantization_config"
"""diffusers' one hook for models whose Linears differ from what the configuration says."""

METHOD = "slimdiff"
_VOLATILE = ("_name_or_path", "_diffusers_version", "_use_default_values", "quantization_config")


def component(pipe: DiffusionPipeline) -> str:
    """Name of the pipeline component that denoises: ``unet`` or ``transformer``."""
    for name in _COMPONENTS:
        if isinstance(getattr(pipe, name, None), nn.Module):
            return name
    raise SlimdiffError(
        f"{type(pipe).__name__} has no denoiser: expected a component named "
        f"{' or '.join(_COMPONENTS)}. Pass a text-to-image pipeline."
    )


def denoiser(pipe: DiffusionPipeline) -> Any:
    """The model that predicts noise (or velocity, or the clean latent) at every step."""
    return getattr(pipe, component(pipe))


def dtype_name(model: Any) -> str:
    """A model's dtype as text, such as ``float32``."""
    return str(model.dtype).removeprefix("torch.")


def timestep_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """The timestep of one denoiser call, which must be one for the whole batch."""
    value = kwargs.get("timestep", args[1] if len(args) > 1 else None)
    if isinstance(value, Tensor):
        return float(value.reshape(-1)[0])
    if value is None:
        raise SlimdiffError("The denoiser was called without a timestep; cannot follow the steps.")
    return float(value)


def output_of(result: Any) -> Tensor:
    """The prediction in a denoiser's result, tuple or dataclass."""
    return result[0] if isinstance(result, tuple) else result.sample


def check_finite(model: nn.Module) -> None:
    """Raise SlimdiffError naming the first weight that is not there or not finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise SlimdiffError(
                f"Weight '{name}' of {type(model).__name__} is not in memory; expected weights on "
                "a device. Instead of sequential or disk offload use enable_model_cpu_offload()."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise SlimdiffError(
                f"Weight '{name}' of {type(model).__name__} holds NaN or infinity; expected "
                "finite numbers. The file is damaged or its dtype too narrow: fetch it again."
            )


def recorded_plan(model: Any) -> dict[str, Any] | None:
    """The plan in a slim denoiser's configuration, as plain values; None for a dense one."""
    value = model.config.get(CONFIG_KEY)
    if value is None:
        return None
    value = value if isinstance(value, dict) else value.to_dict()
    return value.get("plan", {}) if value.get("quant_method") == METHOD else None


def refuse_slim(model: Any) -> None:
    """Raise SlimdiffError if ``model`` was slimmed already."""
    if recorded_plan(model) is not None:
        raise SlimdiffError(
            f"This {type(model).__name__} is already slim; expected a dense one. Start from the "
            "dense model: its statistics serve every budget."
        )


def fingerprint(model: Any) -> str:
    """sha256 over configuration, names, shapes, dtypes and values of a denoiser."""
    config = {k: v for k, v in dict(model.config).items() if k not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
