"""How a budget is shared out. Each policy is one pure function over groups of options.

A *group* is what shrinks as one: a feed-forward, or the query-key and value-output widths of one
attention (equal widths keep fused attention fast). An *option* is one setting of a group's
widths, with what it costs in each unit asked for and its predicted error. A policy picks an option
for each group such that all together stay within every ceiling.
"""

from __future__ import annotations

from .measured import measured
from .options import Costs, Group, Option, Policy
from .uniform import uniform

__all__ = ["POLICIES", "Costs", "Group", "Option", "Policy"]

POLICIES: dict[str, Policy] = {"uniform": uniform, "ara": measured, "measured": measured}
"""How each policy picks; :data:`slimdiff.allocation.ERRORS` says which errors it weighs."""
