"""Lets diffusers' own loaders carry adapters over to slim denoisers.

diffusers hands every denoiser's part of a LoRA to ``load_lora_adapter``, and an IP-Adapter's
projections to ``_convert_ip_adapter_attn_to_diffusers``. On a slim denoiser they are taken into
the slim basis (:mod:`slimdiff.lora`); on any other model nothing changes. FLUX.1's loader would
first widen the slim Linears to the adapter's shapes: not on a slim model. An IP-Adapter of SD3 is
refused there, since it would split its tokens by the slim head width without complaint.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.loaders.transformer_sd3 import SD3Transformer2DLoadersMixin
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from . import families
from .decomposition import Maps
from .denoiser import recorded_plan
from .errors import SlimdiffError
from .lora import Carried, carry_over
from .sites import Site
from .slim_maps import maps_of, unpack
from .surgery import project_rows

__all__ = ["carried_over", "register"]

logger = logging.getLogger(__name__)

_FLUX_EXPANDS = (
    "_maybe_expand_transformer_param_shape_or_error_",
    "_maybe_expand_lora_state_dict",
)
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
    """Put these steps into diffusers' loaders, once. Runs when slimdiff is imported."""
    if not hasattr(PeftAdapterMixin.load_lora_adapter, "__wrapped__"):
        PeftAdapterMixin.load_lora_adapter = _carrying(PeftAdapterMixin.load_lora_adapter)
    images: Any = UNet2DConditionLoadersMixin
    if not hasattr(images._convert_ip_adapter_attn_to_diffusers, "__wrapped__"):
        images._convert_ip_adapter_attn_to_diffusers = _carrying_images(
            images._convert_ip_adapter_attn_to_diffusers
        )
    flux: Any = FluxLoraLoaderMixin
    if not hasattr(flux._maybe_expand_lora_state_dict, "__wrapped__"):
        widen, pad = (vars(flux)[name].__func__ for name in _FLUX_EXPANDS)
        flux._maybe_expand_transformer_param_shape_or_error_ = _unless_slim(widen, _no_widening)
        flux._maybe_expand_lora_state_dict = _unless_slim(pad, _no_padding)
    joint: Any = SD3Transformer2DLoadersMixin
    if not hasattr(joint._load_ip_adapter_weights, "__wrapped__"):
        joint._load_ip_adapter_weights = _refused_if_slim(joint._load_ip_adapter_weights)


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


def _unless_slim(original: Callable[..., Any], instead: Callable[..., Any]) -> Any:
    """A class method of FLUX.1's loader that does ``instead`` where the transformer is slim."""

    @functools.wraps(original)
    def method(
        cls: type, transformer: Any, lora_state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        way = original if recorded_plan(transformer) is None else instead
        return way(cls, transformer, lora_state_dict, *args, **kwargs)

    return classmethod(method)


def _no_widening(*args: Any, **kwargs: Any) -> bool:
    return False


def _no_padding(cls: type, transformer: Any, lora_state_dict: Any) -> Any:
    return lora_state_dict


def _refused_if_slim(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load(self: Any, *args: Any, **kwargs: Any) -> Any:
        if recorded_plan(self) is not None:
            raise SlimdiffError(
                f"IP-Adapters are not carried over to a slim {type(self).__name__}; expected a "
                "dense one. Use the adapter with the dense pipeline."
            )
        return original(self, *args, **kwargs)

    return load


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


def _carrying_images(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def convert(self: Any, state_dicts: Any, **kwargs: Any) -> Any:
        processors = original(self, state_dicts, **kwargs)
        if recorded_plan(self) is None:
            return processors
        sites, maps = _slimming(self)
        for site in sites:
            processor = processors.get(f"{site.module}.processor")
            if hasattr(processor, "to_k_ip"):
                _refuse_unequal(self, site)
                if site.name in maps:
                    _project_image_tokens_(processor, site, maps[site.name])
        return processors

    return convert


def _refuse_unequal(model: Any, site: Site) -> None:
    attn = model.get_submodule(site.module)
    if attn.to_k.out_features != attn.to_v.out_features:
        raise SlimdiffError(
            f"'{site.module}' has query-key and value-output widths of its own "
            f"({attn.to_k.out_features} and {attn.to_v.out_features}); IP-Adapter expects equal "
            "ones. Apply a plan with equal widths."
        )


def _project_image_tokens_(processor: Any, site: Site, maps: Maps) -> None:
    """Keys or values of the image tokens in the slim basis, like those of the text."""
    role, linears = ("key", "to_k_ip") if site.kind == "qk" else ("value", "to_v_ip")
    (part,) = site.role(role)
    for linear in getattr(processor, linears):
        old = linear.weight.detach()
        weight = project_rows(old.double(), [part], maps).to(old)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.out_features = len(weight)
