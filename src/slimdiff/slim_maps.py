"""The linear maps a model was slimmed by, kept so that adapters can follow.

Saved beside the pipeline as ``slim_maps.safetensors``, tensors named ``site/role``:

====  ====================================================================================
qk    ``query``, ``key``: (H, d, r)
vo    ``value``: (H, d, r); ``output``: (Hr, Hd); ``bias``: (Hd,); the second reader of a joint
      attention: ``output.1`` and ``bias.1``
ffn   ``kept``: channels that stay, (r,); ``down``: what the dropped ones hand to them,
      (r, F - r); ``bias``: of the dropped ones, (F - r,)
====  ====================================================================================

A feed-forward's maps are the identity on what stays, which is not stored. ``down`` is kept in the
model's dtype, the rest in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .decomposition import Maps
from .errors import SlimdiffError
from .sites import Site

__all__ = ["MAPS_FILE", "attach_", "maps_of", "pack", "unpack"]

MAPS_FILE = "slim_maps.safetensors"
_ATTRIBUTE = "slim_maps"


def pack(site: Site, maps: Maps, dtype: torch.dtype) -> dict[str, Tensor]:
    """The maps of one site as they are stored, on the CPU."""
    if site.kind != "ffn":
        return {f"{site.name}/{role}": m.float().cpu() for role, m in maps.items()}
    kept = maps["up"].cpu()
    dropped = _others(kept, site.width)
    return {
        f"{site.name}/kept": kept,
        f"{site.name}/down": maps["down"].cpu()[:, dropped].to(dtype),
        f"{site.name}/bias": maps["bias"].cpu()[dropped].float(),
    }


def unpack(sites: Iterable[Site], tensors: Mapping[str, Tensor]) -> dict[str, Maps]:
    """Site -> maps by role in float64, for the sites that ``tensors`` speaks of."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, _, role = name.rpartition("/")
        found.setdefault(site, {})[role] = tensor
    return {site.name: _whole(site, found[site.name]) for site in sites if site.name in found}


def attach_(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Let ``model`` carry its packed maps; they are neither parameters nor buffers."""
    setattr(model, _ATTRIBUTE, dict(tensors))


def maps_of(model: Any) -> dict[str, Tensor]:
    """The packed maps of a slim model: those it carries, else from the folder it came from.

    Raises SlimdiffError if there are none.
    """
    if not hasattr(model, _ATTRIBUTE):
        attach_(model, _found(str(model.config.get("_name_or_path") or "")))
    return getattr(model, _ATTRIBUTE)


def _found(place: str) -> dict[str, Tensor]:
    """Maps beside the component's folder ``place``, or in the hub repository of that name."""
    for folder in (Path(place), Path(place).parent):
        if place and (folder / MAPS_FILE).is_file():
            return _read(folder / MAPS_FILE)
    try:
        return _read(Path(hf_hub_download(place, MAPS_FILE)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SlimdiffError(
            f"This slim model came without {MAPS_FILE} (looked in '{place}': {error}). Load it "
            "with slimdiff.load from the folder that slimdiff wrote."
        ) from None


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SlimdiffError(
            f"'{path}' is truncated or not a safetensors file ({error}). Apply the plan again."
        ) from None


def _whole(site: Site, stored: Mapping[str, Tensor]) -> Maps:
    if site.kind != "ffn":
        return {role: tensor.double() for role, tensor in stored.items()}
    kept = stored["kept"]
    dropped = _others(kept, site.width)
    down = torch.zeros(len(kept), site.width, dtype=torch.float64)
    down[torch.arange(len(kept)), kept] = 1.0
    down[:, dropped] = stored["down"].double()
    bias = torch.zeros(site.width, dtype=torch.float64)
    bias[dropped] = stored["bias"].double()
    return {"up": kept, "gate": kept, "down": down, "bias": bias}


def _others(kept: Tensor, width: int) -> Tensor:
    there = torch.ones(width, dtype=torch.bool)
    there[kept] = False
    return there.nonzero().flatten()
