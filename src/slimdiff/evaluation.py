"""Dense against slim on many prompts, by the metrics the field knows; pictures are kept.

The folder holds ``dense/`` and ``slim/``, one PNG a prompt, and ``evaluation.json``. Pictures that
are there are not drawn again, so an evaluation that stopped goes on where it was. Metrics read the
PNGs, so a resumed evaluation and another run give the same figures.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .denoiser import denoiser, fingerprint
from .environment import device_name, versions
from .errors import SlimdiffError
from .files import read_json, remove_leftovers, write_bytes, write_json
from .locking import exclusive
from .memory import halving
from .metrics import Drawn, compute, known_metrics
from .pictures import to_image
from .prompts import HELD_OUT_FROM
from .sampling import IndexedPrompt, Sampling, batches, draw
from .team import Team

__all__ = ["FILE", "evaluate"]

FILE = "evaluation.json"
SIDES = ("dense", "slim")


def evaluate(
    dense: DiffusionPipeline,
    slim: DiffusionPipeline,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    metrics: Sequence[str],
    judge: str | None = None,
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """Draw every prompt with both, keep the pictures in ``folder``, and compute ``metrics``.

    ``judge`` names the CLIP model behind ``clip``, ``fid`` and ``kid``. Returns what it writes to
    evaluation.json: ``settings``, ``metrics``, and under ``not_computed`` what is missing and why.
    A team of processes shares the drawing out. Raises SlimdiffError for an unknown metric, or if
    ``folder`` holds an evaluation with other settings or is in use.
    """
    folder, team, sampling = Path(folder), Team.current(), sampling or Sampling()
    names = known_metrics(metrics)
    if not prompts:
        raise SlimdiffError("No prompts to evaluate on: expected at least one. Give more prompts.")
    indexed = list(enumerate(prompts, HELD_OUT_FROM))
    settings = _settings(dense, slim, prompts, sampling)
    with exclusive(folder) if team.leads else nullcontext():
        _refuse_other(folder, settings)
        if team.leads and not (folder / FILE).is_file():
            write_json(folder / FILE, {"settings": settings})
        for side, pipe in zip(SIDES, (dense, slim), strict=True):
            _draw(pipe, indexed, sampling, folder / side, team)
        team.wait()
        if not team.leads:
            return {}
        remove_leftovers(folder)
        before, after = (_read(folder / side, len(prompts)) for side in SIDES)
        found, missing = compute(names, Drawn(prompts, before, after, judge))
        result = {
            "settings": settings,
            "judge": judge,
            "metrics": found,
            "not_computed": missing,
            "versions": versions(),
            "device": device_name(torch.device(denoiser(slim).device)),
        }
        write_json(folder / FILE, result)
    return result


def _settings(
    dense: DiffusionPipeline, slim: DiffusionPipeline, prompts: Sequence[str], sampling: Sampling
) -> dict[str, Any]:
    """What two evaluations must have in common to share pictures."""
    listed = json.dumps(list(prompts), ensure_ascii=False).encode()
    return {
        "dense": fingerprint(denoiser(dense)),
        "slim": fingerprint(denoiser(slim)),
        "prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(listed).hexdigest(),
        "sampling": replace(sampling, batch_size=1).to_dict(),
    }


def _refuse_other(folder: Path, settings: dict[str, Any]) -> None:
    if not (folder / FILE).is_file():
        return
    there = read_json(folder / FILE, "evaluation").get("settings")
    there = there if isinstance(there, dict) else {}
    differ = [name for name, value in settings.items() if there.get(name) != value]
    if differ:
        raise SlimdiffError(
            f"'{folder}' holds an evaluation with other {', '.join(differ)}. Choose another -o, "
            "or pass --force to replace it."
        )


def _draw(
    pipe: DiffusionPipeline,
    prompts: Sequence[IndexedPrompt],
    sampling: Sampling,
    folder: Path,
    team: Team,
) -> None:
    """Draw the batches of which a picture is missing; a batch is always the same prompts."""
    todo = [
        batch
        for batch in team.share(list(batches(prompts, sampling.batch_size)))
        if not all(_file(folder, i).is_file() for i, _ in batch)
    ]
    with tqdm(total=sum(map(len, todo)), desc=folder.name, unit="picture", disable=None) as bar:
        for part, (images, _) in halving(todo, lambda some: draw(pipe, some, sampling)):
            for (index, _), picture in zip(part, images, strict=True):
                _write(_file(folder, index), picture)
            bar.update(len(part))


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index - HELD_OUT_FROM:06d}.png"


def _write(path: Path, picture: Tensor) -> None:
    if not bool(torch.isfinite(picture).all()):
        raise SlimdiffError(
            f"The picture for '{path}' holds NaN; expected values in [0, 1]. Try --dtype float32 "
            "or bfloat16."
        )
    buffer = io.BytesIO()
    to_image(picture).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def _read(folder: Path, count: int) -> Tensor:
    """All pictures, uint8, shape (n, 3, H, W). Raises SlimdiffError naming a damaged one."""
    pictures = []
    for index in range(count):
        path = _file(folder, index + HELD_OUT_FROM)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                array = np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise SlimdiffError(
                f"'{path}' is missing or not a PNG picture ({error}). Remove it and go on."
            ) from None
        pictures.append(torch.from_numpy(array).permute(2, 0, 1))
    return torch.stack(pictures)
