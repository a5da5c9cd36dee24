"""One process at a time in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import SlimdiffError
from .files import LEFTOVER

__all__ = ["exclusive", "remove_idle"]


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep ``folder``, made if need be, to this process while the block runs.

    The lock goes with the process, also if it is killed. An empty folder is taken away again.
    Raises SlimdiffError if another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{LEFTOVER}.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SlimdiffError(
            f"Another slimdiff process is at work in '{folder}'. Wait for it to end, or choose "
            "another folder."
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            folder.rmdir()


def remove_idle(folder: Path) -> None:
    """Take ``folder`` away with all that is in it.

    Raises SlimdiffError if another process is at work there.
    """
    with exclusive(folder):
        pass
    shutil.rmtree(folder, ignore_errors=True)
