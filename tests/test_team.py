"""Two processes under torchrun find what one finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from team_worker import PROMPTS, calibrated

import slimdiff
from slimdiff.statistics import Statistics
from slimdiff.team import Team, joined

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both processes of a team found, in both dtypes, and where they kept it."""
    root = tmp_path_factory.mktemp("team")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(
            str(HERE / "team_worker.py"),
            "float64,float32",
            str(root / "kept"),
            str(root / "found"),
        ),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_two_processes_find_what_one_finds(two, dtype):
    one = calibrated(dtype, None)
    found = Statistics.load(two / "found" / f"{dtype}-0")
    assert found.complete
    assert set(found.header.phases) == {"sampling", "decomposition", "gains"}
    assert found.header.prompts == one.header.prompts
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    for site, tensors in one.sums.items():
        for name, total in tensors.items():
            gap = (found.sums[site][name] - total).norm() / total.norm().clamp_min(1e-300)
            assert float(gap) <= tolerance, (site, name, float(gap))
    for share in (0.8, 0.6, 0.4):
        plans = [
            slimdiff.allocate(s, slimdiff.Budget(pool=share), multiple=2) for s in (one, found)
        ]
        assert plans[0].widths == plans[1].widths


def test_both_processes_hold_the_same_and_what_is_kept_is_that(two):
    for dtype in ("float64", "float32"):
        first, second = (Statistics.load(two / "found" / f"{dtype}-{i}") for i in (0, 1))
        kept = Statistics.load(two / "kept" / dtype)
        digests = {tuple(s.header.files.values()) for s in (first, second, kept)}
        assert len(digests) == 1
        assert first.header.gains == second.header.gains == kept.header.gains
        names = {path.name for path in (two / "kept" / dtype).iterdir()}
        assert names == {"statistics.json", *kept.header.files}


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_shares_are_all_the_prompts_once(size):
    shares = [Team(rank, size).share(PROMPTS) for rank in range(size)]
    assert sorted(p for share in shares for p in share) == sorted(PROMPTS)


def test_alone_a_team_changes_nothing():
    with joined() as team:
        assert team == Team(0, 1)
        assert team.leads
    sums = {"a": {"b": torch.ones(2)}}
    team.add_up_(sums)
    assert team.gathered({"x": sums["a"]["b"]})["x"] is sums["a"]["b"]
