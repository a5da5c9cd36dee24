"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import SlimdiffError

__all__ = [
    "LEFTOVER",
    "check_safetensors",
    "new_folder",
    "read_json",
    "refuse_existing",
    "remove_leftovers",
    "sha256",
    "write_bytes",
    "write_json",
    "write_tensors",
    "write_text",
]

LEFTOVER = ".slimdiff"
"""Temporary names start so: what a killed process leaves behind is never taken for a result."""

_PARTIAL = ".partial"
_MOST_JSON = 256 * 2**20


def refuse_existing(target: Path, force: bool) -> None:
    """Raise SlimdiffError unless ``target`` can be written.

    What exists is replaced only with ``force``, and a folder only if it is empty or slimdiff
    wrote it. The place is tried before any work is done.
    """
    if not target.name:
        raise SlimdiffError(f"Output '{target}' is no name for an output. Choose another -o.")
    if target.exists() and not force and not _only_leftovers(target):
        raise SlimdiffError(
            f"Output '{target}' already exists. Choose another -o, or pass --force to replace it."
        )
    if target.is_dir() and not _only_leftovers(target) and not _ours(target):
        raise SlimdiffError(
            f"Folder '{target}' was not written by slimdiff; --force does not replace it. Choose "
            "another -o, or remove it yourself."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent):
        pass


def _ours(folder: Path) -> bool:
    return any(fnmatch(path.name, marker) for path in folder.iterdir() for marker in _MARKERS)


def _only_leftovers(target: Path) -> bool:
    """Whether ``target`` is a folder without anything that a finished step wrote."""
    return target.is_dir() and all(p.name.startswith(LEFTOVER) for p in target.iterdir())


_MARKERS = (
    *("slimdiff_plan.json", "slimdiff_export.json", "statistics.json", "report.json"),
    *("evaluation.json", "sums-[0-9]*.safetensors"),
)


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its name when the block succeeds.

    On any failure, Ctrl-C included, nothing is left and what was there before is untouched. What
    a killed process left of an earlier try goes first.
    """
    refuse_existing(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    work = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}"
    with _held(work):
        yield from _filled(work, target)


def _filled(work: Path, target: Path) -> Iterator[Path]:
    work.mkdir(0o700)
    try:
        yield work
        work.chmod(0o777 & ~_umask())
        if target.exists():
            old = work.with_suffix(".old")
            os.rename(target, old)
            try:
                os.rename(work, target)
            except BaseException:
                os.rename(old, target)
                raise
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            os.rename(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _held(work: Path) -> Iterator[None]:
    """Hold the lock of a temporary folder; it goes with the process, also if it is killed."""
    path = work.with_suffix(".lock")
    lock = FileLock(path, timeout=0)
    lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _remove_abandoned(target: Path) -> None:
    """Take away temporary folders of ``target`` that no living process holds."""
    for work in target.parent.glob(f".{escape(target.name)}.*{_PARTIAL}"):
        with suppress(Timeout), _held(work):
            shutil.rmtree(work, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Take away half-written files that killed processes left anywhere under ``folder``.

    Call it only where no other process writes.
    """
    for path in folder.rglob(f"{LEFTOVER}-*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` atomically."""
    with _renamed(path) as work:
        work.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` atomically as indented JSON; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; ``what`` names it in errors."""
    try:
        if (size := path.stat().st_size) > _MOST_JSON:
            raise SlimdiffError(
                f"'{path}' is not a {what}: expected at most {_MOST_JSON} bytes, got {size}."
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SlimdiffError(f"No {what} at '{path}'. Check the path.") from None
    except SlimdiffError:
        raise
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise SlimdiffError(
            f"'{path}' is not a {what}: expected JSON, got {error}. Make it again."
        ) from None
    if not isinstance(value, dict):
        raise SlimdiffError(f"'{path}' is not a {what}: expected a JSON object. Make it again.")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file atomically and return its sha256."""
    with _renamed(path) as work:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, work)
        except SafetensorError as error:
            raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from error
        return sha256(work)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_safetensors(place: Path) -> None:
    """Raise SlimdiffError naming the first damaged safetensors file at or under ``place``."""
    for path in sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise SlimdiffError(
                f"'{path}' is truncated or not a safetensors file ({error}). Fetch it again."
            ) from None


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{LEFTOVER}-{path.name}.", dir=path.parent)
    os.close(handle)
    work = Path(name)
    try:
        yield work
        work.chmod(0o666 & ~_umask())
        with work.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
