"""Adapter files of the dense model, rewritten for one slim model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
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

_UPS = (".lora_B.weight", ".lora.up.weight", ".lora_linear_layer.up.weight")


def convert(pipe: DiffusionPipeline, source: Path, target: Path) -> Carried:
    """Write the LoRA in ``source``, any format diffusers reads, for the slim ``pipe``.

    The new file has PEFT's names, scales (alpha / rank, wherever the old one said them) multiplied
    in, and the biases that the affine refit makes of it; what it says of the text encoders stays.
    Raises SlimdiffError for other adapters.
    """
    refuse_other_adapters(_names(source))
    tensors = _scaled(*_read(pipe, source))
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
    write_tensors(target, {**others, **found})
    return carried


def _read(pipe: DiffusionPipeline, source: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors under PEFT's or diffusers' names, and alphas."""
    loader: Any = type(pipe)
    options: dict[str, Any] = {"return_lora_metadata": True}
    if "return_alphas" in inspect.signature(loader.lora_state_dict).parameters:
        options["return_alphas"] = True
    tensors, *alphas, metadata = loader.lora_state_dict(
        str(source.parent or "."),
        weight_name=source.name,
        use_safetensors=True,
        unet_config=denoiser(pipe).config,
        **options,
    )
    told = {k: v for found in alphas for k, v in (found or {}).items()}
    return tensors, told | _alphas(tensors, metadata or {})


def _alphas(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, float]:
    """The alphas in a file's header, where PEFT's configuration of each part is kept."""
    if not metadata:
        return {}
    from peft.utils.other import get_pattern_key

    found: dict[str, float] = {}
    for name, weight in tensors.items():
        linear = next((name.removesuffix(end) for end in _UPS if name.endswith(end)), "")
        part, _, inner = linear.partition(".")
        if f"{part}.lora_alpha" not in metadata:
            continue
        patterns = metadata.get(f"{part}.alpha_pattern") or {}
        own = patterns.get(get_pattern_key(list(patterns), inner))
        alpha = float(metadata[f"{part}.lora_alpha"] if own is None else own)
        if metadata.get(f"{part}.use_rslora"):
            alpha *= weight.shape[1] ** 0.5
        found[f"{linear}.alpha"] = alpha
    return found


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


def _scaled(tensors: Mapping[str, Tensor], alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """alpha / rank multiplied into B, which leaves every adapter with scale 1.

    Alphas are named after the Linear or after its down projection, ``.alpha`` appended.
    """
    found = dict(tensors)
    for key, alpha in alphas.items():
        place = key.removesuffix(".alpha")
        named = (place.replace("lora_A.", "lora_B.").replace("down.weight", "up.weight"),)
        for up in {*named, *(f"{place}{end}" for end in _UPS)} & found.keys():
            found[up] = tensors[up] * (float(alpha) / tensors[up].shape[1])
    return found
