"""The whole job from the command line on a tiny pipeline of every family."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from test_cli import refused, run
from tiny_models import PIPELINES, SIZES, build

import slimdiff
from slimdiff.denoiser import denoiser
from slimdiff.sampling import Sampling, draw

SMALL = ["--steps", "2", "--batch-size", "2", "--guidance", "3", "--device", "cpu"]
QK_LOCKED = {"sd3.5", "flux", "wan"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with prompts, where pipelines are saved as they are asked for."""
    root = tmp_path_factory.mktemp("models")
    (root / "prompts.txt").write_text("thing 1\nthing 2\n")
    (root / "others.txt").write_text("thing 3\nobject 4\n")
    return root


def saved(place, name):
    folder = place / name
    if not folder.exists():
        build(name).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", PIPELINES)
def test_slim_does_the_whole_job_on(name, place):
    saved(place, name)
    made = run(
        "slim", name, "-o", f"{name}-slim", "--pool", "0.6", "--multiple", "2",
        "--prompts", "prompts.txt", "--eval-prompts", "others.txt", "--num-prompts", "2",
        *SMALL, *SIZES.get(name, []), cwd=place,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    report = json.loads((place / f"{name}-slim/report/report.json").read_text())
    assert report["pool"]["kept"] <= 0.6
    assert report["params"]["slim"] < report["params"]["dense"]
    assert 0 < report["macs"]["slim"] < report["macs"]["dense"]
    assert 0 < report["fidelity"]["noise_rel_mse"] < 1
    assert 0 < report["fidelity"]["latent_rel_mse"]
    assert (place / f"{name}-slim/report/before_after.png").stat().st_size > 1000
    widths = json.loads((place / f"{name}-slim/slimdiff_plan.json").read_text())["widths"]
    kinds = {site.rpartition(".")[2] for site in widths}
    assert kinds == ({"vo", "ffn"} if name in QK_LOCKED else {"qk", "vo", "ffn"})

    slim = slimdiff.load(place / f"{name}-slim")
    assert denoiser(slim).num_parameters() == report["params"]["slim"]
    sampling = Sampling(steps=2, guidance=3.0, **sizes(name))
    images, _ = draw(slim, [(0, "thing 1")], sampling)
    assert images.shape[:2] == (1, 3)
    assert bool(torch.isfinite(images).all())


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_a_folder_with_its_own_class_loads_and_draws_the_same(name, place):
    saved(place, name)
    pipe = slimdiff.load(slim_folder(place, name))
    made = run(
        "export", f"{name}-cut", "--self-contained", "-o", f"{name}-alone",
        cwd=place,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    alone = DiffusionPipeline.from_pretrained(place / f"{name}-alone", trust_remote_code=True)
    sampling = Sampling(steps=2, guidance=3.0, **sizes(name))
    expected, _ = draw(pipe, [(0, "thing 1")], sampling)
    found, _ = draw(alone, [(0, "thing 1")], sampling)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def slim_folder(place, name):
    """A slim pipeline with narrower values than queries, refitted in one round."""
    made = run(
        "slim", name, "-o", f"{name}-cut", "--pool", "0.7", "--multiple", "2", "--rounds", "1",
        "--method", "paper", "--only", "*.vo", "--only", "*.ffn", "--policy", "ara",
        "--prompts", "prompts.txt", "--eval-prompts", "others.txt", "--num-prompts", "2",
        *SMALL, *SIZES.get(name, []), cwd=place,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return place / f"{name}-cut"


def sizes(name):
    """The pipeline's size options as keyword arguments of ``Sampling``."""
    words = [word.strip("-").replace("-", "_") for word in SIZES.get(name, [])]
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def test_without_prompts_a_class_pipeline_calibrates_on_its_classes(place):
    saved(place, "dit")
    made = run("calibrate", "dit", "-o", "classes", "--num-prompts", "3", *SMALL, cwd=place)
    assert made.returncode == 0, made.stderr
    header = json.loads((place / "classes/statistics.json").read_text())
    texts = [text for _, text in header["prompts"]]
    assert len(set(texts)) == 3
    assert all(0 <= int(text) < 1000 for text in texts)


def test_what_names_no_class_is_refused(place):
    saved(place, "dit")
    for text in ("a cat", "1000"):
        (place / "text.txt").write_text(f"{text}\n3\n")
        files = ["--prompts", "text.txt", "--eval-prompts", "others.txt"]
        refused(
            run("calibrate", "dit", "-o", "no", *files, *SMALL, cwd=place),
            f"'{text}' is no class of this DiTPipeline; expected a number from 0 to 999",
            "Give --prompts such a file",
        )


def test_the_slim_pipeline_still_knows_its_class_names(place):
    dense = build("dit")
    slim = slimdiff.recipe.copy_pipeline(dense)
    slim.save_pretrained(place / "again")
    again = type(dense).from_pretrained(place / "again")
    assert again.labels == dense.labels != {}


def test_inspect_says_what_is_locked_and_how_far_a_model_can_be_cut(place):
    saved(place, "flux")
    shown = run("inspect", "flux", *SMALL, *SIZES["flux"], cwd=place)
    assert shown.returncode == 0, shown.stderr
    assert "normalised after their projection" in " ".join(shown.stdout.split())
    assert "least reachable" in shown.stdout


@pytest.mark.parametrize(("name", "steps"), [("flux", "log"), ("wan", "sampler")])
def test_timestep_weights_follow_a_flow_matching_scheduler_or_are_refused(name, steps, place):
    saved(place, name)
    result = run(
        "calibrate", name, "-o", f"{name}-{steps}", "--timestep-weights", steps,
        "--prompts", "prompts.txt", "--eval-prompts", "others.txt",
        *SMALL, *SIZES[name], cwd=place,
    )  # fmt: skip
    if name == "wan":
        assert result.returncode == 0, result.stderr
    else:
        refused(result, "need the steps of FlowMatchEuler", "Use --timestep-weights uniform")
