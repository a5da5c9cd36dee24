"""Pictures of five methods for the same prompts and noise, their scores, and a grid to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from slimdiff.files import write_tensors
from slimdiff.pipelines import EMOJI, preset
from slimdiff.sampling import IndexedPrompt, batches, draw

from .bench import Bench, Cell
from .cells import once
from .grid import method_grid
from .prompts import picture_prompts
from .scores import Scorer, bootstrap_ratio
from .settings import OURS

__all__ = ["picture_scores"]


def picture_scores(bench: Bench, policies: dict[float, str]) -> dict[str, dict[str, Any]]:
    """Pool -> method -> scores; ``policies`` is the paper's better policy at each pool."""
    settings = bench.settings
    seed = settings.seeds[0]
    prompts = picture_prompts(bench.prompts, bench.calibration(seed), settings.pictures)
    texts = [text for _, text in prompts]
    scorer = Scorer(_judge(), bench.prompts, texts)
    dense = _pictures(bench, None, prompts)
    results = {}
    for pool in settings.picture_pools:
        drawn = {"dense": dense}
        for label, cell in _named(pool, seed, policies[pool]).items():
            drawn[label] = _pictures(bench, cell, prompts)
        path = bench.work / "pictures" / f"scores-{pool:g}.json"
        found = once(path, lambda drawn=drawn: _scored(scorer, drawn))
        for scores in found.values():
            scores["r_at_1_to_dense"] = bootstrap_ratio(scores["hits"], found["dense"]["hits"])
        title = f"Same prompt and noise down a column; {pool:.0%} of the slimmable pool kept"
        method_grid(drawn, texts, title).save(bench.work / f"pictures-{pool:g}.png")
        results[f"{pool:g}"] = found
    return results


def _named(pool: float, seed: int, paper_policy: str) -> dict[str, Cell]:
    return {
        "magnitude": Cell("magnitude", "uniform", pool, seed),
        "obs": Cell("obs", "uniform", pool, seed),
        f"paper ({paper_policy})": Cell("paper", paper_policy, pool, seed),
        "ours": Cell(*OURS, pool, seed),
    }


def _scored(scorer: Scorer, drawn: dict[str, Tensor]) -> dict[str, Any]:
    return {label: scorer.score(p, drawn["dense"]) for label, p in drawn.items()}


def _pictures(bench: Bench, cell: Cell | None, prompts: list[IndexedPrompt]) -> Tensor:
    """The pictures of a cell (None: of the dense model), uint8, drawn once and kept."""
    name = "dense" if cell is None else cell.name
    path = bench.work / "pictures" / f"{name}.safetensors"
    if not path.exists():
        pipe = bench.dense if cell is None else bench.slim(cell)[0]
        write_tensors(path, {"pictures": _drawn(bench, pipe, prompts)})
    print(f"pictures: {name}", flush=True)
    return load_file(path)["pictures"]


def _drawn(bench: Bench, pipe: DiffusionPipeline, prompts: list[IndexedPrompt]) -> Tensor:
    groups = batches(prompts, bench.sampling.batch_size)
    pictures = torch.cat([draw(pipe, batch, bench.sampling)[0] for batch in groups])
    return (pictures.clamp(0, 1) * 255).round().byte()


def _judge() -> Path:
    """The judge lies beside the embedded pipeline."""
    found = preset(EMOJI)
    assert found is not None
    return found.folder.parent / "emoji-clip"
