"""The command line on a tiny pipeline: every command. What it refuses is in ``faults``."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import prompt_file, tiny_folder

from slimdiff.cli import main

SMALL = ["--steps", "2", "--batch-size", "2", "--guidance", "3", "--device", "cpu"]
CUT = ["--num-prompts", "2", "--multiple", "2"]


def run(*args, cwd):
    """Run the command in this process; importing torch anew each time would take minutes."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["slimdiff", *map(str, args)])
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def refused(result, *texts):
    """Assert a clean refusal whose message holds every text."""
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    flat = " ".join(result.stderr.split())
    for text in texts:
        assert re.search(text, flat), (text, flat)


def slimmed(root, pool, *options):
    """``root`` with a tiny model, prompts, and the slim folder that the command makes of them."""
    tiny_folder(root / "model")
    prompt_file(root / "prompts.txt")
    made = run(
        "slim", "model", "-o", "slim", "--pool", pool, "--prompts", "prompts.txt",
        *options, *CUT, *SMALL, cwd=root,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, prompts, statistics and a slim folder made by the commands."""
    return slimmed(tmp_path_factory.mktemp("cli"), "0.6", "--statistics", "stats")


def test_slim_writes_a_pipeline_a_plan_and_a_report(place):
    report = json.loads((place / "slim/report/report.json").read_text())
    assert 0.4 < report["pool"]["kept"] <= 0.6
    assert report["params"]["slim"] < report["params"]["dense"]
    wanted = {
        "params": {"dense", "slim", "kept"},
        "pool": {"dense", "slim", "kept"},
        "macs": {"dense", "slim", "kept"},
        "step_time": {"dense_ms", "slim_ms", "ratio"},
        "fidelity": {"noise_rel_mse", "latent_rel_mse", "psnr_db", "ssim"},
        "calibration": {"prompts", "steps", "seconds", "peak_mib"},
    }
    for key, names in wanted.items():
        assert names <= set(report[key]), key
        assert all(report[key][name] is not None for name in names)
    assert {"seed", "versions", "device"} <= set(report)
    assert (place / "slim/report/before_after.png").stat().st_size > 1000
    assert "| parameters |" in (place / "slim/report/report.md").read_text()
    assert json.loads((place / "slim/slimdiff_plan.json").read_text())["widths"]
    assert not [p for p in place.iterdir() if p.name.startswith(".")]


def test_plan_apply_and_compare_need_no_second_calibration(place):
    stamp = (place / "stats/statistics.json").stat().st_mtime_ns
    planned = run(
        "plan", "stats", "--pool", "0.8", "--multiple", "2", "-o", "plan.json", cwd=place
    )
    assert planned.returncode == 0, planned.stderr
    applied = run("apply", "model", "stats", "plan.json", "-o", "slim8", cwd=place)
    assert applied.returncode == 0, applied.stderr
    compared = run(
        "compare", "model", "slim8", "--prompts", "prompts.txt", "-o", "report8", *SMALL, cwd=place
    )
    assert compared.returncode == 0, compared.stderr
    small = json.loads((place / "slim/report/report.json").read_text())
    large = json.loads((place / "report8/report.json").read_text())
    assert large["params"]["slim"] > small["params"]["slim"]
    assert (place / "stats/statistics.json").stat().st_mtime_ns == stamp


def test_generate_draws_the_same_file_twice(place):
    for name in ("a.png", "b.png"):
        drawn = run("generate", "slim", "a thing", "-o", name, "--seed", "3", *SMALL, cwd=place)
        assert drawn.returncode == 0, drawn.stderr
    assert (place / "a.png").read_bytes() == (place / "b.png").read_bytes()
    other = run("generate", "slim", "a thing", "-o", "c.png", "--seed", "4", *SMALL, cwd=place)
    assert other.returncode == 0
    assert (place / "a.png").read_bytes() != (place / "c.png").read_bytes()


def test_inspect_lists_sites_and_says_what_it_takes(place):
    result = run("inspect", "model", *SMALL, cwd=place)
    assert result.returncode == 0, result.stderr
    assert "least reachable" in result.stdout
    assert "of the multiply-adds" in result.stdout
    assert "peak memory about" in result.stdout


def test_without_prompts_the_shipped_pool_is_taken(place):
    shipped = run("calibrate", "model", "-o", "s2", "--dry-run", *SMALL, cwd=place)
    assert shipped.returncode == 0, shipped.stderr
    assert not (place / "s2").exists()


def test_dry_run_writes_nothing(place):
    before = sorted(p.name for p in place.iterdir())
    result = run(
        "slim", "model", "-o", "dry", "--prompts", "prompts.txt", "--dry-run", *CUT, *SMALL,
        cwd=place,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"about [\d.]+ min to calibrate .* \d+ s closed forms, .* peak memory", result.stdout
    )
    assert sorted(p.name for p in place.iterdir()) == before


def test_version_and_help_of_every_command(place):
    version = subprocess.run(
        [sys.executable, "-m", "slimdiff", "--version"], capture_output=True, text=True
    )
    assert re.match(r"slimdiff, version \d", version.stdout)
    for command in (
        "slim", "calibrate", "plan", "apply", "compare", "bench", "sweep",
        "inspect", "generate", "prompts", "export",
    ):  # fmt: skip
        result = run(command, "--help", cwd=place)
        assert result.returncode == 0
        assert "Example: slimdiff" in result.stdout


@pytest.mark.parametrize("amount", ["0", "abc", "-0", "nan", "1e"])
def test_a_budget_that_is_no_amount(place, amount):
    refused(run("plan", "stats", f"--pool={amount}", "-o", "x.json", cwd=place), "Budget pool='")
    assert not (place / "x.json").exists()


def test_ctrl_c_leaves_no_output_and_says_what_can_be_resumed(place):
    args = [
        "slim", "model", "-o", "late", "--prompts", "prompts.txt", "--pool", "0.6", "--steps",
        "900", "--batch-size", "1", "--multiple", "2", "--num-prompts", "4", "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "slimdiff", *args],
        cwd=place,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & ignores it
    )
    try:
        assert process.stderr is not None
        assert any("Calibrating" in line for line in process.stderr)
        time.sleep(2)
        os.kill(process.pid, signal.SIGINT)
        _, rest = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, rest
    assert "late was not written" in " ".join(rest.split())
    assert "Traceback" not in rest
    assert not (place / "late").exists()
    assert not [p for p in place.iterdir() if p.name.startswith(".")]


def test_a_full_disk_leaves_nothing(place, monkeypatch, capsys):
    from slimdiff import store

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "weights")

    monkeypatch.setattr(store, "plan_of", full)
    monkeypatch.chdir(place)
    monkeypatch.setattr(
        sys, "argv", ["slimdiff", "apply", "model", "stats", "slim/slimdiff_plan.json", "-o", "f"]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "No space left on device: 'weights'" in capsys.readouterr().err
    assert not Path("f").exists()
    assert not [p for p in place.iterdir() if p.name.startswith(".")]


def test_what_nobody_foresaw_is_still_a_message(place, monkeypatch):
    from slimdiff.cli import steps

    def broken(*args, **kwargs):
        raise ZeroDivisionError("one by nought")

    monkeypatch.setattr(steps, "allocate", broken)
    refused(
        run("plan", "stats", "--pool", "0.8", "-o", "p.json", cwd=place),
        "Unexpected ZeroDivisionError: one by nought. .*set SLIMDIFF_VERBOSE=1",
    )
    monkeypatch.setenv("SLIMDIFF_VERBOSE", "1")
    with pytest.raises(ZeroDivisionError):
        run("plan", "stats", "--pool", "0.8", "-o", "p.json", cwd=place)


def test_force_makes_new_statistics_only_where_they_have_no_name_of_their_own(place, tmp_path):
    def slim(*more):
        made = run(
            "slim", place / "model", "-o", "a", "--pool", "0.8", "--prompts",
            place / "prompts.txt", *CUT, *SMALL, *more, cwd=tmp_path,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr

    def stamp(name):
        return (tmp_path / name / "statistics.json").stat().st_mtime_ns

    slim()
    slim("--force", "--statistics", "kept")
    automatic, named = stamp("a-statistics"), stamp("kept")
    slim("--force", "--statistics", "kept")
    assert stamp("kept") == named
    slim("--force")
    assert stamp("a-statistics") > automatic


def test_export_writes_both_kinds_and_replaces_only_its_own(place):
    refused(run("export", "slim", "-o", "e", cwd=place), "Expected one of --self-contained and")
    refused(run("export", "model", "--dense", "-o", "e", cwd=place), "No plan at")
    for kind, text in (("--dense", "as slow as the dense"), ("--self-contained", "trust_remote")):
        made = run("export", "slim", kind, "-o", "exported", "--force", cwd=place)
        assert made.returncode == 0, made.stderr
        assert text in made.stdout + made.stderr
    assert list((place / "exported/unet").glob("slim_unet_*.py"))
    drawn = run("generate", "exported", "x", "-o", "e.png", *SMALL, cwd=place)
    refused(drawn, "brings code of its own, which was not run. If you trust it, pass --trust")
    drawn = run(
        "generate", "exported", "x", "-o", "e.png", "--trust-remote-code", *SMALL, cwd=place
    )
    assert drawn.returncode == 0, drawn.stderr


def test_lora_convert_writes_a_file_and_says_what_is_lost(place):
    from diffusers import UNet2DConditionModel

    shapes = UNet2DConditionModel.from_pretrained(place / "model", subfolder="unet").state_dict()
    name = next(key for key in shapes if key.endswith("attn2.to_q.weight")).removesuffix(".weight")
    rows, columns = shapes[f"{name}.weight"].shape
    tensors = {
        f"unet.{name}.lora_A.weight": torch.ones(2, columns),
        f"unet.{name}.lora_B.weight": torch.ones(rows, 2),
    }
    save_file(tensors, place / "lora.safetensors")
    args = ["lora", "convert", "slim", "lora.safetensors", "-o", "lora-slim.safetensors"]
    made = run(*args, cwd=place)
    assert made.returncode == 0, made.stderr
    assert re.search(r"[\d.]+% of the adapter's energy lies outside", made.stderr + made.stdout)
    converted = load_file(place / "lora-slim.safetensors")
    assert converted[f"unet.{name}.lora_B.weight"].shape[0] < rows
    refused(run(*args, cwd=place), "'lora-slim.safetensors' already exists")


@pytest.fixture
def no_clock(monkeypatch, tmp_path):
    """Times that are made up, and a cache of the test's own."""
    from slimdiff import profiling
    from slimdiff.deadline import Clock
    from slimdiff.latency import Curve

    def curve(model, members, *inputs):
        return Curve.of({1: 1e-6, members[0].width: 1e-4 * members[0].width})

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(profiling, "in_turn", lambda runs, **kwargs: [(0.02,) * len(runs)])
    monkeypatch.setattr(profiling, "_curve", curve)
    monkeypatch.setattr(
        Clock, "share", lambda self, widths: 0.6 + 0.003 * sum(widths.values()) / 4
    )


def test_plan_takes_every_kind_of_budget(place, no_clock):
    planned = run(
        "plan", "stats", "--macs", "0.9", "--bytes", "0.95", "--multiple", "2", "-o", "macs.json",
        cwd=place,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    kept = json.loads((place / "macs.json").read_text())["kept"]
    assert kept["macs"] <= 0.9
    assert kept["bytes"] <= 0.95
    assert "of the multiply-adds" in planned.stdout
    timed = run(
        "plan", "stats", "--latency", "0.95", "--multiple", "2", "-o", "time.json", cwd=place
    )
    assert timed.returncode == 0, timed.stderr
    assert json.loads((place / "time.json").read_text())["kept"]["latency"] <= 0.95
    assert "of the time a step" in timed.stdout
    refused(
        run("plan", "stats", "--latency", "0.1", "--multiple", "2", "-o", "t.json", cwd=place),
        r"latency=0.1 is out of reach.*\(latency=0",
    )
    assert not (place / "t.json").exists()


def test_sweep_writes_points_plans_and_a_figure(place):
    args = ["sweep", "stats", "--prompts", "prompts.txt", "--num-eval", "1", "--multiple", "2"]
    refused(run(*args, "--pool", "0.9", "-o", "sw", cwd=place), "one budget with several amounts")
    made = run(*args, "--pool", "0.9,0.7", "-o", "sw", cwd=place)
    assert made.returncode == 0, made.stderr
    assert (place / "sw/sweep.png").stat().st_size > 1000
    assert [p["name"] for p in json.loads((place / "sw/sweep.json").read_text())["points"]] == [
        "pool-0.9", "pool-0.7",
    ]  # fmt: skip
    assert (place / "sw/pool-0.7-plan.json").is_file()
    again = run(*args, "--pool", "0.9,0.7", "-o", "sw", cwd=place)
    assert again.returncode == 0, again.stderr


def test_bench_tells_time_memory_and_size(place, monkeypatch):
    bench = sys.modules["slimdiff.cli.bench"]  # its command has the same name
    peaks = []
    monkeypatch.setattr(bench, "_peak", lambda *args: peaks.append(bench._draw_once(*args)) or 9.0)
    timed = run(
        "bench", "model", "slim", "--steps", "1", "--resolution", "16", "--seconds", "0", "-o",
        "bench.json", "--device", "cpu", cwd=place,
    )  # fmt: skip
    assert timed.returncode == 0, timed.stderr
    found = json.loads((place / "bench.json").read_text())
    assert found["step"]["rounds"] == 5
    assert found["bytes"][1] < found["bytes"][0]
    assert len(peaks) == 2
    assert min(peaks) > 0
    assert "peak memory" in timed.stdout
    refused(run("bench", "slim", "model", cwd=place), "'model' is not a slim folder.*second")
