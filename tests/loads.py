"""Load a slim folder in one of the ways users do, draw a picture, and save its numbers.

    python tests/loads.py WAY FOLDER OUT [DTYPE]

WAY is ``slimdiff.load``, ``from_pretrained`` (after ``import slimdiff``) or ``self-contained``,
which needs no slimdiff: the CI runs it where slimdiff is not installed, and compares the bytes.
"""

from __future__ import annotations

import sys

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file


def load(way: str, folder: str, dtype: torch.dtype):
    """The pipeline in ``folder``."""
    if way == "slimdiff.load":
        import slimdiff

        return slimdiff.load(folder, dtype=dtype)
    if way == "from_pretrained":
        import slimdiff  # noqa: F401

        return DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    sys.modules["slimdiff"] = None  # importing it fails, as where it is not installed
    return DiffusionPipeline.from_pretrained(folder, dtype=dtype, trust_remote_code=True)


def draw(pipe) -> torch.Tensor:
    """One picture of five steps."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "red apple, noto style emoji",
        num_inference_steps=5,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in another order differ in the last bit
    way, folder, out, dtype = [*sys.argv[1:], "float32"][:4]
    save_file({"picture": draw(load(way, folder, getattr(torch, dtype)))}, out)
