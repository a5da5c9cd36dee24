"""The long checks of killing.py and fuzzing.py, small."""

from __future__ import annotations

from fuzzing import fuzz
from killing import JOBS, kill_loop


def test_killed_at_random_every_job_ends_as_if_it_had_not_been(tmp_path):
    counts = kill_loop(len(JOBS), tmp_path)
    assert all(counts[f"{job} killed"] >= 1 for job in JOBS)
    assert all(counts[f"{job} finished"] >= 1 for job in JOBS)


def test_readers_answer_damaged_files_with_success_or_a_clear_error(tmp_path):
    counts = fuzz(150, 60, tmp_path, derandomize=True)
    assert counts.total() >= 50
    assert any(name.endswith("refused") for name in counts)
    assert not any(name.endswith("without a word") for name in counts)
