"""Sums on disk: read tensor by tensor, equal to those in memory, kept where they are."""

from __future__ import annotations

import pytest
import torch
from helpers import statistics
from tiny import tiny_pipeline

import slimdiff
from slimdiff import SlimdiffError, Statistics, calibration, environment
from slimdiff import statistics as statistics_module
from slimdiff.environment import sums_device
from slimdiff.sums import SumsOnDisk, flatten, moved, unflatten

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)


def test_a_site_has_a_file_of_its_own_and_tensors_are_read_one_at_a_time(tmp_path, monkeypatch):
    stats = statistics()
    stats.save(tmp_path)
    files = [name for name in Statistics.load(tmp_path).header.files if name.startswith("sums")]
    assert len(files) == len(stats.sums)
    found = Statistics.load(tmp_path)
    assert isinstance(found.sums, SumsOnDisk)
    site = next(iter(stats.sums))
    assert set(found.sums) == set(stats.sums)
    assert set(found.sums[site]) == set(stats.sums[site])
    for name, tensor in stats.sums[site].items():
        assert torch.equal(found.sums[site][name], tensor)
    with pytest.raises(KeyError):
        found.sums[site]["nothing"]


def test_nesting_is_flattened_and_back():
    nested = {
        "a.b": {"x": torch.ones(1), "augmented.1": torch.zeros(2)},
        "c": {"x": torch.ones(3)},
    }
    found = unflatten(flatten(nested))
    assert found.keys() == nested.keys()
    assert all(found[site].keys() == nested[site].keys() for site in nested)


def test_moved_sums_are_on_the_device():
    found = moved({"x": torch.ones(2)}, torch.device("meta"))
    assert found["x"].device.type == "meta"


def test_saving_where_the_sums_lie_writes_none_of_them_again(tmp_path, monkeypatch):
    statistics().save(tmp_path / "here")
    stats = Statistics.load(tmp_path / "here")
    written = []
    original = statistics_module.write_tensors
    monkeypatch.setattr(
        statistics_module,
        "write_tensors",
        lambda path, tensors: written.append(path.name) or original(path, tensors),
    )
    stats.save(tmp_path / "here")
    assert [name for name in written if name.startswith("sums")] == []
    assert Statistics.load(tmp_path / "here").complete
    stats.save(tmp_path / "there")
    assert len([name for name in written if name.startswith("sums")]) == len(stats.sums)
    assert Statistics.load(tmp_path / "there").complete


def test_with_a_folder_calibration_goes_on_with_the_sums_on_disk(tmp_path):
    pipe = tiny_pipeline()
    kept = slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING, folder=tmp_path)
    plain = slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)
    assert isinstance(kept.sums, SumsOnDisk)
    assert kept.header.gains == plain.header.gains
    for site, found in plain.sums.items():
        for name, tensor in found.items():
            assert torch.equal(kept.sums[site][name], tensor)
    assert set(kept.header.phases) == {"sampling", "decomposition", "gains"}
    assert sum(kept.header.phases.values()) == pytest.approx(kept.header.seconds, rel=0.05)


def test_sums_stay_off_a_gpu_that_they_would_fill(monkeypatch):
    monkeypatch.setattr(environment.torch.cuda, "mem_get_info", lambda device: (0, 8 * 2**30))
    gpu = torch.device("cuda", 0)
    assert sums_device(gpu, 2048) == gpu
    assert sums_device(gpu, 2049) == torch.device("cpu")
    assert sums_device(torch.device("mps"), 1) == torch.device("cpu")


def test_weights_that_are_not_in_memory_are_refused():
    pipe = tiny_pipeline()
    pipe.unet.to("meta")
    with pytest.raises(SlimdiffError, match=r"is not in memory.*use enable_model_cpu_offload\(\)"):
        slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)


@pytest.mark.parametrize("way", ["model offload", "group offload", "device map"])
def test_calibration_works_under(way, tmp_path):
    plain = slimdiff.calibrate(tiny_pipeline(), ["a", "b"], sampling=SAMPLING)
    pipe = tiny_pipeline()
    if way == "model offload":
        pipe.enable_model_cpu_offload(device="cpu")
    elif way == "group offload":
        pipe.unet.enable_group_offload(
            onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
        )
    else:
        pipe.save_pretrained(tmp_path)
        pipe = type(pipe).from_pretrained(tmp_path, device_map="balanced")
    found = slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)
    for site, sums in plain.sums.items():
        for name, tensor in sums.items():
            torch.testing.assert_close(found.sums[site][name], tensor)
    for name, gain in plain.header.gains.items():
        assert found.header.gains[name].error == pytest.approx(gain.error, rel=1e-4, abs=1e-12)
    assert calibration.check_statistics(pipe, found) is None
