"""Where the parts of a pipeline live: on one device, there in turn, or spread over several."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline

__all__ = ["offload_device", "place"]


def place(pipe: DiffusionPipeline, device: torch.device, *, offload: bool = False) -> Any:
    """``pipe`` on ``device``; with ``offload`` each part only while it runs, else in CPU memory.

    A pipeline that a device map has spread over several devices stays as it is.
    """
    if pipe.hf_device_map is not None:
        return pipe
    if offload:
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    return pipe.to(device)


def offload_device(pipe: DiffusionPipeline) -> torch.device | None:
    """Where the parts of ``pipe`` run in turn; None if it is not offloaded."""
    return getattr(pipe, "_offload_device", None) if getattr(pipe, "_all_hooks", None) else None
