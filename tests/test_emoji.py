"""The main path on the real trained pipeline that ships with the package."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import loads
import pytest
import torch
from safetensors.torch import load_file

import slimdiff
from slimdiff.export import write_self_contained
from slimdiff.families import find
from slimdiff.fidelity import measure_fidelity
from slimdiff.pipelines import open_pipeline, preset
from slimdiff.prompts import read_prompts, split
from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import draw
from slimdiff.sites import free_sites

KRAFT = Path(__file__).parent / "kraft-lora"
SAMPLING = slimdiff.Sampling(steps=5, guidance=2.0, batch_size=4)


@pytest.fixture(scope="module")
def pool():
    found = preset("emoji")
    assert found is not None
    return read_prompts(found.prompts)


@pytest.fixture(scope="module")
def pipe():
    return open_pipeline("emoji")


@pytest.fixture(scope="module")
def stats(pipe, pool):
    calibration, _ = split(pool, 8)
    return slimdiff.calibrate(pipe, calibration, sampling=SAMPLING, name="emoji")


@pytest.fixture(scope="module")
def fidelity(pipe, pool, stats):
    """Fidelity on 4 held-out prompts, by policy and pool."""
    _, held_out = split(pool, 8)

    def measure(policy, share):
        plan = slimdiff.allocate(stats, slimdiff.Budget(pool=share), policy=policy)
        slim = copy_pipeline(pipe)
        slimdiff.compress_(slim, stats, plan)
        found, _ = measure_fidelity(pipe, slim, held_out[:4], SAMPLING)
        return plan, slim, found

    return {key: measure(*key) for key in KEYS}


KEYS = [("measured", 0.8), ("measured", 0.6), ("measured", 0.4), ("uniform", 0.6)]


def test_the_pipeline_is_stable_diffusion_style_and_small(pipe):
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    sites = find(pipe.unet).sites(pipe.unet)
    kinds = {site.kind for site in free_sites(sites)}
    assert kinds == {"qk", "vo", "ffn"}


def test_the_pool_has_prompts_to_spare(pool):
    assert len(set(pool)) == len(pool) >= 600


def test_measured_ranks_halve_the_error_of_uniform_ones_at_least(fidelity):
    _, _, ours = fidelity["measured", 0.6]
    _, _, uniform = fidelity["uniform", 0.6]
    assert ours.noise_rel_mse <= 0.5 * uniform.noise_rel_mse


def test_what_is_asked_is_what_is_got(fidelity):
    plan, slim, _ = fidelity["measured", 0.6]
    assert 0.57 <= plan.pool_kept <= 0.60
    assert plan.parameters - plan.removed == slim.unet.num_parameters()


def test_error_grows_as_the_pool_shrinks(fidelity):
    errors = [fidelity["measured", share][2].noise_rel_mse for share in (0.8, 0.6, 0.4)]
    assert errors == sorted(errors)
    assert errors[2] < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["slimdiff.load", "from_pretrained", "self-contained"])
def test_a_new_process_draws_the_same_bits(way, dtype, fidelity, tmp_path):
    slim = copy.deepcopy(fidelity["measured", 0.6][1]).to(dtype)
    if way == "self-contained":
        (tmp_path / "slim").mkdir()
        write_self_contained(slim, tmp_path / "slim")
    else:
        slimdiff.save(slim, tmp_path / "slim")
    out = tmp_path / "there.safetensors"
    args = [sys.executable, loads.__file__, way, tmp_path / "slim", out, str(dtype)[6:]]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(out)["picture"], loads.draw(slim))


def test_a_style_learned_on_the_dense_pipeline_shows_on_the_slim_one(pipe, fidelity):
    """The adapter in tests/kraft-lora puts everything on brown paper (training/emoji/lora.py)."""
    asked = [(i, f"{thing}, kraft style emoji") for i, thing in enumerate(["taxi", "rocket"])]
    drawn = []
    for model in (pipe, fidelity["measured", 0.6][1]):
        plain, _ = draw(model, asked, SAMPLING)
        model.load_lora_weights(KRAFT)
        drawn.append((plain, draw(model, asked, SAMPLING)[0]))
        model.unload_lora_weights()
    (white, dense), (_, slim) = drawn
    for pictures, least, most in ((white, 0.9, 1.0), (dense, 0.0, 0.85), (slim, 0.0, 0.85)):
        assert least < pictures[:, 2, :4, :4].mean() <= most  # blue of a corner
    assert (slim - dense).square().mean() < 0.2 * (white - dense).square().mean()
