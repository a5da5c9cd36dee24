"""What the demo's page may be asked for: a share of the pool, a prompt, a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..allocation import least, prices_of
from ..errors import SlimdiffError
from ..grid import Grid
from ..plan import Plan
from ..statistics import Statistics

__all__ = ["Slider", "checked"]

_LEAST = 0.3
_LONGEST, _LARGEST_SEED = 2000, 2**32 - 1


@dataclass(frozen=True)
class Slider:
    """Shares of the slimmable pool, ``least`` to 1; at ``start`` it stands for the slim model."""

    least: float
    start: float
    step: float = 0.05

    def moved(self, share: float) -> bool:
        """Whether the slider stands elsewhere than at its start."""
        return abs(share - self.start) > self.step / 2

    @classmethod
    def over(cls, statistics: Statistics, plan: Plan) -> Slider:
        """The slider for models cut by ``statistics``, beside the one that was cut by ``plan``.

        Raises SlimdiffError if the statistics leave nothing to choose.
        """
        header, step = statistics.header, cls.step
        if not statistics.complete:
            raise SlimdiffError(
                f"The statistics of '{header.source.name}' are incomplete; expected finished "
                "ones. Run slimdiff calibrate again, or slimdiff finish after a merge."
            )
        prices = prices_of(statistics)["pool"]
        share = least(prices, header.sites, Grid(plan.multiple)) / prices.total
        lowest, highest = math.ceil(max(_LEAST, share) / step - 1e-9), round(1 / step)
        if lowest >= highest:
            raise SlimdiffError(
                f"At least {share:.1%} of the pool stay with widths in multiples of "
                f"{plan.multiple}, as in the slim folder's plan; expected less than "
                f"{1 - step:.0%}. Slim the model with a smaller --multiple."
            )
        start = min(max(lowest, round(plan.pool_kept / step)), highest)
        return cls(round(lowest * step, 2), round(start * step, 2))


def checked(prompt: str, seed: float | None) -> tuple[str, int]:
    """The prompt and the seed. Raises SlimdiffError for what was left out or makes no sense."""
    prompt = (prompt or "").strip()
    if not prompt:
        raise SlimdiffError("There is no prompt yet. Type one.")
    if len(prompt) > _LONGEST:
        raise SlimdiffError(
            f"The prompt has {len(prompt):,} characters; expected at most {_LONGEST:,}. "
            "Shorten it."
        )
    if seed is None or not 0 <= seed <= _LARGEST_SEED or seed != int(seed):
        raise SlimdiffError(
            f"The seed is {'empty' if seed is None else seed}; expected a whole number from 0 to "
            f"{_LARGEST_SEED}. Change it."
        )
    return prompt, int(seed)
