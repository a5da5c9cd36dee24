"""Kills calibrate, slim and evaluate with SIGKILL at random moments and lets them go on.

After every kill, what lies there must load or be refused as unfinished, never load wrongly. At the
end the tensors and pictures must be those of a run that was never killed, to the byte.

    python tests/killing.py --kills 30
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from tiny import prompt_file, tiny_folder

import slimdiff
from slimdiff.cli import main as command
from slimdiff.statistics import Statistics

SMALL = [*("--steps", "4", "--batch-size", "2", "--guidance", "3", "--device", "cpu")]
PROMPTS = ["--prompts", "prompts.txt"]
CALIBRATING = [*PROMPTS, "--num-prompts", "6", "--save-every", "0", *SMALL]
JOBS = {
    "calibrate": ["calibrate", "model", "-o", "out", "--resume", *CALIBRATING],
    "slim": [
        *("slim", "model", "-o", "out", "--pool", "0.6", "--multiple", "2"),
        *("--statistics", "stats", *CALIBRATING),
    ],
    "evaluate": [
        *("evaluate", "model", "reference/out", "-o", "out", *PROMPTS, *SMALL),
        *("--metrics", "psnr,ssim,kid", "--judge", "emoji-clip"),
    ],
}


def start(arguments: list[str], folder: Path) -> int:
    """The command in a forked process; its id."""
    pid = os.fork()
    if pid == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.chdir(folder)
        sys.argv = ["slimdiff", *arguments]
        try:
            command()
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
    return pid


def finished(arguments: list[str], folder: Path, after: float | None = None) -> bool:
    """Whether the command ended well; with ``after`` it is killed so many seconds in."""
    pid = start(arguments, folder)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0


def check(job: str, folder: Path) -> None:
    """Raise unless everything in ``folder`` is whole or absent."""
    for place in (folder / "out", folder / "stats"):
        if Statistics.exists(place):
            Statistics.load(place)
    if job == "slim" and (folder / "out").exists():
        slimdiff.load(folder / "out")
        assert (folder / "out/report/report.html").is_file()
    for path in folder.glob("out/*/[0-9]*.png"):
        with Image.open(path) as image:
            image.load()


def result(folder: Path) -> dict[str, str]:
    """Digests of everything that must be the same in every run."""
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("out/**/*"))
        if path.suffix == ".safetensors" or path.parent.name in ("dense", "slim")
    }
    if (folder / "out/slimdiff_plan.json").is_file():
        found["widths"] = str(slimdiff.Plan.load(folder / "out/slimdiff_plan.json").widths)
    if (folder / "out/evaluation.json").is_file():
        found["metrics"] = str(json.loads((folder / "out/evaluation.json").read_text())["metrics"])
    return found


def kill_loop(kills: int, root: Path, seed: int = 0) -> Counter[str]:
    """So many kills, shared over the jobs; how often each was killed and finished."""
    rng, counts = random.Random(seed), Counter()
    tiny_folder(root / "model")
    prompt_file(root / "prompts.txt")
    for job, arguments in JOBS.items():
        reference = root / "reference-run" / job
        seconds = _prepared(root, reference, arguments)
        expected = result(reference)
        assert expected
        if job == "slim":
            shutil.copytree(reference / "out", root / "reference/out")
        while counts[f"{job} killed"] < kills // len(JOBS):
            folder = root / "killed" / f"{job}-{counts[f'{job} finished']}"
            _linked(root, folder)
            while not finished(arguments, folder, rng.uniform(0, seconds)):
                counts[f"{job} killed"] += 1
                check(job, folder)
                if (folder / "out").exists() and job == "slim":
                    break
                if counts[f"{job} killed"] % 4 == 0 and finished(arguments, folder):
                    break
            _same(result(folder), expected, f"{job} in {folder}")
            counts[f"{job} finished"] += 1
    return counts


def _same(found: dict[str, str], expected: dict[str, str], where: str) -> None:
    differ = {
        name: (found.get(name), expected.get(name))
        for name in found.keys() | expected.keys()
        if found.get(name) != expected.get(name)
    }
    assert not differ, f"{where} ended differently (found, expected): {differ}"


def _prepared(root: Path, folder: Path, arguments: list[str]) -> float:
    """Run uninterrupted in ``folder``; seconds that took."""
    _linked(root, folder)
    begin = time.monotonic()
    assert finished(arguments, folder), arguments
    return time.monotonic() - begin


def _linked(root: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("model", "prompts.txt", "reference"):
        (folder / name).symlink_to(root / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        counts = kill_loop(args.kills, Path(root), args.seed)
    for name, count in sorted(counts.items()):
        print(f"{name:20} {count}")


if __name__ == "__main__":
    main()
