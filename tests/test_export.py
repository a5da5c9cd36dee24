"""Slim pipelines that load where slimdiff is not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from tiny import cut_by_hand, tiny_pipeline

import slimdiff
from slimdiff.denoiser import denoiser
from slimdiff.export import dense_, write_self_contained
from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import draw, sample_latents

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
PROMPTS = [(0, "thing"), (1, "other")]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def stats(pipe):
    return slimdiff.calibrate(pipe, ["a", "b"], sampling=SAMPLING)


@pytest.mark.parametrize(
    "changed", [{}, {".qk": 3}, {".vo": 5, ".qk": 16}], ids=["equal", "narrow qk", "narrow vo"]
)
def test_dense_export_answers_as_the_slim_model_in_stock_shapes(pipe, stats, changed, tmp_path):
    slim = cut_by_hand(pipe, stats, **changed)
    expected = sample_latents(slim, PROMPTS, SAMPLING)
    stock = copy_pipeline(slim)
    dense_(stock)
    torch.testing.assert_close(
        sample_latents(stock, PROMPTS, SAMPLING), expected, rtol=1e-4, atol=1e-5
    )
    stock.save_pretrained(tmp_path / "dense")
    text = (tmp_path / "dense/unet/config.json").read_text()
    assert "slimdiff" not in text
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "dense")
    shapes = {k: v.shape for k, v in denoiser(pipe).state_dict().items()}
    assert {k: v.shape for k, v in denoiser(loaded).state_dict().items()} == shapes
    assert torch.equal(
        sample_latents(loaded, PROMPTS, SAMPLING), sample_latents(stock, PROMPTS, SAMPLING)
    )


WITHOUT = """
import sys
sys.modules["slimdiff"] = None  # import slimdiff now fails as if it were not installed
import torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)  # as in the tests: sums in another order differ in the last bit
folder, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
def draw(pipe):
    generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
    return pipe(["thing", "other"], num_inference_steps=2, guidance_scale=3.0,
                generator=generators, output_type="pt").images
torch.save(draw(pipe), out)
pipe.save_pretrained(folder + "-again")
again = DiffusionPipeline.from_pretrained(folder + "-again", trust_remote_code=True)
again.set_progress_bar_config(disable=True)
assert torch.equal(draw(again), torch.load(out))
half = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
assert half.unet.dtype == torch.bfloat16
"""


@pytest.mark.parametrize("changed", [{}, {".qk": 3}], ids=["equal", "unequal"])
def test_self_contained_folder_loads_without_slimdiff(pipe, stats, changed, tmp_path, monkeypatch):
    slim = cut_by_hand(pipe, stats, **changed)
    folder = tmp_path / "portable"
    folder.mkdir()
    write_self_contained(slim, folder)
    expected, _ = draw(slim, PROMPTS, SAMPLING)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(folder), str(tmp_path / "pictures.pt")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.equal(torch.load(tmp_path / "pictures.pt"), expected)


def test_without_trust_a_self_contained_folder_runs_no_code(pipe, stats, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "portable"
    folder.mkdir()
    write_self_contained(cut_by_hand(pipe, stats), folder)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)


def test_only_slim_pipelines_are_exported(pipe, tmp_path):
    for export in (dense_, lambda p: write_self_contained(p, tmp_path)):
        with pytest.raises(slimdiff.SlimdiffError, match="not slim; expected a slim pipeline"):
            export(pipe)
    assert not list(tmp_path.iterdir())


def test_the_class_stays_the_stock_one_after_dense_export(pipe, stats):
    slim = cut_by_hand(pipe, stats)
    dense_(slim)
    assert type(denoiser(slim)) is UNet2DConditionModel
    assert slimdiff.compression.plan_of(slim) is None
