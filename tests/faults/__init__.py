"""Everything that goes wrong on purpose, as data: docs/faults.md and its test come from here.

``PYTHONPATH=src:tests python -m faults`` lets all of it happen and writes the page.
"""

from .adapters import ADAPTERS
from .breaks import BREAKS
from .budgets import BUDGETS
from .fault import Fault, Told, met, prepared
from .folders import FOLDERS
from .inputs import INPUTS
from .kept import KEPT

__all__ = ["FAULTS", "Fault", "Told", "met", "prepared"]

FAULTS: dict[str, tuple[Fault, ...]] = {
    "Models, prompts and options": INPUTS,
    "Budgets and plans": BUDGETS,
    "Statistics": KEPT,
    "Folders and disks": FOLDERS,
    "While the model runs": BREAKS,
    "Adapters": ADAPTERS,
}
"""By the heading under which the page shows them."""
