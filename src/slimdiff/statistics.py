"""What calibration leaves behind: one folder that serves every budget.

``statistics.json`` says where the model came from and how it was sampled, and names the tensor
files with their checksums, and its own; ``sums-*.safetensors`` hold the additive sums, one file a
site and read only when asked for, since those of a large model exceed its weights;
``bases-*.safetensors`` the ordered bases and error curves that follow from them. The JSON is
replaced last and atomically, so a folder is always one consistent state, also after a crash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from .decomposition import Basis
from .errors import SlimdiffError
from .files import LEFTOVER, read_json, sha256, write_json, write_tensors
from .plan import DTYPES
from .prices import Linear
from .recording import TokenSampling, empty_sums
from .sampling import Sampling
from .sites import Site, free_sites
from .sums import SumsOnDisk, flatten, unflatten

__all__ = ["Gain", "Header", "Source", "Statistics", "refuse_foreign"]

FORMAT = 1
_MOST = 2**48
_FILE = "statistics.json"
_OWN = re.compile(r"(sums|bases)-\d{6,}-\w+\.safetensors")
_ABANDONED = re.compile(rf"{_OWN.pattern}|{re.escape(LEFTOVER)}-(sums|bases|{_FILE}).*")


@dataclass(frozen=True)
class Source:
    """Where the sums came from. ``hash`` is :func:`slimdiff.denoiser.fingerprint`."""

    name: str
    pipeline: str
    denoiser: str
    hash: str
    dtype: str
    parameters: int


@dataclass(frozen=True)
class Gain:
    """Output error of the denoiser when one site alone is cut to ``width``, relative."""

    width: int
    error: float


@dataclass(frozen=True)
class Header:
    """Everything about a calibration that is not a tensor.

    ``prompts`` are summed, ``done`` of them so far; ``gain_prompts`` are not, so that gains are
    measured on prompts the bases have not seen. ``method`` names the closed forms behind both.
    ``macs``: what widths cost in multiply-adds, of one denoiser call for one prompt. ``phases``
    says what the ``seconds`` went into.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    source: Source
    sampling: Sampling
    tokens: TokenSampling
    prompts: tuple[tuple[int, str], ...]
    sites: tuple[Site, ...]
    gain_prompts: tuple[tuple[int, str], ...] = ()
    done: int = 0
    method: str = "exact"
    timestep_weights: str = "uniform"
    gains: Mapping[str, Gain] = field(default_factory=dict)
    macs: Linear | None = None
    seconds: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def settings(self) -> dict[str, Any]:
        """What must agree for two calibrations to be one: all but progress and results.

        Neither what the model was called nor how prompts were batched changes the sums.
        """
        kept = ("tokens", "sites", "timestep_weights", "format")
        return {
            "model": replace(self.source, name=""),
            "sampling": replace(self.sampling.calibrating, batch_size=1),
            **{name: getattr(self, name) for name in kept},
        }


@dataclass(frozen=True)
class Statistics:
    """Sums, ordered bases and gains of one model under one way of sampling.

    ``sums`` are additive. ``bases`` and ``header.gains`` follow from sums and weights; they are
    empty after a merge or an interruption, and ``finish`` fills them in.
    """

    header: Header
    sums: Mapping[str, Mapping[str, Tensor]]
    bases: Mapping[str, Basis] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all prompts were summed and bases and gains belong to these sums."""
        free = {site.name for site in free_sites(self.header.sites)}
        summed = self.header.done == len(self.header.prompts)
        return summed and free <= set(self.bases) and free <= set(self.header.gains)

    def __str__(self) -> str:
        h = self.header
        state = "complete" if self.complete else "incomplete"
        phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in h.phases.items())
        phases = f" ({phases})" if phases else ""
        return (
            f"Statistics of {h.source.name} ({h.source.denoiser}, "
            f"{h.source.parameters / 1e6:.1f} M parameters, {h.source.dtype}): "
            f"{h.done} of {len(h.prompts)} prompts x {h.sampling.calibrating.steps} steps, "
            f"{len(free_sites(h.sites))} sites, {state}; took {h.seconds:.0f} s"
            f"{phases}, peak memory {h.peak_mib:.0f} MiB"
        )

    def save(self, folder: str | Path) -> None:
        """Write the folder; a previous state in it is replaced only once the new one is whole."""
        folder = Path(folder)
        refuse_foreign(folder)
        stamp = f"{self.header.done:06d}-{self.header.method if self.bases else 'partial'}"
        files = self._sums_there(folder)
        for i, (site, found) in enumerate(() if files else self.sums.items()):
            name = f"sums-{stamp}_{i:04d}.safetensors"
            files[name] = write_tensors(folder / name, flatten({site: found}))
        if self.bases:
            flat = {name: basis.named() for name, basis in self.bases.items()}
            name = f"bases-{stamp}.safetensors"
            files[name] = write_tensors(folder / name, flatten(flat))
        value = asdict(replace(self.header, files=files))
        write_json(folder / _FILE, {**value, "checksum": _checksum(value)})
        for old in folder.iterdir():
            if old.name not in files and _ABANDONED.fullmatch(old.name):
                old.unlink()

    def _sums_there(self, folder: Path) -> dict[str, str]:
        """Files of the sums that ``folder`` holds already, since they were opened there."""
        if not isinstance(self.sums, SumsOnDisk) or not self.sums.lies_in(folder):
            return {}
        return {k: v for k, v in self.header.files.items() if k.startswith("sums")}

    @classmethod
    def load(cls, folder: str | Path) -> Statistics:
        """Open a folder and check every file against its checksum; sums are read when used."""
        folder = Path(folder)
        header = _read_header(folder / _FILE)
        files: list[Path] = []
        found: dict[str, dict[str, Tensor]] = {}
        for name, digest in header.files.items():
            path = folder / Path(name).name
            if not path.is_file() or sha256(path) != digest:
                raise SlimdiffError(
                    f"'{path}' is missing or does not match its checksum in {_FILE}; the "
                    "statistics are damaged. Run slimdiff calibrate again, with --force."
                )
            if name.startswith("bases"):
                found |= unflatten(load_file(path))
            else:
                files.append(path)
        bases = {name: Basis.of(named) for name, named in found.items()}
        sums = SumsOnDisk(files)
        if not _fits(header, sums, bases):
            raise SlimdiffError(
                f"The sums in '{folder}' do not belong to the sites in {_FILE}; statistics "
                "are damaged. Run slimdiff calibrate again, with --force."
            )
        return cls(header, sums, bases)

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether ``folder`` holds statistics."""
        return (Path(folder) / _FILE).is_file()


def refuse_foreign(folder: Path) -> None:
    """Raise SlimdiffError if ``folder`` holds files but no statistics, begun or whole."""
    if Statistics.exists(folder) or not folder.is_dir():
        return
    if any(not (_OWN.fullmatch(p.name) or p.name.startswith(LEFTOVER)) for p in folder.iterdir()):
        raise SlimdiffError(
            f"Folder '{folder}' holds other files and no {_FILE}; expected statistics, an empty "
            "folder or a new name. Choose another folder."
        )


def _read_header(path: Path) -> Header:
    value = read_json(path, "statistics folder")
    checksum = value.pop("checksum", None)
    if value.get("format") != FORMAT:
        raise SlimdiffError(
            f"'{path}' has format {value.get('format')}; expected {FORMAT}. "
            "Run slimdiff calibrate again, with --force."
        )
    try:
        header = TypeAdapter(Header).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SlimdiffError(
            f"'{path}' is damaged at '{place}': {first['msg']}. Run slimdiff calibrate "
            "again, with --force."
        ) from None
    if checksum is not None and checksum != _checksum(value):
        raise SlimdiffError(
            f"'{path}' does not match its own checksum; it was damaged or edited. Run slimdiff "
            "calibrate again, with --force."
        )
    return header


def _fits(header: Header, sums: SumsOnDisk, bases: Mapping[str, Basis]) -> bool:
    """Whether sites, sums, curves and gains are of one model, in names and sizes."""
    free = {site.name: site for site in free_sites(header.sites)}
    if set(sums) != set(free) or not set(bases) <= set(free) or not set(header.gains) <= set(free):
        return False
    if header.source.dtype not in DTYPES or (
        header.macs and set(header.macs.per_unit) != set(free)
    ):
        return False
    if not 0 <= header.done <= len(header.prompts) or not 1 <= header.source.parameters <= _MOST:
        return False
    sizes = [n for s in header.sites for n in (s.width, s.heads, s.width * s.heads)]
    sizes += [n for s in header.sites for p in s.parts for n in (p.size, p.across)]
    if not all(0 < n <= _MOST for n in sizes):
        return False
    expected = empty_sums(header.sites, torch.device("meta"))
    shapes = all(
        sums.shapes(name) == {k: tuple(v.shape) for k, v in found.items()}
        for name, found in expected.items()
    )
    curves = all(b.errors.shape == (free[name].width + 1,) for name, b in bases.items())
    return shapes and curves and all(0 < g.width <= free[n].width for n, g in header.gains.items())


def _checksum(value: Mapping[str, Any]) -> str:
    """sha256 of a JSON object, however it is laid out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
