"""What breaks while the model runs: memory, numbers, signals, kills, and what nobody foresaw."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from slimdiff import gathering
from slimdiff.cli import steps
from slimdiff.sampling import sample_latents

from .fault import Damage, Fault, started
from .inputs import changed_weight

__all__ = ["BREAKS"]

_KEPT = frozenset({"new"})


def _scarce(most: int) -> Damage:
    """Batches of more than ``most`` prompts do not fit into memory."""

    def sample(pipe: Any, prompts: Any, sampling: Any) -> Any:
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample_latents(pipe, prompts, sampling)

    return lambda root, stack: stack.enter_context(
        patch.object(gathering, "sample_latents", sample)
    )


def _signalled(number: int) -> Damage:
    """The process gets a signal as it begins its second batch."""
    begun: list[object] = []

    def sample(pipe: Any, prompts: Any, sampling: Any) -> Any:
        begun.append(prompts)
        if len(begun) == 2:
            os.kill(os.getpid(), number)
        return sample_latents(pipe, prompts, sampling)

    def damage(root: Path, stack: ExitStack) -> None:
        begun.clear()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
        stack.callback(signal.signal, signal.SIGINT, before)
        stack.enter_context(patch.object(gathering, "sample_latents", sample))

    return damage


def _killed(root: Path, stack: ExitStack) -> None:
    """A process before this one was killed in its second batch, the first being saved."""
    pid = os.fork()
    if pid == 0:
        _signalled(signal.SIGKILL)(root, stack)
        started(_SAVING, root)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def _not_finite_when_cut(root: Path, stack: ExitStack) -> None:
    stack.enter_context(patch("slimdiff.gains.output_error", lambda model, calls: float("nan")))


def _unforeseen(root: Path, stack: ExitStack) -> None:
    error = ZeroDivisionError("one by nought")
    stack.enter_context(patch.object(steps, "allocate", side_effect=error))


_CALIBRATE = "calibrate model -o new"
_SAVING = "calibrate model --save-every 0 -o new"
_TOOK = r"(?<=took ).*"

BREAKS = (
    Fault(
        "Out of memory: the batch is halved and the work goes on",
        _CALIBRATE,
        _scarce(1),
        0,
        _KEPT,
        _TOOK,
    ),
    Fault("Out of memory with a single prompt", _CALIBRATE, _scarce(0)),
    Fault("NaN inside the model", _CALIBRATE, changed_weight("unet", "conv_in.weight", 3e38)),
    Fault("NaN in its output", _CALIBRATE, changed_weight("unet", "conv_out.weight", 3e38)),
    Fault("NaN once a site is cut", _CALIBRATE, _not_finite_when_cut, leaves=_KEPT),
    Fault("Ctrl-C while calibrating", _SAVING, _signalled(signal.SIGINT), 130, _KEPT),
    Fault("Ctrl-C before the first save", "slim model -o new", _signalled(signal.SIGINT), 130),
    Fault("SIGTERM", _SAVING, _signalled(signal.SIGTERM), 130, _KEPT),
    Fault("The command after a `kill -9`", _SAVING, _killed, 0, _KEPT, _TOOK),
    Fault("An error that nobody foresaw", "plan stats --pool 0.8 -o p.json", _unforeseen),
)
