"""Adapter files of the dense model, rewritten for one slim model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .adapters import carried_over
from .denoiser import component, denoiser
from .errors import SlimdiffError
from .files import write_tensors
from .lora import Carried, refuse_other_adapters

__all__ = ["convert"]


def convert(pipe: DiffusionPipeline, source: Path, target: Path) -> Carried:
    """Write the LoRA in ``source``, any format diffusers reads, for the slim ``pipe``.

    The new file has PEFT's names, alphas multiplied in, and the biases that the affine refit makes
    of it; what it says of the text encoders stays. Raises SlimdiffError for other adapters.
    """
    refuse_other_adapters(_names(source))
    loader: Any = type(pipe)
    read = loader.lora_state_dict(
        str(source.parent or "."),
        weight_name=source.name,
        use_safetensors=True,
        unet_config=denoiser(pipe).config,
    )
    tensors, alphas = (read[0], read[1] or {}) if isinstance(read, tuple) else (read, {})
    start = f"{component(pipe)}."
    own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    if not own:
        raise SlimdiffError(
            f"'{source}' says nothing of the {component(pipe)}; expected tensors named "
            f"{start}*. It is for another kind of model, or has a text-encoder part only."
        )
    carried = carried_over(denoiser(pipe), own)
    found = {f"{start}{k}": v for k, v in _with_biases(carried).items()}
    others = {k: v for k, v in tensors.items() if not k.startswith(start)}
    write_tensors(target, _scaled({**others, **found}, alphas))
    return carried


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise SlimdiffError(
            f"'{path}' is missing or no safetensors file ({error}). Pickled adapters are not read."
        ) from None


def _with_biases(carried: Carried) -> dict[str, Tensor]:
    """All of ``lora_B`` with a bias or none: PEFT knows no adapter with some."""
    found = dict(carried.state_dict)
    if any(bool(bias.any()) for bias in carried.biases.values()):
        for name, tensor in carried.state_dict.items():
            if name.endswith(".lora_B.weight"):
                linear = name.removesuffix(".lora_B.weight")
                nothing = torch.zeros(len(tensor), dtype=tensor.dtype)
                found.setdefault(f"{linear}.lora_B.bias", nothing)
                if linear in carried.biases:
                    found[f"{linear}.lora_B.bias"] = carried.biases[linear]
    return found


def _scaled(tensors: dict[str, Tensor], alphas: dict[str, float]) -> dict[str, Tensor]:
    """alpha / rank multiplied into B and its bias, which leaves every adapter with scale 1."""
    found = dict(tensors)
    for key, alpha in alphas.items():
        linear = key.removesuffix(".alpha")
        for up in ("lora_B", "lora.up"):
            weight = tensors.get(f"{linear}.{up}.weight")
            if weight is not None:
                for leaf in ("weight", "bias"):
                    name = f"{linear}.{up}.{leaf}"
                    if name in found:
                        found[name] = tensors[name] * (float(alpha) / weight.shape[1])
    return found
