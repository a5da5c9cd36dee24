"""Places that are taken, foreign, in use, or without room."""

from __future__ import annotations

import resource
import signal
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock

from .fault import Fault

__all__ = ["FOLDERS"]

_ROOM = 4096


def _foreign(root: Path, stack: ExitStack) -> None:
    (root / "mine").mkdir()
    (root / "mine/thesis.txt").write_text("years of work")


def _in_use(root: Path, stack: ExitStack) -> None:
    (root / "new").mkdir()
    stack.enter_context(FileLock(root / "new/.slimdiff.lock"))


def _no_room(root: Path, stack: ExitStack) -> None:
    """No file of this process may grow beyond ``_ROOM`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
    stack.callback(signal.signal, signal.SIGXFSZ, signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM, before[1]))


FOLDERS = (
    Fault("An output that is there already", "slim model -o slim"),
    Fault("A calibration that is there already", "calibrate model -o stats"),
    Fault("`--force` on a folder of one's own", "slim model --force -o mine", _foreign),
    Fault("The same for statistics", "calibrate model --force -o mine", _foreign),
    Fault("A foreign folder for statistics", "slim model --statistics mine -o new", _foreign),
    Fault("Output and statistics in one another", "slim model --statistics a/b -o a"),
    Fault("A second process in the same folder", "calibrate model -o new", _in_use),
    Fault(
        "A place that cannot be written", "calibrate model -o /proc/new", elide=r"(?<=\.new\.)\w+"
    ),
    Fault(
        "No room on the disk (here: no file may grow beyond 4 KiB)",
        "calibrate model -o new",
        _no_room,
        elide=r"(?<=\().*(?=\): )",
    ),
    Fault("A report of a folder without one", "report model"),
    Fault("An export of a dense model", "export model --dense -o new"),
    Fault("A timing against a dense model", "bench model model"),
)
