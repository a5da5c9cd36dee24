"""One process of test_team.py: calibrates the tiny pipeline and saves what it found.

python tests/team_worker.py DTYPE FOLDER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny import tiny_pipeline

import slimdiff
from slimdiff.team import joined

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
PROMPTS = [f"thing {i}" for i in range(7)]


def calibrated(dtype: str, folder: Path | None) -> slimdiff.Statistics:
    """All prompts, saved to ``folder`` after every batch."""
    pipe = tiny_pipeline().to(dtype=getattr(torch, dtype))
    return slimdiff.calibrate(pipe, PROMPTS, sampling=SAMPLING, folder=folder, save_every=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as team:
        for name in sys.argv[1].split(","):
            stats = calibrated(name, Path(sys.argv[2]) / name)
            stats.save(Path(sys.argv[3]) / f"{name}-{team.rank}")
