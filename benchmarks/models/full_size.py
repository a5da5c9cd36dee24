"""``python -m benchmarks.models.full_size``: Stable Diffusion 1.5 at full size, random weights.

Calibrates, plans, cuts, saves and loads, and prints the minutes and the peak memory of each. Says
nothing about quality: the weights are random.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import slimdiff
from slimdiff.denoiser import denoiser
from slimdiff.environment import peak_mib
from slimdiff.files import write_json

from .published import PUBLISHED

_CPU = torch.device("cpu")


def main(argv: list[str] | None = None) -> None:
    """Run the phases in turn and write their figures as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.full_size", description=main.__doc__
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--work", type=Path, help="folder for some 8 GB (default: temporary)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        write_json(args.output, run(Path(folder), PUBLISHED["SD 1.5"].config, 512, "-100M"))


def run(folder: Path, config: Mapping[str, Any], pixels: int, params: str) -> dict[str, Any]:
    """Minutes, CPU seconds and peak memory (MiB, of the process so far) by phase; what was cut.

    ``config`` is that of the U-Net, ``params`` the budget.
    """
    phases: dict[str, dict[str, float]] = {}
    with _phase(phases, "build"):
        pipe = stable_diffusion(config)
    dense = denoiser(pipe).num_parameters()
    sampling = slimdiff.Sampling(steps=2, height=pixels, width=pixels, batch_size=2)
    with _phase(phases, "calibrate"):
        stats = slimdiff.calibrate(
            pipe, ["a red apple", "a blue bird"], sampling=sampling, folder=folder / "statistics"
        )
    print(stats, flush=True)
    with _phase(phases, "plan"):
        plan = slimdiff.allocate(stats, slimdiff.Budget(params=params))
    with _phase(phases, "apply"):
        slimdiff.compress_(pipe, stats, plan)
    slim = denoiser(pipe).num_parameters()
    with _phase(phases, "save"):
        slimdiff.save(pipe, folder / "slim")
    del pipe, stats
    gc.collect()
    with _phase(phases, "load"):
        loaded = slimdiff.load(folder / "slim")
    assert denoiser(loaded).num_parameters() == slim
    calibration = {k: v / 60 for k, v in _phases_of(folder / "statistics").items()}
    return {
        "parameters": {"dense": dense, "slim": slim, "removed": dense - slim},
        "phases": phases,
        "calibrate_minutes": calibration,
        "threads": torch.get_num_threads(),
    }


def stable_diffusion(config: Mapping[str, Any]) -> StableDiffusionPipeline:
    """A random U-Net of that configuration between a small text encoder and autoencoder."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**config).eval()
    symbols = [chr(i) for i in range(33, 127)]
    words = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=config["cross_attention_dim"],
        intermediate_size=config["cross_attention_dim"],
        num_hidden_layers=1,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    return StableDiffusionPipeline(
        vae=AutoencoderTiny(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=CLIPTokenizer(
            vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77
        ),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _phases_of(statistics: Path) -> dict[str, float]:
    return dict(slimdiff.Statistics.load(statistics).header.phases)


@contextmanager
def _phase(phases: dict[str, dict[str, float]], name: str) -> Iterator[None]:
    begin, worked = time.perf_counter(), time.process_time()
    yield
    minutes, worked = (time.perf_counter() - begin) / 60, time.process_time() - worked
    phases[name] = {
        "minutes": round(minutes, 2),
        "cpu_seconds": round(worked, 1),
        "peak_mib": round(peak_mib(_CPU)),
    }
    print(
        f"{name}: {minutes:.2f} min, {worked:.0f} CPU s, peak {peak_mib(_CPU):.0f} MiB", flush=True
    )


if __name__ == "__main__":
    main()
