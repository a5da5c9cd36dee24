"""What the benchmark runs, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from slimdiff import Sampling
from slimdiff.prompts import NUM_PROMPTS

__all__ = ["FULL", "OURS", "QUICK", "Settings"]

OURS = "exact", "measured"
"""Our method and our policy."""


@dataclass(frozen=True)
class Settings:
    """Sizes of a run.

    ``pools``: shares of the slimmable parameters kept. ``seeds``: each draws other calibration
    prompts and other noise. ``calibration``, ``held_out`` and ``pictures`` count prompts.
    ``multiple`` is the grid of widths: 1, the peers take any width; ``our_multiple`` that of ours,
    the default that users get.
    ``detail_pool`` is the pool of the ablation and of the robustness check. ``rounds`` of error
    feedback (``slimdiff.feedback``) are the ablation's last step.
    """

    pools: tuple[float, ...] = (0.8, 0.6, 0.4)
    seeds: tuple[int, ...] = (0, 1, 2)
    calibration: int = NUM_PROMPTS
    held_out: int = 12
    steps: int = 20
    guidance: float = 2.0
    multiple: int = 1
    our_multiple: int = 8
    pictures: int = 128
    picture_pools: tuple[float, ...] = (0.6, 0.4)
    detail_pool: float = 0.6
    rounds: int = 1
    other_steps: tuple[int, ...] = (10, 20, 50)
    other_guidance: tuple[float, ...] = (1.0, 2.0, 5.0)

    @property
    def sampling(self) -> Sampling:
        """How calibration and comparison draw."""
        return Sampling(steps=self.steps, guidance=self.guidance)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


FULL = Settings()

QUICK = Settings(
    pools=(0.6,),
    seeds=(0,),
    calibration=4,
    held_out=2,
    steps=2,
    pictures=8,
    picture_pools=(0.6,),
    other_steps=(1, 2, 4),
)
