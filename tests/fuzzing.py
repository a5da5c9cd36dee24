"""Feeds damaged files to the readers: each must answer with success or a clear SlimdiffError.

A valid plan, statistics folder, slim configuration, report and prompt file are made once. Each
input is one of them with a few random changes: values replaced by hostile ones, entries dropped,
swapped or nested, bytes flipped, cut off or invented. What is read is then used. Anything but
success or SlimdiffError is a failure, and so is any file that appears, vanishes or changes.

    python tests/fuzzing.py --inputs 20000 --seconds 1200
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from helpers import statistics, tiny_unet
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny import tiny_pipeline

import slimdiff
from slimdiff import families
from slimdiff.errors import SlimdiffError
from slimdiff.evaluation import _refuse_other
from slimdiff.loading import SlimConfig
from slimdiff.page import write_page
from slimdiff.plan import plan_from
from slimdiff.prompts import read_prompts
from slimdiff.recipe import copy_pipeline
from slimdiff.store import saved_dtype
from slimdiff.surgery import reshape_

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "../../../etc/passwd", "/etc/passwd"),
    *("C:\\windows", "\0", "\ud800", "a" * 5000, "float32", "NaN", "1", [], {}, [[]], [None]),
    *({"": {}}, {"format": 1}, [0] * 300, "<script>alert(1)</script>", "%s%n", "{{7*7}}"),
)
TEXTS = (b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 50_000)


class World:
    """Valid files under one folder, and how each kind is read and used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        sampling = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
        stats = statistics()
        stats.save(root / "stats")
        self.plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.6), multiple=2)
        self.plan.save(root / "plan.json")
        pipe = tiny_pipeline()
        real = slimdiff.calibrate(pipe, ["a", "b"], sampling=sampling)
        slim = copy_pipeline(pipe)
        slimdiff.compress_(slim, real, slimdiff.allocate(real, slimdiff.Budget(pool=0.5)))
        slimdiff.save(slim, root / "slim")
        slimdiff.compare(pipe, slim, ["a", "b"], sampling=sampling).save(root / "report")
        (root / "prompts.txt").write_text("# pool\na thing\nanother\n")
        (root / "eval").mkdir()
        (root / "eval/evaluation.json").write_text('{"settings": {"dense": "abc", "prompts": 3}}')
        self.readers = {
            "plan": ("plan.json", self.read_plan),
            "statistics": ("stats/statistics.json", self.read_statistics),
            "config": ("slim/unet/config.json", self.read_config),
            "slim plan": ("slim/slimdiff_plan.json", self.read_slim_plan),
            "report": ("report/report.json", self.read_report),
            "evaluation": ("eval/evaluation.json", self.read_evaluation),
            "prompts": ("prompts.txt", self.read_prompts),
        }
        self.valid = {kind: (root / name).read_bytes() for kind, (name, _) in self.readers.items()}
        config = json.loads(self.valid["config"])
        config = {k: config[k] for k in ("_class_name", "quantization_config")}
        self.valid["config"] = json.dumps(config).encode()
        value = json.loads(self.valid["statistics"])
        value.pop("checksum")  # with it nearly every change would end there
        self.valid["statistics"] = json.dumps(value).encode()
        self.sites = tuple(stats.header.sites)

    def try_(self, kind: str, data: bytes) -> str:
        """Read ``data`` as ``kind``; 'read' or 'refused'. Raises on anything else."""
        name, reader = self.readers[kind]
        path = self.root / name
        path.write_bytes(data)
        before = self._listing(path)
        try:
            reader(path)
            outcome = "read"
        except SlimdiffError as error:
            outcome = "refused" if str(error).strip() else "refused without a word"
        assert self._listing(path) == before, "files changed"
        path.write_bytes(self.valid[kind])
        return outcome

    def _listing(self, beside: Path) -> dict[str, int]:
        """Every file but the page that is asked for, with its size."""
        return {
            str(path): path.stat().st_size
            for path in [*self.root.rglob("*"), *Path(os.getcwd()).glob("*")]
            if path != beside and path.is_file() and path.name != "report.html"
        }

    def read_plan(self, path: Path) -> None:
        plan = slimdiff.Plan.load(path)
        self._use(plan)

    def _use(self, plan: slimdiff.Plan) -> None:
        plan.check(self.sites)
        str(plan)

    def read_statistics(self, path: Path) -> None:
        found = slimdiff.Statistics.load(path.parent)
        str(found)
        slimdiff.allocate(found, slimdiff.Budget(pool=0.8), multiple=2)

    def read_config(self, path: Path) -> None:
        """What loading does with a configuration, on a model without weights."""
        try:
            config = json.loads(path.read_bytes())["quantization_config"]
        except (ValueError, RecursionError, KeyError, TypeError):
            return  # diffusers' own reader stands before ours
        plan = plan_from(SlimConfig.from_dict(config).plan, "denoiser config")
        with torch.device("meta"):
            model, _ = tiny_unet()
        sites = families.find(model).sites(model)
        plan.check(sites)
        reshape_(model, sites, plan.widths)

    def read_slim_plan(self, path: Path) -> None:
        saved_dtype(path.parent)
        str(slimdiff.Plan.load(path))

    def read_report(self, path: Path) -> None:
        text = write_page(path.parent).read_text()
        assert "<script>alert" not in text, "markup from data"

    def read_evaluation(self, path: Path) -> None:
        _refuse_other(path.parent, {"dense": "abc", "prompts": 3})

    def read_prompts(self, path: Path) -> None:
        read_prompts(path)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """``data`` with a few changes, to its structure if it is JSON, or to its bytes."""
    choice = rng.random()
    if choice < 0.02:
        return rng.choice(TEXTS)
    if choice < 0.05:
        return rng.randbytes(rng.randrange(200))
    if choice < 0.2:
        return _bytes_changed(data, rng)
    try:
        value = json.loads(data)
    except ValueError:
        return _bytes_changed(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        value = _changed(value, rng)
    return json.dumps(value).encode()


def _bytes_changed(data: bytes, rng: random.Random) -> bytes:
    work = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(len(work) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del work[at : at + rng.choice((1, 10, 10**6))]
        elif kind == 1:
            work[at:at] = rng.randbytes(rng.choice((1, 4)))
        elif kind == 2 and at < len(work):
            work[at] ^= 1 << rng.randrange(8)
        else:
            work[at:at] = b"9" * rng.choice((1, 30, 6000))
    return bytes(work)


def _changed(value: Any, rng: random.Random) -> Any:
    """``value`` with one change somewhere inside."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return copy.deepcopy(rng.choice(HOSTILE))
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(list(keys))
    kind = rng.random()
    work = dict(value) if isinstance(value, dict) else list(value)
    if kind < 0.7:
        work[key] = _changed(work[key], rng)
    elif kind < 0.8:
        del work[key]
    elif kind < 0.9:
        other = rng.choice(list(keys))
        work[key], work[other] = work[other], work[key]
    elif isinstance(work, dict):
        work[rng.choice(("", "x", "format", "../x", str(key) + "x"))] = work[key]
    else:
        work.extend([work[key]] * rng.choice((1, 50)))
    return work


def fuzz(inputs: int, seconds: float, root: Path, *, derandomize: bool = False) -> Counter[str]:
    """Try so many inputs for at most ``seconds``; outcomes by kind. Raises on a failure."""
    world, counts, end = World(root), Counter(), time.monotonic() + seconds

    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        derandomize=derandomize,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(world.readers)), st.integers(0, 2**64 - 1))
    def one(kind: str, seed: int) -> None:
        if time.monotonic() > end:
            return
        counts[f"{kind}: {world.try_(kind, damaged(world.valid[kind], random.Random(seed)))}"] += 1

    one()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=1200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        begin = time.monotonic()
        counts = fuzz(args.inputs, args.seconds, Path(root))
    for name, count in sorted(counts.items()):
        print(f"{name:24} {count:7,}")
    print(f"{counts.total():,} inputs in {time.monotonic() - begin:.0f} s, no failure")


if __name__ == "__main__":
    main()
