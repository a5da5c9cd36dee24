"""Facts about where a run happened: versions, device, peak memory."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import version

import torch

__all__ = ["device_name", "float64", "float64_device", "peak_mib", "sums_device", "versions"]

_SUMS_SHARE = 4


def versions() -> dict[str, str]:
    """Versions of what shapes the figures."""
    found = {name: version(name) for name in ("slimdiff", "torch", "diffusers", "transformers")}
    return {"python": platform.python_version(), **found}


def device_name(device: torch.device) -> str:
    """The device as a person would name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} {device.type}, {threads} thread{'s' if threads > 1 else ''}"


def float64_device(device: torch.device) -> torch.device:
    """``device``, or the CPU where that has no float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def float64(x: torch.Tensor) -> torch.Tensor:
    """``x`` in float64; on the CPU where its device has none (MPS)."""
    return x.to(float64_device(x.device)).double()


def sums_device(device: torch.device, mib: float) -> torch.device:
    """Where ``mib`` of float64 sums are kept: on a GPU if they take a quarter of it at most."""
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        if _SUMS_SHARE * mib * 2**20 > total:
            return torch.device("cpu")
    return float64_device(device)


def peak_mib(device: torch.device) -> float:
    """Largest memory so far, MiB: allocated on a CUDA device, resident in this process else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
