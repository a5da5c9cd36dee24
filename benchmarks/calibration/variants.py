"""The variants, as data."""

from __future__ import annotations

from dataclasses import dataclass

from slimdiff.weighting import WEIGHTS

__all__ = ["FULL", "QUICK", "Ranges", "Variant", "variants"]


@dataclass(frozen=True)
class Variant:
    """One way to calibrate. ``pick`` is ``random`` or a method of SlimSet."""

    prompts: int
    steps: int
    seed: int
    pick: str = "random"
    weights: str = "uniform"
    rounds: int = 0

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.pick}-{self.prompts}x{self.steps}-{self.weights}-{self.rounds}r-{self.seed}"


@dataclass(frozen=True)
class Ranges:
    """What is varied: one thing at a time of ``prompts`` and ``steps``, the plain calibration.

    The plain one has fewer prompts than the default, so that a question is answered in minutes.
    ``same_prompts`` are the seeds of the questions whose variants see the same prompts and noise:
    their answers depend less on the seed. ``splits`` are pairs of prompts and steps, in groups of
    equal sampling.
    """

    prompts: int = 64
    steps: int = 20
    seeds: tuple[int, ...] = (0, 1)
    same_prompts: tuple[int, ...] = (0,)
    counts: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    other_steps: tuple[int, ...] = (5, 10, 20, 50)
    picks: tuple[str, ...] = ("facility", "k-center")
    picked_counts: tuple[int, ...] = (8, 64)
    weights: tuple[str, ...] = WEIGHTS
    rounds: tuple[int, ...] = (0, 1, 2)
    splits: tuple[tuple[int, int], ...] = (
        *((64, 20), (256, 5)),
        *((128, 20), (256, 10), (512, 5)),
        *((256, 20), (512, 20)),
    )
    held_out: int = 16
    pool: float = 0.6


FULL = Ranges()
QUICK = Ranges(
    4,
    2,
    (0,),
    (0,),
    (2, 4),
    (2,),
    ("facility",),
    (4,),
    ("uniform", "log"),
    (0, 1),
    ((4, 2), (8, 1)),
    2,
)


def variants(ranges: Ranges) -> dict[str, list[Variant]]:
    """Question -> the variants that answer it, for its seeds; the plain one is among each."""
    n, steps = ranges.prompts, ranges.steps
    seeds, paired = ranges.seeds, ranges.same_prompts
    picked = [("random", c) for c in ranges.picked_counts]
    picked += [(pick, c) for pick in ranges.picks for c in ranges.picked_counts]
    return {
        "prompts": [Variant(c, steps, s) for c in ranges.counts for s in seeds],
        "choice": [Variant(c, steps, s, pick) for pick, c in picked for s in seeds],
        "steps": [Variant(n, k, s) for k in ranges.other_steps for s in paired],
        "split": [Variant(c, k, s) for c, k in ranges.splits for s in paired],
        "weights": [Variant(n, steps, s, weights=w) for w in ranges.weights for s in paired],
        "rounds": [Variant(n, steps, s, rounds=r) for r in ranges.rounds for s in paired],
    }
