"""The sums of a calibration that stay on disk: read site by site, tensor by tensor, when used.

Those of a large model exceed its weights, so nothing here reads more than one tensor at a time.
Within a file tensors are named ``site/name``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["Added", "SumsOnDisk", "flatten", "moved", "unflatten"]

Nested = Mapping[str, Mapping[str, Tensor]]


class SumsOnDisk(Mapping[str, Mapping[str, Tensor]]):
    """Site -> its sums, in files that each hold whole sites."""

    def __init__(self, files: list[Path]) -> None:
        self._sites: dict[str, _Site] = {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    site, _, name = key.rpartition("/")
                    self._sites.setdefault(site, _Site(path, site)).names.append(name)

    def __getitem__(self, site: str) -> Mapping[str, Tensor]:
        return self._sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def shapes(self, site: str) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the sums of one site, from the file's header alone."""
        found = self._sites[site]
        with safe_open(found.path, framework="pt") as file:
            return {n: tuple(file.get_slice(f"{site}/{n}").get_shape()) for n in found.names}

    def lies_in(self, folder: Path) -> bool:
        """Whether all files are in ``folder``."""
        here = folder.resolve()
        return all(site.path.parent.resolve() == here for site in self._sites.values())


class _Site(Mapping[str, Tensor]):
    """Name -> sum of one site, read every time it is asked for."""

    def __init__(self, path: Path, site: str) -> None:
        self.path, self.site = path, site
        self.names: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(f"{self.site}/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Added(Mapping[str, Mapping[str, Tensor]]):
    """Site -> its sums, those of several calibrations added up when asked for."""

    def __init__(self, parts: Sequence[Nested]) -> None:
        self._parts = parts

    def __getitem__(self, site: str) -> Mapping[str, Tensor]:
        first, *rest = (part[site] for part in self._parts)
        found = {name: total.clone() for name, total in first.items()}
        for part in rest:
            for name, total in found.items():
                total += part[name]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts[0])

    def __len__(self) -> int:
        return len(self._parts[0])


def moved(moments: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The sums of one site on ``device``."""
    return {name: tensor.to(device) for name, tensor in moments.items()}


def flatten(nested: Nested) -> dict[str, Tensor]:
    """``site -> name -> tensor`` as ``site/name -> tensor``."""
    return {f"{site}/{name}": t for site, found in nested.items() for name, t in found.items()}


def unflatten(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of :func:`flatten`."""
    nested: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        site, _, name = key.rpartition("/")
        nested.setdefault(site, {})[name] = tensor
    return nested
