"""Lets ``load_lora_weights`` of diffusers carry adapters over to slim denoisers.

diffusers hands every denoiser's part of a LoRA to ``load_lora_adapter``. On a slim denoiser the
adapter is first taken into the slim basis (:mod:`slimdiff.lora`); on any other model nothing
changes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from . import families
from .denoiser import recorded_plan
from .lora import Carried, carry_over
from .slim_maps import maps_of, unpack

__all__ = ["carried_over", "register"]

logger = logging.getLogger(__name__)

_FETCH = (
    "weight_name",
    "use_safetensors",
    "local_files_only",
    "cache_dir",
    "force_download",
    "proxies",
    "token",
    "revision",
    "subfolder",
    "metadata",
)


def register() -> None:
    """Put the step into diffusers' loader, once. Runs when slimdiff is imported."""
    original = PeftAdapterMixin.load_lora_adapter
    if not hasattr(original, "__wrapped__"):
        PeftAdapterMixin.load_lora_adapter = _carrying(original)


def carried_over(model: Any, state_dict: dict[str, Tensor]) -> Carried:
    """An adapter of the dense model, by PEFT's or diffusers' names, in ``model``'s slim basis."""
    if not any(".lora_A" in name for name in state_dict):
        state_dict = convert_unet_state_dict_to_peft(state_dict)
    return carry_over(state_dict, *_slimming(model))


def _slimming(model: Any) -> tuple[Any, Any]:
    """The sites of the dense model, and the maps by site."""
    with torch.device("meta"):
        dense = type(model).from_config(model.config)
    sites = families.find(model).sites(dense)
    return sites, unpack(sites, maps_of(model))


def _carrying(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_lora_adapter(
        self: Any, source: Any, prefix: str | None = "transformer", **kwargs: Any
    ) -> Any:
        if not hasattr(self, "config") or recorded_plan(self) is None:
            return original(self, source, prefix=prefix, **kwargs)
        fetch = {name: kwargs.pop(name, None) for name in _FETCH}
        state_dict, metadata = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict=source,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=False,
            **fetch,
        )
        start = "" if prefix is None else f"{prefix}."
        own = {k.removeprefix(start): v for k, v in state_dict.items() if k.startswith(start)}
        if not own:
            return original(self, state_dict, prefix=prefix, metadata=metadata, **kwargs)
        carried = carried_over(self, own)
        before = set(getattr(self, "peft_config", {}))
        found = {f"{start}{k}": v for k, v in carried.state_dict.items()}
        result = original(self, found, prefix=prefix, metadata=metadata, **kwargs)
        for adapter in kwargs.get("adapter_name"), *(set(self.peft_config) - before):
            _add_biases_(self, adapter, carried)
        logger.warning(
            "LoRA carried over to the slim %s; %.1f %% of its energy lies outside the kept basis.",
            type(self).__name__,
            100 * carried.lost_share,
        )
        return result

    return load_lora_adapter


def _add_biases_(model: Any, adapter: str | None, carried: Carried) -> None:
    """Give each reader's ``lora_B`` the bias that the affine refit makes of the adapter."""
    for linear, bias in carried.biases.items():
        layer = model.get_submodule(linear)
        if adapter is None or adapter not in getattr(layer, "lora_B", {}):
            continue
        old = layer.lora_B[adapter]
        new = nn.Linear(old.in_features, old.out_features, bias=True, device="meta")
        new.weight = old.weight
        new.bias = nn.Parameter(bias.to(old.weight), requires_grad=old.weight.requires_grad)
        layer.lora_B[adapter] = new
        layer.lora_bias[adapter] = True
