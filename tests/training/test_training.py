"""The training recipe, run through on the twenty drawings beside this file."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torchmetrics.functional.multimodal import clip_score
from training.emoji import (
    data,
    judge,
    lora,
    lora_evaluate,
    models,
    prompts,
    restore,
    retrieval,
    trainer,
    unet,
)
from training.emoji.common import ARTISTS, Drawing, load_drawings, load_pictures, random_caption
from transformers import CLIPTokenizer

import slimdiff
from slimdiff.files import read_json
from slimdiff.recipe import cut

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which every step of the recipe has run with --smoke."""
    folder = tmp_path_factory.mktemp("emoji")
    done = subprocess.run(
        [sys.executable, "-m", "training.emoji", "--smoke", "--work", folder, "--threads", "1"],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def copied(work: Path, tmp_path: Path) -> Path:
    """A copy of the work folder, to train on in."""
    return Path(shutil.copytree(work, tmp_path / "work"))


def progress(path: Path) -> dict[str, float]:
    return torch.load(path, weights_only=True)["progress"]


def test_data_holds_every_drawing(work: Path) -> None:
    drawings = load_drawings(work)
    assert load_pictures(work).shape == (len(drawings), 3, 64, 64) == (20, 3, 64, 64)
    assert {drawing.artist for drawing in drawings} == set(ARTISTS)


def test_held_out_drawings_are_never_trained_on(work: Path) -> None:
    drawings = load_drawings(work)
    held_out = {(d.code, d.artist) for d in drawings if d.held_out}
    trained, latents = trainer.training_set(work)
    assert len(held_out) == 2
    assert not held_out & {(d.code, d.artist) for d in trained}
    assert {code for code, _ in held_out} <= {d.code for d in trained}
    every = load_file(work / "latents.safetensors")["latents"]
    kept = [i for i, drawing in enumerate(drawings) if not drawing.held_out]
    torch.testing.assert_close(latents, every[kept])


def test_about_one_drawing_in_twenty_is_held_out() -> None:
    drawings = [Drawing(artist, f"{i:x}", f"thing {i}") for i in range(2000) for artist in ARTISTS]
    alone = [Drawing("noto", f"lone-{i}", f"lone {i}") for i in range(200)]
    marked = data.choose_held_out(drawings + alone)
    assert 0.04 < sum(d.held_out for d in marked[:4000]) / 4000 < 0.06
    assert not any(d.held_out for d in marked[4000:])
    codes = [d.code for d in marked if d.held_out]
    assert len(codes) == len(set(codes))
    assert marked == data.choose_held_out(drawings + alone)


@pytest.mark.parametrize("hexcode", ["0023-FE0F-20E3", "23-20e3"])
def test_code_points_have_one_spelling(hexcode: str) -> None:
    assert data.code_of(hexcode) == "23-20e3"


def test_captions_name_the_drawing_or_nothing() -> None:
    drawing = Drawing("noto", "1f34e", "red apple", ["fruit", "red"])
    rng = random.Random(0)
    captions = [random_caption(drawing, rng) for _ in range(2000)]
    assert 0.08 < captions.count("") / 2000 < 0.12
    assert all(text.endswith("emoji") for text in captions if text)
    assert not any("fluent" in text for text in captions)


def test_tokenizer_round_trips(work: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    text = "red apple flag blue noto style emoji"
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == 32
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_latents_have_unit_spread(work: Path) -> None:
    _, latents = trainer.training_set(work)
    assert latents.shape == (18, 4, 16, 16)
    assert latents.std().item() == pytest.approx(1, abs=0.01)


def test_training_wrote_a_checkpoint(work: Path) -> None:
    state = torch.load(work / "unet.pt", weights_only=True)
    assert state["progress"]["step"] == trainer.SMOKE_STEPS
    assert state["progress"]["pictures"] == 4 * trainer.SMOKE_STEPS
    assert all(value.isfinite().all() for value in state["average"].values())
    assert Image.open(work / "samples" / "last.png").size == (8 * 64, 2 * 64)


def test_training_resumes(copied: Path) -> None:
    unet.main(["--smoke", "--work", str(copied)])
    assert progress(copied / "unet.pt")["step"] == 2 * trainer.SMOKE_STEPS


def test_cooldown_leaves_the_main_run_alone(copied: Path) -> None:
    unet.main(["--smoke", "--cooldown", "1", "--work", str(copied)])
    assert progress(copied / "unet-cooldown.pt")["step"] == 2 * trainer.SMOKE_STEPS
    assert progress(copied / "unet.pt")["step"] == trainer.SMOKE_STEPS


def test_training_starts_from_shipped_weights(copied: Path) -> None:
    (copied / "unet.pt").unlink()
    unet.main(["--smoke", "--init", str(copied / "emoji"), "--work", str(copied)])
    assert progress(copied / "unet.pt")["step"] == 2 * trainer.SMOKE_STEPS


def test_missing_steps_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run `python -m training.emoji.data` first"):
        load_drawings(tmp_path)


def test_sigterm_asks_to_stop_and_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with trainer.Stop() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert signal.getsignal(signal.SIGTERM) is before


def test_assembled_pipeline_draws(work: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(work / "emoji", dtype=torch.float32)
    drawn = models.draw(pipeline, ["red apple, noto style emoji"], steps=1, guidance=4)
    assert drawn.shape == (1, 3, 64, 64)
    stored = load_file(work / "emoji" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}


def test_an_assembled_pipeline_does_not_say_where_it_was_made(work: Path) -> None:
    configs = [*(work / "emoji").glob("*/config.json")]
    assert len(configs) >= 3
    assert not any(str(work) in path.read_text() for path in configs)


def test_what_training_needs_comes_back_from_the_assembled_pipeline(work, tmp_path) -> None:
    for name in ("drawings.json", "drawings.npz"):
        shutil.copy(work / name, tmp_path)
    restore.main([str(work / "emoji"), str(work / "emoji-clip"), "--work", str(tmp_path)])
    kept = load_file(work / "latents.safetensors")["latents"]
    found = load_file(tmp_path / "latents.safetensors")["latents"]
    torch.testing.assert_close(found, kept, atol=0.02, rtol=0)
    unet.main(["--smoke", "--init", str(work / "emoji"), "--work", str(tmp_path)])
    assert progress(tmp_path / "unet.pt")["step"] == 2 * trainer.SMOKE_STEPS


def test_an_adapter_trains_and_loads(work: Path, tmp_path: Path) -> None:
    args = [str(work / "emoji"), "--out", str(tmp_path / "lora"), "--work", str(work), "--smoke"]
    lora.main(args)
    stored = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    moved = [w for name, w in stored.items() if "lora_B" in name]
    assert any(weight.any() for weight in moved)
    pipeline = StableDiffusionPipeline.from_pretrained(work / "emoji", dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path / "lora")
    drawn = models.draw(pipeline, ["red apple, kraft style emoji"], steps=1, guidance=4)
    assert drawn.shape == (1, 3, 64, 64)


def test_the_adapter_is_judged_on_the_slim_pipeline(work: Path, tmp_path: Path) -> None:
    common = ["--work", str(work)]
    lora.main([str(work / "emoji"), "--out", str(tmp_path / "lora"), "--smoke", *common])
    dense = StableDiffusionPipeline.from_pretrained(work / "emoji", dtype=torch.float32)
    sampling = slimdiff.Sampling(steps=2)
    stats = slimdiff.calibrate(dense, ["red apple"] * 2, sampling=sampling)
    slim = cut(dense, stats, slimdiff.Budget(pool=0.7))
    slimdiff.save(slim, tmp_path / "slim")
    folders = [str(place) for place in (work / "emoji", tmp_path / "slim", tmp_path / "lora")]
    counts = ["--count", "3", "--steps", "1"]
    lora_evaluate.main([*folders, "--out", str(tmp_path / "found"), *counts, *common])
    found = read_json(tmp_path / "found" / "lora.json", "result")
    for row in lora_evaluate.ROWS:
        assert set(found[row]) == {"pictures", "R@1", "R@5", "CLIP score", "paper"}
    assert Image.open(tmp_path / "found" / "lora.png").width > 3 * 128


def test_white_takes_the_papers_colour_and_gives_it_back() -> None:
    pictures = torch.tensor([255, 0], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    light, dark = lora.on_paper(pictures)
    torch.testing.assert_close((light[:, 0, 0] + 1) / 2, torch.tensor(lora.PAPER))
    torch.testing.assert_close(dark, -torch.ones(3, 8, 8))
    drawn = ((torch.stack([light, dark]) + 1) * 127.5).round().to(torch.uint8)
    torch.testing.assert_close(lora.off_paper(drawn), pictures, atol=1, rtol=0)
    assert lora_evaluate.paper(pictures[:1]) == 0
    assert lora_evaluate.paper(drawn[:1]) == pytest.approx(1, abs=0.01)


def test_evaluation_fills_the_card(work: Path) -> None:
    found = json.loads((work / "emoji" / "evaluation.json").read_text())
    assert found["seen"]["generated"]["pictures"] == 4
    assert found["held_out"]["real"]["pictures"] == 2
    assert 0 <= found["seen"]["real"]["R@1"] <= found["seen"]["real"]["R@5"] <= 1
    card = (work / "emoji" / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in card
    assert "| held-out pairs | 2 |" in card


def test_judge_works_in_clip_score(work: Path) -> None:
    pictures = load_pictures(work)[:2]
    texts = ["red apple, noto style emoji", "pizza, fluent style emoji"]
    score = clip_score(pictures, texts, lambda: retrieval.load_judge(work / "emoji-clip"))
    assert score.isfinite()


def test_ranks_start_at_zero(work: Path) -> None:
    asker = retrieval.Judge(work / "emoji-clip", load_drawings(work))
    ranks = asker.ranks(load_pictures(work), load_drawings(work))
    assert ranks.min() >= 0
    assert ranks.max() < len(asker.labels) == 10


def test_augmented_pictures_stay_pictures() -> None:
    torch.manual_seed(0)
    views = judge.augment(torch.ones(8, 3, 64, 64))
    assert views.abs().max() <= 1
    assert views.mean() > 0.8


def test_denoiser_has_the_promised_shape(work: Path) -> None:
    shares = models.shares()
    assert shares["pool_share_of_parameters"] >= 0.45
    assert shares["pool_share_of_macs"] >= 0.40
    text = models.build_text_encoder(CLIPTokenizer.from_pretrained(work / "tokenizer"))
    assert sum(p.numel() for p in text.parameters()) <= 2_500_000


def test_prompts_are_a_seeded_choice(work: Path) -> None:
    drawings = load_drawings(work)
    chosen = prompts.choose(drawings, 8, seed=0)
    assert chosen == prompts.choose(drawings, 8, seed=0)
    assert len(set(chosen)) == 8
    assert (work / "emoji-prompts.txt").read_text().splitlines() == chosen
    with pytest.raises(SystemExit, match="too few drawings"):
        prompts.choose(drawings, 100, seed=0)
