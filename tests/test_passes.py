"""Passes: each holds few sums at a time, and together they are the calibration in one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run
from tiny import prompt_file, tiny_folder, tiny_pipeline

import slimdiff
from slimdiff import SlimdiffError, Statistics, families, gathering
from slimdiff.families import unet
from slimdiff.passes import site_groups
from slimdiff.recording import moment_mib
from slimdiff.sites import free_sites
from slimdiff.team import Team

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
PROMPTS = ["a", "b", "c"]
_MODEL = unet._tiny()[0]
SITES = families.find(_MODEL).sites(_MODEL)
LARGEST = max(moment_mib([site]) for site in free_sites(SITES))


@given(st.floats(LARGEST, 1.1 * moment_mib(SITES)))
def test_groups_hold_every_site_once_in_order_and_as_many_as_fit(most):
    groups = site_groups(SITES, most)
    assert [site for group in groups for site in group] == free_sites(SITES)
    assert all(moment_mib(group) <= most * (1 + 1e-9) for group in groups)
    for group, after in zip(groups, groups[1:], strict=False):
        assert moment_mib([*group, after[0]]) > most * (1 - 1e-9)


def test_without_a_limit_all_sites_go_together():
    assert site_groups(SITES, None) == [tuple(free_sites(SITES))]


def test_a_site_that_exceeds_the_limit_alone_is_named():
    with pytest.raises(SlimdiffError, match=r"sums of site '.*' take .* MiB; --max-moment-mib"):
        site_groups(SITES, 0.9 * LARGEST)


@pytest.fixture(scope="module")
def plain():
    return slimdiff.calibrate(tiny_pipeline(), PROMPTS, sampling=SAMPLING)


def same(found: Statistics, expected: Statistics) -> bool:
    return found.header.gains == expected.header.gains and all(
        torch.equal(found.sums[site][name], total)
        for site, sums in expected.sums.items()
        for name, total in sums.items()
    )


def test_passes_give_the_sums_of_one_pass_and_leave_nothing(plain, tmp_path, monkeypatch):
    held = []
    recording = gathering.recording

    def watched(model, sites, sums, **options):
        held.append(sum(t.nbytes for s in sums.values() for t in s.values()) / 2**20)
        return recording(model, sites, sums, **options)

    monkeypatch.setattr(gathering, "recording", watched)
    most = LARGEST
    (tmp_path / ".slimdiff-pass-of-another-limit").mkdir()
    found = slimdiff.calibrate(
        tiny_pipeline(), PROMPTS, sampling=SAMPLING, folder=tmp_path, max_moment_mib=most
    )
    assert len(held) == len(site_groups(SITES, most)) > 2
    assert max(held) <= most
    assert same(found, plain)
    assert found.complete
    assert found.header.prompts == plain.header.prompts
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"statistics.json", *Statistics.load(tmp_path).header.files}


def test_a_stopped_pass_is_taken_up_and_those_before_are_kept(plain, tmp_path, monkeypatch):
    drawn, sample = [], gathering.sample_latents

    def stops(pipe, batch, sampling):
        if len(drawn) == 4:
            drawn.append(None)
            raise KeyboardInterrupt
        drawn.append(len(batch))
        return sample(pipe, batch, sampling)

    monkeypatch.setattr(gathering, "sample_latents", stops)
    options = {
        "sampling": SAMPLING,
        "folder": tmp_path,
        "save_every": 0.0,
        "max_moment_mib": LARGEST,
    }
    passes = len(site_groups(SITES, LARGEST))
    with pytest.raises(KeyboardInterrupt):
        slimdiff.calibrate(tiny_pipeline(), PROMPTS, **options)
    assert same(slimdiff.calibrate(tiny_pipeline(), PROMPTS, **options), plain)
    assert drawn == [2, 1, 2, 1, None] + [2, 1] * (passes - 2)


def test_passes_need_a_folder_and_a_process_of_their_own(tmp_path, monkeypatch):
    most = LARGEST
    with pytest.raises(SlimdiffError, match="passes need a folder to keep their sums in"):
        slimdiff.calibrate(tiny_pipeline(), PROMPTS, sampling=SAMPLING, max_moment_mib=most)
    monkeypatch.setattr(Team, "current", classmethod(lambda cls: Team(0, 2)))
    with pytest.raises(SlimdiffError, match=r"one process only.*--part K/N"):
        slimdiff.calibrate(
            tiny_pipeline(), PROMPTS, sampling=SAMPLING, folder=tmp_path, max_moment_mib=most
        )


def test_the_command_says_how_many_passes_it_takes_and_slims_in_them(tmp_path):
    tiny_folder(tmp_path / "model")
    prompt_file(tmp_path / "prompts.txt")
    most = LARGEST
    options = ["--prompts", "prompts.txt", "--num-prompts", "2", "--steps", "2"]
    options += ["--guidance", "3", "--device", "cpu", "--max-moment-mib", str(most)]
    told = run("inspect", "model", *options, cwd=tmp_path)
    passes = len(site_groups(SITES, most))
    assert f"in {passes} passes" in told.stdout, told.stderr
    done = run("slim", "model", *options, "--multiple", "2", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/report/report.html").is_file()
