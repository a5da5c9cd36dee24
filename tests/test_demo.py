"""What the demo draws, without a page: each picture once, each cut once, clear refusals."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from test_cli import refused, run, slimmed
from tiny_models import build

import slimdiff
from slimdiff import SlimdiffError
from slimdiff.demo import finding, studio
from slimdiff.demo.controls import Slider
from slimdiff.demo.finding import find_statistics
from slimdiff.demo.studio import Studio
from slimdiff.pipelines import open_pipeline
from slimdiff.recipe import copy_pipeline
from slimdiff.sampling import draw
from slimdiff.statistics import Statistics
from slimdiff.store import PLAN_FILE

SAMPLING = slimdiff.Sampling(steps=2, guidance=3.0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, its slim folder with half of the pool, and its statistics beside that."""
    return slimmed(tmp_path_factory.mktemp("demo"), "0.5")


@pytest.fixture(scope="module")
def original(place):
    return open_pipeline(str(place / "model"))


@pytest.fixture
def dense(original):
    return copy_pipeline(original)


@pytest.fixture(scope="module")
def stats(place):
    return Statistics.load(place / "slim-statistics")


@pytest.fixture(scope="module")
def slim(place):
    return slimdiff.load(place / "slim")


@pytest.fixture
def counted(monkeypatch):
    """How often a pipeline drew, and how often one was cut."""
    counts = {"draw": 0, "compress_": 0}

    def counting(name):
        original = getattr(studio, name)

        def counted(*args):
            counts[name] += 1
            return original(*args)

        monkeypatch.setattr(studio, name, counted)

    for name in counts:
        counting(name)
    return counts


@pytest.fixture
def room(dense, slim, stats):
    return Studio(dense, slim, SAMPLING, stats)


def test_two_pictures_and_a_third_where_the_slider_was_moved(room, slim):
    assert (
        room.titles(None) == room.titles(room.slider.start) == ["Dense", "Slim, 50 % of the pool"]
    )
    assert len(list(room.drawings("a thing", 3, room.slider.start))) == 2
    whole, small, other = room.drawings("a thing", 3, 0.8)
    assert room.titles(0.8)[2] == "80 % of the pool"
    assert small.parameters < other.parameters < whole.parameters
    assert whole.predicted is None
    assert 0 < other.predicted < small.predicted
    assert whole.scores == {}
    assert other.scores["psnr_db"] > small.scores["psnr_db"] > 0
    assert min(d.seconds for d in (whole, small, other)) > 0
    by_hand, _ = draw(slim, [(0, "a thing")], replace(SAMPLING, seed=3))
    assert torch.equal(small.picture, by_hand[0])


def test_the_third_is_cut_by_a_plan_from_the_same_statistics(room, stats, original):
    *_, other = room.drawings("a thing", 0, 0.7)
    pipe = copy_pipeline(original)
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.7), multiple=2)
    slimdiff.compress_(pipe, stats, plan)
    pictures, _ = draw(pipe, [(0, "a thing")], SAMPLING)
    assert torch.equal(other.picture, pictures[0])
    assert other.predicted == pytest.approx(plan.predicted_error)


def test_nothing_is_drawn_or_cut_twice(room, counted):
    assert not room.knows("a thing", 0)
    list(room.drawings("a thing", 0, 0.7))
    assert counted == {"draw": 6, "compress_": 1}  # each once to warm up, once timed
    assert room.knows(" a thing ", 0)
    list(room.drawings("a thing", 0, 0.7))
    list(room.drawings("a thing", 0, 0.7 + 1e-9))  # the same widths
    assert counted == {"draw": 6, "compress_": 1}
    list(room.drawings("a thing", 1, 0.7))
    assert counted == {"draw": 9, "compress_": 1}


def test_a_few_pipelines_and_pictures_are_kept(room, counted, monkeypatch):
    monkeypatch.setattr(studio, "_PICTURES", 2)
    for share in (0.6, 0.7, 0.8, 0.9, 0.6):
        list(room.drawings("a thing", 0, share))
    assert counted["compress_"] == 5
    assert room._cut.cache_info().currsize == studio._PIPELINES == 3
    assert len(room._drawn) == 2


def test_all_of_the_pool_is_the_dense_picture(room, counted):
    whole, _, other = room.drawings("a thing", 0, 1.0)
    assert torch.equal(whole.picture, other.picture)
    assert other.seconds == whole.seconds
    assert counted == {"draw": 4, "compress_": 0}


@pytest.mark.parametrize(
    ("prompt", "seed", "text"),
    [
        (" ", 0, "There is no prompt yet"),
        ("x" * 2001, 0, "2,001 characters; expected at most 2,000"),
        ("x", None, "The seed is empty; expected a whole number from 0 to 4294967295"),
        ("x", -1, "The seed is -1"),
        ("x", 2**32, "The seed is 4294967296"),
        ("x", 1.5, "The seed is 1.5"),
        ("x", float("nan"), "The seed is nan"),
    ],
)
def test_what_cannot_be_drawn_is_refused(room, counted, prompt, seed, text):
    with pytest.raises(SlimdiffError, match=text):
        list(room.drawings(prompt, seed))
    assert counted["draw"] == 0


def test_out_of_memory_gives_up_what_can_be_cut_again(room, monkeypatch):
    list(room.drawings("a thing", 0, 0.7))

    def full(*args):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(studio, "draw", full)
        with pytest.raises(MemoryError):
            list(room.drawings("a thing", 1, 0.7))
    assert room._cut.cache_info().currsize == 0
    assert len(list(room.drawings("a thing", 1, 0.7))) == 3


def test_a_drawing_ends_at_its_next_step_when_the_demo_does(dense, slim):
    steps = []
    dense.unet.register_forward_hook(lambda *args: steps.append(args) or room.stop())
    room = Studio(dense, slim, SAMPLING)
    with pytest.raises(SlimdiffError, match="The demo is ending"):
        list(room.drawings("a thing", 0))
    assert len(steps) == 1
    assert not dense.unet._forward_pre_hooks


def test_without_statistics_there_is_no_slider(dense, slim):
    room = Studio(dense, slim, SAMPLING)
    assert room.slider is None
    assert len(room.titles(0.7)) == len(list(room.drawings("a thing", 0, 0.7))) == 2


def test_the_slider_offers_what_is_within_reach(stats, slim):
    plan = slimdiff.compression.plan_of(slim)
    found = Slider.over(stats, plan)
    assert 0.3 <= found.least < found.start == 0.5
    assert found.moved(0.55)
    assert not found.moved(0.5000001)
    assert slimdiff.allocate(
        stats, slimdiff.Budget(pool=found.least), multiple=plan.multiple
    ).removed
    with pytest.raises(SlimdiffError, match="At least 100.0% .* in multiples of 4096"):
        Slider.over(stats, replace(plan, multiple=4096))
    with pytest.raises(SlimdiffError, match="are incomplete.*slimdiff finish"):
        Slider.over(replace(stats, bases={}), plan)


def test_statistics_are_found_or_it_is_said_why_not(
    place, dense, stats, slim, tmp_path, monkeypatch
):  # fmt: skip
    plan = slimdiff.compression.plan_of(slim)
    found, why_not = find_statistics(dense, plan, place / "slim", None)
    assert found is not None
    assert found.header == stats.header
    assert why_not == ""
    monkeypatch.chdir(place / "slim")
    from_inside, _ = find_statistics(dense, plan, finding.Path("."), None)
    assert from_inside is not None
    found, why_not = find_statistics(dense, plan, tmp_path / "slim", None)
    assert found is None
    assert "No statistics folder at" in why_not
    assert why_not.endswith("Statistics kept elsewhere are named by --statistics.")
    with pytest.raises(SlimdiffError, match="No statistics folder at"):
        find_statistics(dense, plan, place / "slim", tmp_path / "gone")
    with torch.no_grad():
        dense.unet.conv_in.weight.mul_(2)
    found, why_not = find_statistics(dense, plan, place / "slim", None)
    assert found is None
    assert "The statistics are of another model" in why_not


def test_a_pipeline_of_classes_is_asked_for_classes():
    dense = build("dit")
    stats = slimdiff.calibrate(dense, ["1", "2"], sampling=SAMPLING)
    slim = copy_pipeline(dense)
    plan = slimdiff.allocate(stats, slimdiff.Budget(pool=0.7), multiple=2)
    slimdiff.compress_(slim, stats, plan)
    room = Studio(dense, slim, SAMPLING, stats)
    assert room.takes_classes
    assert len(list(room.drawings("thing 3", 0, 0.9))) == 3
    with pytest.raises(SlimdiffError, match="'a thing' is no class of this DiTPipeline"):
        list(room.drawings("a thing", 0))


def test_only_the_dense_original_goes_beside_a_slim_model(dense, slim):
    other = copy_pipeline(dense)
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(2)
    for dense, small, text in (
        (other, slim, "was cut from another denoiser"),
        (slim, slim, "is already slim"),
        (other, other, "is not slim"),
    ):
        with pytest.raises(SlimdiffError, match=text):
            Studio(dense, small, SAMPLING)


def test_the_command_refuses_in_one_line(place, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    for args, text in (
        (["slim", "model"], f"'model' is not a slim folder: it has no {PLAN_FILE}"),
        (["gone", "slim"], "Unknown model 'gone'"),
        (["model", "slim", "--stats", "gone"], "No statistics folder at 'gone"),
        (["model", "slim", "--host", "256.1.1.1"], "cannot listen at 256.1.1.1, port 0 .*--host"),
        (["model", "slim", "--steps", "0"], "Invalid value for '--steps'"),
    ):
        refused(run("demo", *args, "--port", "0", "--device", "cpu", cwd=place), text)
    refused(
        run("demo", "model", "slim", "--port", "65536", cwd=place), "Invalid value for '--port'"
    )


def test_without_gradio_the_command_says_what_to_install(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(
        run("demo", "model", "slim", cwd=place),
        r"The demo needs gradio, which is not installed. Run pip install 'slimdiff\[demo\]'",
    )
