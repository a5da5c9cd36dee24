"""Evaluation: known metrics, kept pictures, resumption, and what is missing said aloud."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from test_cli import run
from tiny import prompt_file, tiny_folder, tiny_pipeline

import slimdiff
from slimdiff import evaluation
from slimdiff.evaluation import evaluate
from slimdiff.judge import EMBEDDED, ImageTower, judge_place, load_judge
from slimdiff.metrics import METRICS, Drawn, compute
from slimdiff.recipe import copy_pipeline

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0, batch_size=2)
PROMPTS = [f"thing {i}" for i in range(5)]


@pytest.fixture(scope="module")
def pipes():
    dense = tiny_pipeline()
    stats = slimdiff.calibrate(dense, ["a", "b"], sampling=SAMPLING)
    slim = copy_pipeline(dense)
    slimdiff.compress_(
        slim, stats, slimdiff.allocate(stats, slimdiff.Budget(pool=0.5), multiple=2)
    )
    return dense, slim


def evaluated(pipes, folder, **options):
    return evaluate(
        *pipes,
        PROMPTS,
        folder,
        metrics=list(METRICS),
        judge=EMBEDDED,
        sampling=SAMPLING,
        **options,
    )


@pytest.fixture(scope="module")
def made(pipes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "e"
    return evaluated(pipes, folder), folder


def pictures(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def test_every_metric_is_a_value_or_a_reason(made):
    found, folder = made
    assert set(found["metrics"]) | set(found["not_computed"]) == set(METRICS)
    assert {"psnr", "ssim", "clip", "fid", "kid"} <= set(found["metrics"])
    assert found["not_computed"].keys() <= {"lpips"}
    assert all("not at hand" in reason for reason in found["not_computed"].values())
    assert json.loads((folder / "evaluation.json").read_text())["metrics"].keys() == (
        found["metrics"].keys()
    )
    low, high = found["metrics"]["psnr"]["interval"]
    assert low <= found["metrics"]["psnr"]["value"] <= high
    assert list(pictures(folder)) == [
        f"{side}/{i:06d}.png" for side in ("dense", "slim") for i in range(5)
    ]


def test_two_runs_agree_to_the_bit(made, pipes, tmp_path):
    again = evaluated(pipes, tmp_path / "e")
    assert again == made[0]
    assert pictures(tmp_path / "e") == pictures(made[1])


def test_a_stopped_evaluation_goes_on_and_draws_only_what_is_missing(
    made, pipes, tmp_path, monkeypatch
):
    folder, drawn = tmp_path / "e", []
    draw = evaluation.draw

    def stops(pipe, batch, sampling):
        drawn.append(len(batch))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(pipe, batch, sampling)

    monkeypatch.setattr(evaluation, "draw", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluated(pipes, folder)
    assert len(pictures(folder)) == 4
    (folder / "dense/000000.png").unlink()
    (folder / "dense/.slimdiff-000000.png.torn").write_bytes(b"of a killed process")
    assert evaluated(pipes, folder) == made[0]
    assert not list(folder.rglob(".slimdiff*"))
    assert drawn == [2, 2, 1, 2, 1, 2, 2, 1]
    assert pictures(folder) == pictures(made[1])


def test_figures_stay_until_there_are_new_ones(made, pipes, tmp_path):
    shutil.copytree(made[1], tmp_path / "e")
    before = (tmp_path / "e/evaluation.json").read_bytes()
    with pytest.raises(slimdiff.SlimdiffError, match="Judge 'nowhere' cannot be loaded"):
        evaluate(
            *pipes, PROMPTS, tmp_path / "e", metrics=["clip"], judge="nowhere", sampling=SAMPLING
        )
    assert (tmp_path / "e/evaluation.json").read_bytes() == before


def test_other_settings_and_damaged_pictures_are_refused(made, pipes, tmp_path):
    import shutil

    folder = shutil.copytree(made[1], tmp_path / "e")
    other = slimdiff.Sampling(steps=1, batch_size=2)
    with pytest.raises(slimdiff.SlimdiffError, match="holds an evaluation with other sampling"):
        evaluate(*pipes, PROMPTS, folder, metrics=["psnr"], sampling=other)
    (folder / "slim/000002.png").write_bytes(b"no picture")
    with pytest.raises(slimdiff.SlimdiffError, match="000002.png' is missing or not a PNG"):
        evaluated(pipes, folder)


def test_without_a_judge_its_metrics_are_listed_as_not_computed():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    found, missing = compute(["psnr", "clip", "fid", "kid"], Drawn(["a"] * 4, images, images))
    assert found["psnr"]["value"] == 100.0
    assert missing == dict.fromkeys(["clip", "fid", "kid"], "no judge was named; pass --judge")
    _, missing = compute(["fid", "kid"], Drawn(["a"], images[:1], images[:1], EMBEDDED))
    assert missing == {
        "fid": "1 pictures are too few; it takes 2",
        "kid": "1 pictures are too few; it takes 4",
    }


def test_equal_pictures_are_at_no_distance_and_the_clip_score_is_the_cosine():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    prompts = ["red apple, noto style emoji", "grinning face, fluent style emoji"] * 3
    found, missing = compute(["fid", "clip"], Drawn(prompts, images, images, EMBEDDED))
    assert not missing
    assert abs(found["fid"]["value"]) < 1e-4
    assert found["clip"]["change"]["value"] == 0
    model, processor = load_judge(judge_place(EMBEDDED))
    embedded = ImageTower(model, processor)(images)
    texts = processor.tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        words = model.get_text_features(texts.input_ids, texts.attention_mask)
    words = words / words.norm(dim=-1, keepdim=True)
    expected = (100 * (embedded * words).sum(-1)).clamp_min(0).mean()
    assert found["clip"]["value"] == pytest.approx(float(expected), abs=1e-3)


def test_unknown_metrics_and_judges_are_refused(pipes, tmp_path):
    with pytest.raises(slimdiff.SlimdiffError, match="Unknown metric 'beauty'; expected some of"):
        evaluate(*pipes, PROMPTS, tmp_path / "e", metrics=["beauty"])
    with pytest.raises(slimdiff.SlimdiffError, match="Judge '.*' cannot be loaded"):
        load_judge(tmp_path)
    with pytest.raises(slimdiff.SlimdiffError, match="No prompts to evaluate on"):
        evaluate(*pipes, [], tmp_path / "e", metrics=["psnr"])
    assert not (tmp_path / "e").exists()


def test_the_command(pipes, tmp_path):
    tiny_folder(tmp_path / "model")
    slimdiff.save(pipes[1], tmp_path / "slim")
    prompt_file(tmp_path / "prompts.txt", 4)
    command = [
        *("evaluate", "model", "slim", "--prompts", "prompts.txt", "-o", "e"),
        *("--steps", "1", "--batch-size", "4", "--device", "cpu"),
    ]
    done = run(*command, "--metrics", "psnr, lpips,clip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    flat = " ".join(done.stdout.split())
    assert "lpips: not computed" in flat
    assert "clip: not computed, no judge was named; pass --judge" in flat
    assert run(*command, "--metrics", "ssim", cwd=tmp_path).returncode == 0
    refused = run(*command, "--metrics", "nice", cwd=tmp_path)
    assert refused.returncode == 2
    assert "Unknown metric 'nice'" in refused.stderr
    refused = run(*command, "--seed", "9", cwd=tmp_path)
    assert "holds an evaluation with other sampling" in " ".join(refused.stderr.split())
    assert (
        run(*command, "--seed", "9", "--metrics", "ssim", "--force", cwd=tmp_path).returncode == 0
    )
