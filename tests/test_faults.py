"""What happens when things break: kills at any write, locks, full disks, memory, NaN, signals."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from test_cli import run
from tiny import prompt_file, tiny_folder, tiny_pipeline

import slimdiff
from slimdiff import calibration, gathering
from slimdiff.files import new_folder
from slimdiff.locking import exclusive
from slimdiff.memory import halving
from slimdiff.sampling import batches, sample_latents
from slimdiff.statistics import Statistics
from slimdiff.team import Team

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
PROMPTS = [f"thing {i}" for i in range(4)]
SMALL = ["--steps", "2", "--batch-size", "2", "--guidance", "3", "--device", "cpu"]
CALIBRATE = ["calibrate", "model", "--prompts", "prompts.txt", "--num-prompts", "4", *SMALL]


def calibrated(folder, **options):
    return slimdiff.calibrate(
        tiny_pipeline(), PROMPTS, sampling=SAMPLING, folder=folder, save_every=0, **options
    )


def checksums(folder) -> dict[str, str]:
    return dict(Statistics.load(folder).header.files)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted calibration, saved."""
    folder = tmp_path_factory.mktemp("whole") / "stats"
    calibrated(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    tiny_folder(root / "model")
    prompt_file(root / "prompts.txt")
    return root


def killed_at(write: int, folder: Path) -> bool:
    """Calibrate in a forked process that dies by SIGKILL at its ``write``-th rename."""
    pid = os.fork()
    if pid == 0:
        original, count = os.replace, 0

        def deadly(source, target):
            nonlocal count
            count += 1
            if count == write:
                os.kill(os.getpid(), signal.SIGKILL)
            original(source, target)

        os.replace = deadly
        calibrated(folder)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_killed_at_any_write_the_calibration_resumes_to_the_same_bytes(whole, tmp_path):
    writes = 0
    while True:
        folder = tmp_path / f"stats-{writes}"
        if not killed_at(writes + 1, folder):
            break
        writes += 1
        if Statistics.exists(folder):
            assert not Statistics.load(folder).complete
        calibrated(folder)
        assert checksums(folder) == checksums(whole), writes
        names = {path.name for path in folder.iterdir()}
        assert names == {"statistics.json", *checksums(folder)}, writes
    assert writes >= 8


def test_the_command_resumes_after_a_kill_before_the_first_save(place):
    folder = place / "early"
    folder.mkdir()
    (folder / ".slimdiff.lock").touch()
    (folder / ".slimdiff-sums-000002-partial.safetensors.abc").write_bytes(b"torn")
    (folder / "sums-000002-partial.safetensors").write_bytes(b"whole, but not named yet")
    result = run(*CALIBRATE, "-o", "early", cwd=place)
    assert result.returncode == 0, result.stderr
    assert Statistics.load(folder).complete
    assert {p.name for p in folder.iterdir()} == {"statistics.json", *checksums(folder)}


def test_the_next_try_removes_what_a_killed_one_left_and_nothing_that_is_held(tmp_path):
    for name in (".out.dead.partial", ".out.held.partial", ".other.dead.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"torn")
    with FileLock(tmp_path / ".out.held.lock"), new_folder(tmp_path / "out") as work:
        (work / "report.json").write_text("{}")
        names = {path.name for path in tmp_path.iterdir()}
    assert ".out.dead.partial" not in names
    assert {".out.held.partial", ".other.dead.partial", work.name} <= names
    left = {path.name for path in tmp_path.iterdir()} - {".out.held.lock"}
    assert left == {"out", ".out.held.partial", ".other.dead.partial"}


def test_a_complete_calibration_is_taken_with_resume_and_refused_without(place):
    assert run(*CALIBRATE, "-o", "twice", cwd=place).returncode == 0
    stamp = (place / "twice/statistics.json").stat().st_mtime_ns
    refused = run(*CALIBRATE, "-o", "twice", cwd=place)
    assert refused.returncode == 2
    assert "already exists" in refused.stderr
    assert run(*CALIBRATE, "-o", "twice", "--resume", cwd=place).returncode == 0
    assert (place / "twice/statistics.json").stat().st_mtime_ns == stamp


def forked(work) -> tuple[int, int]:
    """Do ``work()`` in a forked process; its id, and where its result comes out as JSON."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, json.dumps(work()).encode())
        os._exit(0)
    os.close(writer)
    return pid, reader


def result_of(pid: int, reader: int):
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    def enter():
        try:
            with exclusive(tmp_path / "stats"):
                return "entered"
        except slimdiff.SlimdiffError as error:
            return str(error)

    with exclusive(tmp_path / "stats"):
        message = result_of(*forked(enter))
        assert f"Another slimdiff process is at work in '{tmp_path / 'stats'}'" in message
    assert not (tmp_path / "stats").exists()
    assert result_of(*forked(enter)) == "entered"


def test_calibrate_refuses_a_folder_in_use_and_leaves_it_alone(whole):
    before = {p.name: p.stat().st_mtime_ns for p in whole.iterdir()}
    lock = FileLock(whole / ".slimdiff.lock", timeout=0)
    with lock, pytest.raises(slimdiff.SlimdiffError, match="Another slimdiff process"):
        calibrated(whole, method="paper")
    (whole / ".slimdiff.lock").unlink(missing_ok=True)
    assert {p.name: p.stat().st_mtime_ns for p in whole.iterdir()} == before


def out_of_memory_above(size, monkeypatch):
    """Sampling fails on batches larger than ``size``, after the hooks have seen a step."""
    sizes = []

    def scarce(pipe, prompts, sampling):
        sizes.append(len(prompts))
        if len(prompts) > size:
            sample_latents(pipe, prompts, replace(sampling, steps=1))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample_latents(pipe, prompts, sampling)

    monkeypatch.setattr(gathering, "sample_latents", scarce)
    return sizes


@pytest.mark.parametrize("kept", [True, False])
def test_out_of_memory_halves_the_batch_aloud_and_counts_nothing_twice(
    kept, tmp_path, monkeypatch, caplog
):
    halves = replace(SAMPLING, batch_size=1)
    expected = slimdiff.calibrate(tiny_pipeline(), PROMPTS, sampling=halves)
    sizes = out_of_memory_above(1, monkeypatch)
    folder = tmp_path / "stats" if kept else None
    with caplog.at_level(logging.WARNING):
        found = calibrated(folder)
    assert "Out of memory with 2 prompts a batch; going on with 1" in caplog.text
    assert sizes == [2, *[1] * 4]
    assert found.header.sampling.batch_size == 1
    for site, tensors in expected.sums.items():
        for name, total in tensors.items():
            assert torch.equal(found.sums[site][name], total), (site, name)


def test_out_of_memory_later_goes_back_to_what_was_saved(tmp_path, monkeypatch):
    calls = []

    def scarce(pipe, prompts, sampling):
        calls.append([index for index, _ in prompts])
        if len(calls) == 2:
            raise MemoryError
        return sample_latents(pipe, prompts, sampling)

    monkeypatch.setattr(gathering, "sample_latents", scarce)
    assert calibrated(tmp_path / "stats").complete
    assert calls == [[0, 1], [2, 3], [2], [3]]


def test_halving_does_every_prompt_once_in_order():
    done = []

    def work(batch):
        if len(batch) > 3:
            raise MemoryError
        done.extend(batch)
        return len(batch)

    prompts = [(i, "x") for i in range(11)]
    sizes = [size for _, size in halving(batches(prompts, 8), work)]
    assert done == prompts
    assert sizes == [2, 2, 2, 2, 2, 1]
    with pytest.raises(MemoryError):
        list(halving(batches(prompts, 1), lambda batch: work([0] * 4)))


def test_sigterm_ends_like_ctrl_c_and_the_next_run_goes_on(place):
    long = [*CALIBRATE, "-o", "ended", "--save-every", "0", "--steps", "40"]

    def work():
        result = run(*long, cwd=place)
        return result.returncode, result.stderr[-2000:]

    pid, reader = forked(work)
    deadline = time.time() + 300
    while not (place / "ended/statistics.json").exists():
        assert time.time() < deadline
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    code, stderr = result_of(pid, reader)
    assert code == 130, stderr
    assert "prompts are kept in ended: run the same command" in " ".join(stderr.split())
    assert 0 < Statistics.load(place / "ended").header.done <= 4
    assert run(*long, cwd=place).returncode == 0
    assert Statistics.load(place / "ended").complete


def test_parts_merged_and_finished_equal_the_whole(place):
    settings = [*CALIBRATE, "--batch-size", "1"]
    for part in ("1/2", "2/2"):
        made = run(*settings, "--part", part, "-o", f"part{part[0]}", cwd=place)
        assert made.returncode == 0, made.stderr
    assert run("merge", "part1", "part2", "-o", "merged", cwd=place).returncode == 0
    assert not Statistics.load(place / "merged").complete
    refused = run("plan", "merged", "--pool", "0.8", "-o", "p.json", cwd=place)
    assert refused.returncode == 2
    assert "incomplete or were merged" in " ".join(refused.stderr.split())
    assert run("finish", "model", "merged", cwd=place).returncode == 0
    assert run(*settings, "-o", "one", cwd=place).returncode == 0
    merged, one = Statistics.load(place / "merged"), Statistics.load(place / "one")
    assert merged.complete
    assert merged.header.prompts == one.header.prompts
    for site, tensors in one.sums.items():
        for name, total in tensors.items():
            torch.testing.assert_close(merged.sums[site][name], total, rtol=1e-12, atol=1e-12)
    again = run("merge", "part1", "part1", "-o", "double", cwd=place)
    assert "some prompt indices occur twice" in " ".join(again.stderr.split())
    bad = run(*settings, "--part", "3/2", "-o", "bad", cwd=place)
    assert "Part '3/2' is not a part of 4 prompts; expected K/N" in " ".join(bad.stderr.split())


def interrupted(folder, monkeypatch, batch=1):
    """A calibration stopped after ``batch`` batches."""
    drawn = []

    def stops(pipe, prompts, sampling):
        if len(drawn) == batch:
            raise KeyboardInterrupt
        drawn.append(len(prompts))
        return sample_latents(pipe, prompts, sampling)

    with monkeypatch.context() as patch:
        patch.setattr(gathering, "sample_latents", stops)
        with pytest.raises(KeyboardInterrupt):
            calibrated(folder)
    return Statistics.load(folder)


def test_bases_of_some_prompts_are_never_taken_for_those_of_all(whole, tmp_path, monkeypatch):
    part = interrupted(tmp_path / "s", monkeypatch)
    assert part.header.done == 2
    with pytest.raises(slimdiff.SlimdiffError, match=r"Only 2 of 4 prompts are summed.*again"):
        slimdiff.finish(tiny_pipeline(), part)
    stale = Statistics.load(whole)
    stale = replace(part, bases=stale.bases, header=replace(part.header, gains=stale.header.gains))
    stale.save(tmp_path / "s")
    monkeypatch.setattr(calibration, "finish", lambda pipe, stats, method: stats)
    assert not calibrated(tmp_path / "s").complete


def test_a_resumption_takes_the_batch_size_it_is_given(tmp_path, monkeypatch):
    interrupted(tmp_path / "s", monkeypatch)
    sizes = []

    def watched(pipe, prompts, sampling):
        sizes.append(len(prompts))
        return sample_latents(pipe, prompts, sampling)

    monkeypatch.setattr(gathering, "sample_latents", watched)
    slimdiff.calibrate(
        tiny_pipeline(), PROMPTS, sampling=replace(SAMPLING, batch_size=1), folder=tmp_path / "s"
    )
    assert sizes == [1, 1]


def test_force_replaces_damaged_statistics_but_not_those_in_use(place, whole):
    shutil.copytree(whole, place / "spoilt")
    (place / "spoilt/statistics.json").write_text("{")
    refused = run(*CALIBRATE, "-o", "spoilt", cwd=place)
    assert refused.returncode == 2
    with exclusive(place / "spoilt"):
        in_use = run(*CALIBRATE, "-o", "spoilt", "--force", cwd=place)
        assert in_use.returncode == 2
        assert "Another slimdiff process" in in_use.stderr
        assert (place / "spoilt/statistics.json").read_text() == "{"
    assert run(*CALIBRATE, "-o", "spoilt", "--force", cwd=place).returncode == 0
    assert Statistics.load(place / "spoilt").complete


def test_processes_that_find_different_statistics_stop(tmp_path, monkeypatch):
    states = {"0": torch.tensor([30, 0]), "1": torch.tensor([0, 0])}
    monkeypatch.setattr(Team, "current", classmethod(lambda cls: Team(0, 2)))
    monkeypatch.setattr(Team, "gathered", lambda team, own: states)
    with pytest.raises(slimdiff.SlimdiffError, match="process 0: 30 prompts, process 1: 0"):
        calibrated(tmp_path / "s")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"method": "x"}, "Unknown method 'x'; expected one of exact"),
        ({"policy": "x"}, "Unknown policy 'x'; expected one of"),
        ({"rounds": -1}, "rounds=-1; expected 0 or more"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_sampled(option, text, monkeypatch):
    monkeypatch.setattr(gathering, "sample_latents", lambda *args: pytest.fail("sampled"))
    with pytest.raises(slimdiff.SlimdiffError, match=text):
        slimdiff.slim(tiny_pipeline(), list("abcdefghijkl"), slimdiff.Budget(pool=0.6), **option)
