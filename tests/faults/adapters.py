"""Adapters that a slim model does not take."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .fault import Damage, Fault

__all__ = ["ADAPTERS"]


def _adapter(start: str, *more: str, width: int = 0) -> Damage:
    """A file lora.safetensors for one projection of the dense model, ``width`` inputs if given."""

    def damage(root: Path, stack: ExitStack) -> None:
        dense = load_file(next((root / "model/unet").glob("*.safetensors")))
        name = next(key for key in sorted(dense) if key.endswith("attn2.to_q.weight"))
        rows, columns = dense[name].shape
        linear = f"{start}.{name.removesuffix('.weight')}"
        tensors = {
            f"{linear}.lora_A.weight": torch.ones(2, width or columns),
            f"{linear}.lora_B.weight": torch.ones(rows, 2),
        }
        tensors |= {f"{linear}.{leaf}": torch.ones(rows) for leaf in more}
        save_file(tensors, root / "lora.safetensors")

    return damage


def _pickled(root: Path, stack: ExitStack) -> None:
    (root / "lora.bin").write_bytes(b"\x80\x04")


_CONVERT = "lora convert slim lora.safetensors -o new.safetensors"

ADAPTERS = (
    Fault("A DoRA", _CONVERT, _adapter("unet", "lora_magnitude_vector")),
    Fault("A LoRA for a transformer", _CONVERT, _adapter("transformer")),
    Fault("A LoRA of a model of other widths", _CONVERT, _adapter("unet", width=7)),
    Fault(
        "A pickled LoRA",
        "lora convert slim lora.bin -o new.safetensors",
        _pickled,
        elide=r"(?<=\().*(?=\)\.)",
    ),
)
