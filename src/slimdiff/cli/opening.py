"""How a model is loaded: its options and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import DiffusionPipeline

from ..calibration import check_statistics
from ..denoiser import denoiser
from ..errors import SlimdiffError
from ..pipelines import open_pipeline, resolve_device
from ..statistics import Statistics
from ..store import load
from .options import Command, gathered

__all__ = [
    "Opening",
    "model_options",
]


@dataclass(frozen=True)
class Opening:
    """How to load a model."""

    dtype: str | None
    device: str | None
    variant: str | None
    revision: str | None
    trust_remote_code: bool
    offload: bool
    device_map: str | None

    def open(self, model: str, dtype: str | None = None) -> DiffusionPipeline:
        """Load ``model``; ``dtype`` is used where the user named none."""
        name = self.dtype or dtype
        return open_pipeline(
            model,
            dtype=getattr(torch, name) if name else None,
            device=resolve_device(self.device),
            variant=self.variant,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            **self._place(),
        )

    def open_slim(self, folder: Path, dense: DiffusionPipeline) -> DiffusionPipeline:
        """Load a slim folder where and as ``dense`` was loaded."""
        place = {k: v for k, v in self._place().items() if v is not None}
        device, dtype = resolve_device(self.device), denoiser(dense).dtype
        return load(folder, device=device, dtype=dtype, **place)

    def _place(self) -> dict[str, Any]:
        if self.offload and self.device_map:
            raise SlimdiffError("--offload and --device-map exclude each other. Choose one.")
        return {"offload": self.offload, "device_map": self.device_map}

    def open_source(self, stats: Statistics) -> DiffusionPipeline:
        """Load the model that ``stats`` were gathered from, and make sure that it is that one."""
        source = stats.header.source
        pipe = self.open(source.name, source.dtype)
        check_statistics(pipe, stats)
        return pipe


def model_options(command: Command) -> Command:
    """--device --dtype --variant --revision and the like, gathered as ``opening``."""
    options = [
        click.option("--device", help="cpu, cuda, cuda:1, mps. Default: the best there is."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "float16", "bfloat16"]),
            help="Default: float32 on a CPU, float16 elsewhere; a slim folder's own.",
        ),
        click.option("--variant", help="Weight variant, such as fp16."),
        click.option("--revision", help="Branch, tag or commit on the hub."),
        click.option("--trust-remote-code", is_flag=True, help="Run code from the model folder."),
        click.option(
            "--offload", is_flag=True, help="Each part on the device only while it runs."
        ),
        click.option("--device-map", help="Spread the parts over the GPUs, such as balanced."),
    ]
    return gathered(command, options, "opening", Opening)
