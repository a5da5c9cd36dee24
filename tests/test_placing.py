"""Placing: offloaded and spread pipelines are slimmed like any other."""

from __future__ import annotations

import pytest
import torch
from test_cli import run
from tiny import prompt_file, tiny_folder, tiny_pipeline

import slimdiff
from slimdiff import SlimdiffError
from slimdiff.pipelines import open_pipeline
from slimdiff.placing import offload_device, place
from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import sample_latents

CPU = torch.device("cpu")
SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
PROMPTS = [(0, "a"), (1, "b")]


def test_an_offloaded_pipeline_draws_and_is_copied_without_its_neighbours(monkeypatch):
    plain = sample_latents(tiny_pipeline(), PROMPTS, SAMPLING)
    pipe = place(tiny_pipeline(), CPU, offload=True)
    assert offload_device(pipe) == torch.device("cpu:0")
    assert offload_device(tiny_pipeline()) is None
    copied = copy_pipeline(pipe)
    assert copied.unet is not pipe.unet
    assert copied.text_encoder is pipe.text_encoder
    hooks = [each.unet._hf_hook for each in (pipe, copied)]
    assert hooks[0] is not hooks[1]
    for each in (copied, pipe, copied):
        assert offload_device(each) == torch.device("cpu:0")
        assert torch.equal(sample_latents(each, PROMPTS, SAMPLING), plain)


def test_a_spread_pipeline_stays_where_it_is(tmp_path):
    pipe = open_pipeline(str(tiny_folder(tmp_path)), device=CPU, device_map="balanced")
    assert torch.isfinite(sample_latents(pipe, PROMPTS, SAMPLING)).all()
    pipe.hf_device_map = {"unet": 0, "vae": 1}  # as on a machine with several GPUs
    assert place(pipe, torch.device("meta")) is pipe
    assert pipe.unet.device.type == "cpu"


def test_time_is_not_measured_while_parts_are_offloaded():
    pipe = place(tiny_pipeline(), CPU, offload=True)
    with pytest.raises(SlimdiffError, match=r"cannot be measured while parts are offloaded"):
        slimdiff.slim(pipe, list("abcdefghijkl"), slimdiff.Budget(latency=0.9))


@pytest.mark.parametrize("placing", [["--offload"], ["--device-map", "balanced"]])
def test_the_whole_job_under(placing, tmp_path):
    tiny_folder(tmp_path / "model")
    prompt_file(tmp_path / "prompts.txt")
    drawing = ["--steps", "2", "--guidance", "3", "--device", "cpu"]
    options = ["--prompts", "prompts.txt", "--num-prompts", "2", "--multiple", "2", *drawing]
    for name, extra in (("plain", []), ("placed", placing)):
        done = run("slim", "model", "--pool", "0.6", *options, *extra, "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    plans = [slimdiff.Plan.load(tmp_path / n / "slimdiff_plan.json") for n in ("plain", "placed")]
    assert plans[0].widths == plans[1].widths
    done = run("compare", "model", "placed", *drawing, *placing, "-o", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_excludes_each_other_or_needs_a_folder_is_refused(tmp_path):
    tiny_folder(tmp_path / "model")
    both = ["--offload", "--device-map", "balanced", "--device", "cpu"]
    done = run("inspect", "model", *both, cwd=tmp_path)
    assert done.returncode == 2
    assert "--offload and --device-map exclude each other" in done.stderr
    one = next((tmp_path / "model/unet").glob("*.safetensors"))
    done = run("inspect", str(one), "--device-map", "balanced", cwd=tmp_path)
    assert done.returncode == 2
    assert "--device-map needs a pipeline folder or a hub id" in done.stderr
