"""Teaches diffusers to load a slim denoiser as the stock class.

diffusers builds a model from its configuration, then lets a *quantizer* named in that
configuration change the empty Linears before the weights arrive. slimdiff registers one such
quantizer under the name ``slimdiff``: it reads the plan and gives the Linears their slim sizes.
So after ``import slimdiff`` plain ``DiffusionPipeline.from_pretrained(folder)`` works, with
sharding, dtypes, variants and device maps. Nothing is quantized.
"""

from __future__ import annotations

import copy
from enum import Enum
from typing import Any

from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from . import families
from .denoiser import METHOD
from .errors import SlimdiffError
from .plan import plan_from
from .surgery import reshape_

__all__ = ["SlimConfig", "SlimLoader", "register"]


class _Method(str, Enum):
    SLIMDIFF = METHOD


class SlimConfig:
    """The ``quantization_config`` entry of a slim denoiser: the plan it was cut by."""

    quant_method = _Method.SLIMDIFF

    def __init__(self, plan: Any) -> None:
        self.plan = plan

    @classmethod
    def from_dict(cls, config: dict[str, Any], **kwargs: Any) -> SlimConfig:
        return cls(config.get("plan") if isinstance(config, dict) else config)

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "plan": copy.deepcopy(self.plan)}

    to_diff_dict = to_dict


class SlimLoader(DiffusersQuantizer):
    """Gives empty Linears their slim sizes; refuses a checkpoint with tensors missing."""

    use_keep_in_fp32_modules = True

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        plan = plan_from(self.quantization_config.plan, "denoiser config")  # pyright: ignore
        sites = families.find(model).sites(model)
        plan.check(sites)
        reshape_(model, sites, plan.widths)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # Features that treat quantized weights specially must not: these are plain Linears.
        model.is_quantized = False
        del model.quantization_method
        return model

    def update_missing_keys(
        self, model: nn.Module, missing_keys: list[str], prefix: str
    ) -> list[str]:
        if missing_keys:
            raise SlimdiffError(
                f"The slim weights lack '{missing_keys[0]}' ({len(missing_keys)} tensors in all). "
                "The folder is incomplete: apply the plan again."
            )
        return missing_keys

    @property
    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def register() -> None:
    """Make the loader known to diffusers. Runs when slimdiff is imported."""
    auto.AUTO_QUANTIZER_MAPPING[METHOD] = SlimLoader
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = SlimConfig  # pyright: ignore
