"""The main path on the real trained pipeline that ships with the package."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

import slimdiff
from slimdiff.export import write_self_contained
from slimdiff.families import find
from slimdiff.fidelity import measure_fidelity
from slimdiff.pipelines import open_pipeline, preset
from slimdiff.prompts import read_prompts, split
from slimdiff.recipe import copy_pipeline

SAMPLING = slimdiff.Sampling(steps=5, guidance=4.5, batch_size=4)


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
    kinds = {site.kind for site in sites if site.locked is None}
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


DRAW = """
import sys, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)  # as here: sums in another order differ in the last bit
folder, out, dtype = sys.argv[1:4]

def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe("red apple, noto style emoji", num_inference_steps=5, output_type="pt",
                generator=torch.Generator().manual_seed(0)).images
"""
WAYS = {
    "slimdiff.load": "import slimdiff; pipe = slimdiff.load(folder, dtype=getattr(torch, dtype))",
    "from_pretrained": "import slimdiff; "
    "pipe = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))",
    # None: importing slimdiff fails as if it were not installed
    "self-contained": "sys.modules['slimdiff'] = None; pipe = DiffusionPipeline.from_pretrained("
    "folder, dtype=getattr(torch, dtype), trust_remote_code=True)",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_a_new_process_draws_the_same_bits(way, dtype, fidelity, tmp_path):
    slim = copy.deepcopy(fidelity["measured", 0.6][1]).to(dtype)
    if way == "self-contained":
        (tmp_path / "slim").mkdir()
        write_self_contained(slim, tmp_path / "slim")
    else:
        slimdiff.save(slim, tmp_path / "slim")
    slim.set_progress_bar_config(disable=True)
    here = slim(
        "red apple, noto style emoji",
        num_inference_steps=5,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    code = f"{DRAW}\n{WAYS[way]}\ntorch.save(draw(pipe), out)"
    args = [sys.executable, "-c", code, tmp_path / "slim", tmp_path / "there.pt", str(dtype)[6:]]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "there.pt", weights_only=True), here)
