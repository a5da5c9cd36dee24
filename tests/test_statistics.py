"""Statistics: a folder that is whole or refused, and sums that add."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers import statistics

from slimdiff import SlimdiffError, Statistics, merge
from slimdiff.recording import TokenSampling
from slimdiff.sampling import Sampling


def same_tensors(a, b) -> bool:
    """Whether two nested mappings hold the same names and bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a.keys() == b.keys() and all(same_tensors(a[k], b[k]) for k in a)


def flat(bases) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {**b.tensors, "errors": b.errors} for name, b in bases.items()}


@pytest.fixture
def saved(tmp_path):
    stats = statistics()
    stats.save(tmp_path / "stats")
    return tmp_path / "stats"


def edit(folder, change) -> None:
    """Change the JSON of a saved folder in place."""
    path = folder / "statistics.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("finished", [True, False])
def test_what_is_saved_is_what_is_loaded_to_the_bit(tmp_path, finished):
    stats = statistics()
    if not finished:
        stats = replace(stats, bases={}, header=replace(stats.header, gains={}, done=2))
    stats.save(tmp_path)
    found = Statistics.load(tmp_path)
    assert replace(found.header, files={}) == stats.header
    assert same_tensors(found.sums, stats.sums)
    assert same_tensors(flat(found.bases), flat(stats.bases))
    assert found.complete == stats.complete == finished


def test_a_folder_is_json_and_safetensors_only_and_keeps_no_old_state(saved):
    stats = statistics()
    replace(stats, header=replace(stats.header, done=3), bases={}).save(saved)
    names = {path.name for path in saved.iterdir()}
    assert names == {"statistics.json", *Statistics.load(saved).header.files}
    assert all(name.endswith((".json", ".safetensors")) for name in names)


def test_exists_tells_statistics_from_other_folders(saved, tmp_path):
    assert Statistics.exists(saved)
    assert not Statistics.exists(tmp_path)


@pytest.mark.parametrize("prefix", ["sums", "bases"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_damaged_tensor_files_are_refused_by_name(saved, prefix, damage):
    path = min(saved.glob(f"{prefix}-*.safetensors"))
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SlimdiffError, match=f"{path.name}.*checksum.*slimdiff calibrate"):
        Statistics.load(saved)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(SlimdiffError, match="No statistics folder at .*absent"):
        Statistics.load(tmp_path / "absent")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\0"])
def test_what_is_no_json_object_is_refused(saved, text):
    (saved / "statistics.json").write_text(text)
    with pytest.raises(SlimdiffError, match="is not a statistics folder: expected"):
        Statistics.load(saved)


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format_is_refused(saved, number):
    edit(saved, lambda value: value.update(format=number))
    with pytest.raises(SlimdiffError, match=f"has format {number}; expected 1"):
        Statistics.load(saved)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("surprise", lambda v: v.update(surprise=1)),
        ("source.surprise", lambda v: v["source"].update(surprise=1)),
        ("sites.0.kind", lambda v: v["sites"][0].update(kind="mlp")),
        ("sampling.steps", lambda v: v["sampling"].update(steps="many")),
        ("done", lambda v: v.update(done=None)),
        ("prompts", lambda v: v.pop("prompts")),
    ],
)
def test_damaged_json_is_refused_with_the_place(saved, where, change):
    edit(saved, change)
    with pytest.raises(SlimdiffError, match=f"is damaged at '{where}': .*slimdiff calibrate"):
        Statistics.load(saved)


def test_statistics_print_what_they_are():
    text = str(statistics())
    assert "tiny (UNet2DConditionModel" in text
    assert "4 of 4 prompts x 3 steps, 20 sites, complete" in text
    assert "took 2 s, peak memory 100 MiB" in text
    phases = {"sampling": 1.0, "gains": 0.5}
    assert "(sampling 1 s, gains 0 s)" in str(statistics(phases=phases))


def test_a_header_without_gains_or_prompts_to_come_is_incomplete():
    stats = statistics()
    assert stats.complete
    assert not replace(stats, header=replace(stats.header, gains={})).complete
    assert not replace(stats, header=replace(stats.header, done=3)).complete
    assert not replace(stats, bases={}).complete


def test_locked_sites_need_neither_basis_nor_gain():
    stats = statistics()
    name, *others = (site.name for site in stats.header.sites)
    sites = tuple(
        replace(site, locked="a reason") if site.name == name else site
        for site in stats.header.sites
    )
    gains = {other: stats.header.gains[other] for other in others}
    bases = {other: stats.bases[other] for other in others}
    assert replace(
        stats, header=replace(stats.header, sites=sites, gains=gains), bases=bases
    ).complete


def test_merged_sums_add_and_leave_the_parts_alone():
    parts = [statistics(first=4), statistics(first=0), statistics(first=8, count=2)]
    before = {site: {k: v.clone() for k, v in s.items()} for site, s in parts[0].sums.items()}
    merged = merge(parts)
    for site, sums in merged.sums.items():
        for name, total in sums.items():
            expected = sum(part.sums[site][name] for part in parts)
            torch.testing.assert_close(total, expected, rtol=1e-15, atol=1e-15)
    assert same_tensors(parts[0].sums, before)
    header = merged.header
    assert header.prompts == tuple((i, f"prompt {i}") for i in range(10))
    assert (header.done, header.seconds, header.peak_mib) == (10, 4.5, 100.0)


def test_merged_statistics_are_incomplete_until_finished_again():
    merged = merge([statistics(first=0), statistics(first=4)])
    assert not merged.complete
    assert not merged.header.gains
    assert not merged.bases


def test_of_an_interrupted_part_only_the_summed_prompts_count():
    part = statistics(first=0)
    part = replace(part, header=replace(part.header, done=1))
    merged = merge([part, statistics(first=1, count=2)])
    assert [index for index, _ in merged.header.prompts] == [0, 1, 2]


def test_overlapping_prompts_are_refused():
    with pytest.raises(SlimdiffError, match="some prompt indices occur twice"):
        merge([statistics(first=0), statistics(first=3)])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sampling", {"sampling": Sampling(steps=4)}),
        ("tokens", {"tokens": TokenSampling(16, 1)}),
        ("model", {"source": replace(statistics().header.source, hash="other")}),
        ("sites", {"sites": statistics().header.sites[1:]}),
        ("timestep_weights", {"timestep_weights": "log"}),
    ],
)
def test_statistics_of_different_settings_do_not_merge(name, change):
    with pytest.raises(SlimdiffError, match=f"cannot be merged: their {name} differ"):
        merge([statistics(first=0), statistics(first=4, **change)])


def test_parts_that_weigh_steps_by_what_they_saw_do_not_merge():
    parts = [statistics(), statistics()]
    parts = [replace(p, header=replace(p.header, timestep_weights="sis")) for p in parts]
    with pytest.raises(SlimdiffError, match="weights 'sis' cannot be merged: each part weighs"):
        merge(parts)
    assert merge(parts[:1]).header.timestep_weights == "sis"
