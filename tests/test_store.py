"""Saving and loading slim pipelines."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from tiny import tiny_pipeline

import slimdiff
from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import draw

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
PROMPTS = [(0, "thing"), (1, "other")]


@pytest.fixture(scope="module")
def slim():
    pipe = tiny_pipeline()
    stats = slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.5), multiple=2)
    pipe = copy_pipeline(pipe)
    slimdiff.compress_(pipe, stats, plan)
    return pipe


@pytest.fixture
def folder(slim, tmp_path):
    slimdiff.save(slim, tmp_path / "slim")
    return tmp_path / "slim"


def test_load_draws_the_same_pictures(slim, folder):
    expected, _ = draw(slim, PROMPTS, SAMPLING)
    found, _ = draw(slimdiff.load(folder), PROMPTS, SAMPLING)
    assert torch.equal(found, expected)


def test_plain_diffusers_loads_it_once_slimdiff_is_imported(slim, folder):
    expected, _ = draw(slim, PROMPTS, SAMPLING)
    found, _ = draw(DiffusionPipeline.from_pretrained(folder), PROMPTS, SAMPLING)
    assert torch.equal(found, expected)
    model = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    assert type(model) is UNet2DConditionModel
    assert not model.is_quantized


def test_a_loaded_pipeline_saves_and_loads_again(slim, folder, tmp_path):
    slimdiff.save(slimdiff.load(folder), tmp_path / "again")
    expected, _ = draw(slim, PROMPTS, SAMPLING)
    found, _ = draw(slimdiff.load(tmp_path / "again"), PROMPTS, SAMPLING)
    assert torch.equal(found, expected)


def test_the_folder_holds_safetensors_only_and_all_is_finite(folder):
    names = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert names <= {".safetensors", ".json", ".txt", ".md"}
    for path in folder.rglob("*.safetensors"):
        for tensor in load_file(path).values():
            assert bool(torch.isfinite(tensor.double()).all())


def test_a_dense_pipeline_is_not_saved_as_slim(tmp_path):
    with pytest.raises(slimdiff.SlimdiffError, match="not slim: its denoiser records no plan"):
        slimdiff.save(tiny_pipeline(), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_without_force(slim, folder):
    with pytest.raises(slimdiff.SlimdiffError, match="already exists"):
        slimdiff.save(slim, folder)
    slimdiff.save(slim, folder, force=True)
    slimdiff.load(folder)


def test_a_failing_save_leaves_what_was_there(slim, folder, monkeypatch):
    before = {p.name for p in folder.parent.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(slim), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        slimdiff.save(slim, folder, force=True)
    assert {p.name for p in folder.parent.iterdir()} == before
    slimdiff.load(folder)


def test_truncated_weights_are_named(folder):
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(slimdiff.SlimdiffError, match=r"diffusion_pytorch_model.*truncated"):
        slimdiff.load(folder)


def test_a_missing_tensor_is_named(folder):
    from safetensors.torch import save_file

    weights = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(slimdiff.SlimdiffError, match=f"lack '{name}'"):
        slimdiff.load(folder)


def test_a_plan_edited_in_place_is_refused(folder):
    plan = slimdiff.Plan.load(folder / "slimdiff_plan.json")
    site = next(iter(plan.widths))
    text = (folder / "slimdiff_plan.json").read_text()
    text = text.replace(f'"{site}": {plan.widths[site]}', f'"{site}": {plan.full[site]}', 1)
    (folder / "slimdiff_plan.json").write_text(text)
    with pytest.raises(slimdiff.SlimdiffError, match="disagree on the widths"):
        slimdiff.load(folder)
