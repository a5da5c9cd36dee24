"""What calibration leaves behind: one folder that serves every budget.

``statistics.json`` says where the model came from and how it was sampled, and names the tensor
files with their checksums; ``sums-*.safetensors`` hold the additive sums, one file a site and read
only when asked for, since those of a large model exceed its weights; ``bases-*.safetensors`` the
ordered bases and error curves that follow from them. The JSON is replaced last and atomically, so
a folder is always one consistent state, also after a crash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from .decomposition import Basis
from .errors import SlimdiffError
from .files import read_json, sha256, write_json, write_tensors
from .recording import Sums, TokenSampling
from .sampling import Sampling
from .sites import Site
from .sums import SumsOnDisk, flatten, unflatten

__all__ = ["Gain", "Header", "Source", "Statistics", "merge", "refuse_foreign"]

FORMAT = 1
_FILE = "statistics.json"
_OWN = re.compile(r"(sums|bases)-\d{6}-\w+\.safetensors")


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
    ``phases`` says what the ``seconds`` went into.
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
            "sampling": replace(self.sampling, batch_size=1),
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
        free = {site.name for site in self.header.sites if site.locked is None}
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
            f"{h.done} of {len(h.prompts)} prompts x {h.sampling.steps} steps, "
            f"{sum(s.locked is None for s in h.sites)} sites, {state}; took {h.seconds:.0f} s"
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
            flat = {n: {**b.tensors, "errors": b.errors} for n, b in self.bases.items()}
            name = f"bases-{stamp}.safetensors"
            files[name] = write_tensors(folder / name, flatten(flat))
        write_json(folder / _FILE, asdict(replace(self.header, files=files)))
        for old in folder.iterdir():
            if _OWN.fullmatch(old.name) and old.name not in files:
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
                    "statistics are damaged. Run slimdiff calibrate again."
                )
            if name.startswith("bases"):
                found |= unflatten(load_file(path))
            else:
                files.append(path)
        bases = {
            name: Basis({k: v for k, v in basis.items() if k != "errors"}, basis["errors"])
            for name, basis in found.items()
        }
        free = {site.name for site in header.sites if site.locked is None}
        sums = SumsOnDisk(files)
        if set(sums) != free or not set(bases) <= free:
            raise SlimdiffError(
                f"The sums in '{folder}' do not belong to the sites in {_FILE}; statistics "
                "are damaged. Run slimdiff calibrate again."
            )
        return cls(header, sums, bases)

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether ``folder`` holds statistics."""
        return (Path(folder) / _FILE).is_file()


def refuse_foreign(folder: Path) -> None:
    """Raise SlimdiffError if ``folder`` holds files but no statistics."""
    if folder.is_dir() and any(folder.iterdir()) and not Statistics.exists(folder):
        raise SlimdiffError(
            f"Folder '{folder}' holds other files and no {_FILE}; expected statistics, an empty "
            "folder or a new name. Choose another folder."
        )


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Add statistics of one model over disjoint prompts. Bases and gains are stale afterwards.

    Raises SlimdiffError if models, sampling or sites differ, or if a prompt index occurs twice.
    """
    if not parts:
        raise SlimdiffError("Nothing to merge: expected at least one Statistics.")
    first = parts[0]
    prompts: list[tuple[int, str]] = []
    gain_prompts: list[tuple[int, str]] = []
    sums: Sums = {name: {k: v.clone() for k, v in s.items()} for name, s in first.sums.items()}
    for part in parts:
        differ = [k for k, v in part.header.settings().items() if v != first.header.settings()[k]]
        if differ:
            raise SlimdiffError(
                f"Statistics cannot be merged: their {', '.join(differ)} differ. Calibrate all "
                "parts with the same model and settings."
            )
        prompts += part.header.prompts[: part.header.done]
        gain_prompts += part.header.gain_prompts
        if part is not first:
            for name, found in part.sums.items():
                for key, value in found.items():
                    sums[name][key] += value
    indices = [index for index, _ in prompts + gain_prompts]
    if len(set(indices)) != len(indices):
        raise SlimdiffError(
            "Statistics cannot be merged: some prompt indices occur twice. Split the prompts "
            "without overlap and give each part its own start index."
        )
    header = replace(
        first.header,
        prompts=tuple(sorted(prompts)),
        gain_prompts=tuple(sorted(gain_prompts)),
        done=len(prompts),
        gains={},
        phases={},
        seconds=sum(part.header.seconds for part in parts),
        peak_mib=max(part.header.peak_mib for part in parts),
        files={},
    )
    return Statistics(header, sums)


def _read_header(path: Path) -> Header:
    value = read_json(path, "statistics folder")
    if value.get("format") != FORMAT:
        raise SlimdiffError(
            f"'{path}' has format {value.get('format')}; expected {FORMAT}. "
            "Run slimdiff calibrate again."
        )
    try:
        return TypeAdapter(Header).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SlimdiffError(
            f"'{path}' is damaged at '{place}': {first['msg']}. Run slimdiff calibrate again."
        ) from None
