"""Facts about where a run happened: versions, device, peak memory."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import version

import torch

__all__ = ["device_name", "peak_mib", "versions"]


def versions() -> dict[str, str]:
    """Versions of what shapes the figures."""
    found = {name: version(name) for name in ("slimdiff", "torch", "diffusers", "transformers")}
    return {"python": platform.python_version(), **found}


def device_name(device: torch.device) -> str:
    """The device as a person would name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}, {torch.get_num_threads()} threads"


def peak_mib(device: torch.device) -> float:
    """Largest memory so far, MiB: allocated on a CUDA device, resident in this process else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
